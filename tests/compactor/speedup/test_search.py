"""Sizes under a budget of time, against all combinations there are; and the search that varies the guesses."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compactor.speedup.search import Choices, cheapest, search


def choices(times, errors):
    """One block."""
    return Choices(tuple(range(len(times))), np.array(times, np.float64), np.array(errors, np.float64))


def cost(blocks, weights, places):
    return sum(weight * block.errors[place] for block, weight, place in zip(blocks, weights, places, strict=True))


def time(blocks, places):
    return math.fsum(block.times_ms[place] for block, place in zip(blocks, places, strict=True))


def brute_force(blocks, weights, budget):
    """The least cost within the budget; None where nothing is."""
    every = itertools.product(*(range(len(block.sizes)) for block in blocks))
    costs = [cost(blocks, weights, places) for places in every if time(blocks, places) <= budget]
    return min(costs) if costs else None


def random_blocks(seed, *, blocks=4, sizes=5):
    random = np.random.default_rng(seed)
    found = []
    for _ in range(blocks):
        times = np.concatenate([[0.0], np.sort(random.uniform(0.1, 2, sizes - 1))])
        errors = np.concatenate([np.sort(random.uniform(0.01, 1, sizes - 1))[::-1], [0.0]])
        found.append(choices(times, errors))
    return found, random.uniform(0.1, 10, blocks).tolist()


@st.composite
def problems(draw, times):
    """Blocks, weights."""
    blocks = []
    for _ in range(draw(st.integers(1, 4))):
        count = draw(st.integers(1, 5))
        taken = draw(st.lists(times, min_size=count, max_size=count))
        errors = draw(st.lists(st.floats(0, 1), min_size=count, max_size=count))
        blocks.append(choices(taken, errors))
    weights = draw(st.lists(st.floats(0.01, 100), min_size=len(blocks), max_size=len(blocks)))
    return blocks, weights


@given(problems(st.integers(0, 12)), st.sampled_from([1, 2, 4, 5, 8, 10, 16, 20, 25, 32, 40, 50]))
def test_no_combination_is_better(problem, budget):
    blocks, weights = problem  # times that no rounding changes
    best = brute_force(blocks, weights, budget)
    found = cheapest(blocks, weights, budget)
    if best is None:
        assert found is None
    else:
        assert found is not None
        assert time(blocks, found) <= budget
        assert cost(blocks, weights, found) == pytest.approx(best, abs=1e-12)


@given(problems(st.floats(0, 5)), st.floats(0.05, 20))
def test_rounding_never_passes_the_budget_and_costs_a_step_for_each_block(problem, budget):
    blocks, weights = problem
    found = cheapest(blocks, weights, budget)
    near = brute_force(blocks, weights, budget * (1 - len(blocks) / 4000))
    if found is None:
        assert near is None
        return
    assert time(blocks, found) <= budget * (1 + 1e-9)
    least = brute_force(blocks, weights, budget * (1 + 1e-9))
    assert least is not None and cost(blocks, weights, found) >= least - 1e-12
    assert near is None or cost(blocks, weights, found) <= near + 1e-12


@pytest.mark.parametrize("blocks", [2, 3, 7, 24])
def test_many_small_remainders_do_not_add_up_to_more_than_there_is(blocks):
    steps = 4000 // blocks + 0.4  # all together are a little too long; rounded to whole steps they would not be
    some = [choices([0, steps / 4000], [1, 0])] * blocks
    found = cheapest(some, [1.0] * blocks, 1.0)
    assert found is not None and sum(found) == blocks - 1


@pytest.mark.parametrize("budget", [-1.0, -1e-9, 0.29, 0.0])
def test_a_budget_that_cannot_be_met(budget):
    blocks = [choices([0.1, 1], [1, 0]), choices([0.2, 1], [1, 0])]
    assert cheapest(blocks, [1, 1], budget) is None
    assert search(blocks, [1, 1], budget, lambda places: 0.0, trials=4, seed=0) is None


def test_a_budget_of_nothing_takes_what_takes_no_time():
    blocks = [choices([0, 1], [1, 0]), choices([0, 0, 3], [2, 1, 0])]
    assert cheapest(blocks, [1, 1], 0.0) == (0, 1)


def test_a_budget_for_all_keeps_all():
    blocks, weights = random_blocks(0)
    assert cheapest(blocks, weights, 1000.0) == (4, 4, 4, 4)


def test_what_matters_more_keeps_more():
    blocks = [choices([0, 1, 2], [1, 0.3, 0])] * 2
    assert cheapest(blocks, [10, 1], 2.0) in [(2, 0), (1, 1)]
    assert cheapest(blocks, [100, 1], 2.0) == (2, 0)
    assert cheapest(blocks, [1, 100], 2.0) == (0, 2)


def hidden_loss(blocks, weights, seed):
    """A loss that the guesses do not tell: blocks matter otherwise than was thought, and not alone."""
    true = np.array(weights) * np.exp(np.random.default_rng(seed).standard_normal(len(weights)))

    def loss(places):
        errors = [block.errors[place] for block, place in zip(blocks, places, strict=True)]
        return float(true @ errors + np.prod(errors))

    return loss


@given(st.integers(0, 10_000), st.floats(0.1, 0.9), st.integers(1, 8))
@settings(max_examples=30)
def test_the_search_only_improves_and_keeps_within_the_budget(seed, share, trials):
    blocks, weights = random_blocks(seed)
    budget = share * sum(block.times_ms[-1] for block in blocks)
    loss = hidden_loss(blocks, weights, seed)
    tried = []

    def told(places):
        tried.append(places)
        return loss(places)

    first = cheapest(blocks, weights, budget)
    found = search(blocks, weights, budget, told, trials=trials, seed=seed)
    assert first is not None and found is not None
    best, least = found
    assert tried[0] == first
    assert least == loss(best) == min(map(loss, tried)) <= loss(first)
    assert len(tried) == len(set(tried)) <= trials  # nothing twice
    assert all(time(blocks, places) <= budget * (1 + 1e-9) for places in tried)

    assert search(blocks, weights, budget, loss, trials=trials, seed=seed) == found


def test_the_search_finds_better_than_the_guess():
    better = 0
    for seed in range(5):
        blocks, weights = random_blocks(seed, blocks=6, sizes=6)
        budget = 0.4 * sum(block.times_ms[-1] for block in blocks)
        loss = hidden_loss(blocks, weights, seed)
        found = search(blocks, weights, budget, loss, trials=16, seed=1)
        first = cheapest(blocks, weights, budget)
        assert found is not None and first is not None
        better += found[1] < loss(first)
    assert better >= 3


def test_one_trial_is_the_guess_itself():
    blocks, weights = random_blocks(1)
    calls = []
    found = search(blocks, weights, 3.0, lambda places: calls.append(places) or 5.0, trials=1, seed=0)
    assert found == (cheapest(blocks, weights, 3.0), 5.0) and len(calls) == 1


def test_the_search_ends_where_there_is_only_one_choice():
    blocks = [choices([1.0], [0.0]), choices([2.0], [0.5])]
    assert search(blocks, [1, 1], 3.1, lambda places: 1.0, trials=10, seed=0) == ((0, 0), 1.0)


def test_a_first_choice_without_a_loss_is_not_kept():
    blocks, weights = random_blocks(2)
    first = cheapest(blocks, weights, 3.0)
    found = search(blocks, weights, 3.0, lambda places: math.nan if places == first else 1.0, trials=12, seed=0)
    assert found is not None and found[0] != first and found[1] == 1.0
