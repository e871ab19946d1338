"""Orders of removal against brute force: each candidate removed, and the rest solved by NumPy's least squares."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compactor.speedup import surgery
from compactor.speedup.surgery import DAMPING, damp, order_removals, solve_kept

MANY = 140  # more than two rounds of delayed updates


def problem(inputs: int, outputs: int, *, seed: int, rows: int | None = None, bias: bool = True, mixing: float = 1.0):
    """A weight, what it reads, and H; the last of ``inputs + bias`` inputs is the constant of a bias.

    The less ``mixing``, the less an input can be told from the others.
    """
    random = np.random.default_rng(seed)
    mixed = mixing * random.standard_normal((inputs, inputs)) + 2 * np.eye(inputs)
    data = random.standard_normal((rows or 3 * inputs + 5, inputs)) @ mixed + random.standard_normal(inputs)
    weight = random.standard_normal((outputs, inputs + bias))
    if bias:
        data = np.concatenate([data, np.ones((len(data), 1))], 1)
    gram = torch.from_numpy(data.T @ data)
    return torch.from_numpy(weight), torch.from_numpy(data), damp(gram, fixed=int(bias))


def solved_by_numpy(weight, hessian, kept):
    """The weights of ``kept`` that are closest to ``weight`` in the square that H measures, and that square."""
    root = np.linalg.cholesky(hessian.numpy())  # H = root rootᵀ: |W root - V root_kept|² is what surgery minimises
    wanted = weight.numpy() @ root
    solution = np.linalg.lstsq(root[kept].T, wanted.T, rcond=None)[0].T
    return solution, float(np.square(wanted - solution @ root[kept]).sum())


def brute_force(weight, hessian, width, count):
    """The greedy order, and squared errors as a share of the whole."""
    left, gone, errors = list(range(count)), [], [0.0]
    total = weight.shape[1]
    while left:
        found = []
        for group in left:
            removed = {group * width + i for group in [*gone, group] for i in range(width)}
            kept = [place for place in range(total) if place not in removed]
            found.append(solved_by_numpy(weight, hessian, kept)[1])
        cheapest = int(np.argmin(found))
        gone.append(left.pop(cheapest))
        errors.append(found[cheapest])
    return gone, np.array(errors) / float(((weight @ hessian) * weight).sum())


def follow_by_numpy(weight, hessian, width, order):
    """Squared errors along an order, each solved directly."""
    removed: set[int] = set()
    errors = []
    for group in [None, *order]:
        removed |= set() if group is None else {group * width + i for i in range(width)}
        errors.append(solved_by_numpy(weight, hessian, [i for i in range(weight.shape[1]) if i not in removed])[1])
    return np.array(errors) / float(((weight @ hessian) * weight).sum())


@given(st.integers(1, 12), st.integers(1, 5), st.sampled_from([1, 2, 3, 4]), st.booleans(), st.integers(0, 2**32 - 1))
@settings(max_examples=40)
def test_groups_go_in_the_order_of_brute_force(count, outputs, width, bias, seed):
    count = max(1, count // width)
    weight, _, hessian = problem(count * width, outputs, seed=seed, bias=bias)
    order = order_removals(weight, hessian, width, count)
    gone, errors = brute_force(weight, hessian, width, count)

    assert order.groups.tolist() == gone
    np.testing.assert_allclose(order.errors.numpy(), errors, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("count", [63, 64, 65, 128, MANY])
def test_delayed_updates_change_nothing(count):
    weight, _, hessian = problem(count, 6, seed=count)
    singly = order_removals(weight, hessian, 1, count)

    # Each step is the cheapest of all that were left: what a direct solution of every candidate says.
    inverse = np.linalg.inv(hessian.numpy())
    alive, current = list(range(count)), weight.numpy().copy()
    for step, group in enumerate(singly.groups.tolist()):
        costs = np.square(current[:, alive]).sum(0) / np.diag(inverse)[alive]
        assert alive[int(np.argmin(costs))] == group
        alive.remove(group)
        if step % 16 == 0 or step + 1 == count:  # fresh, so that no rounding adds up
            kept = [*alive, count]
            small = np.linalg.inv(hessian.numpy()[np.ix_(kept, kept)])
            solution = np.linalg.solve(hessian.numpy()[np.ix_(kept, kept)], (hessian.numpy() @ weight.numpy().T)[kept])
            current, inverse = np.zeros_like(current), np.zeros_like(inverse)
            current[:, kept], inverse[np.ix_(kept, kept)] = solution.T, small
        else:
            current -= np.outer(current[:, group], inverse[group]) / inverse[group, group]
            inverse -= np.outer(inverse[group], inverse[group]) / inverse[group, group]
    np.testing.assert_allclose(
        singly.errors.numpy(), follow_by_numpy(weight, hessian, 1, singly.groups.tolist()), rtol=1e-6, atol=1e-10
    )


@pytest.mark.parametrize("bias", [True, False])
def test_both_ways_agree_on_single_inputs(bias):
    weight, _, hessian = problem(MANY, 5, seed=3, bias=bias)
    inverse = torch.linalg.inv(hessian)
    one, other = (
        surgery._remove_singly(weight.clone(), inverse.clone(), MANY),
        surgery._remove_groups(weight, inverse, 1, MANY),
    )
    assert torch.equal(one[0], other[0])
    torch.testing.assert_close(one[1], other[1], rtol=1e-7, atol=1e-9)


@given(st.integers(2, 30), st.integers(1, 6), st.booleans(), st.data())
def test_what_is_kept_takes_over_by_least_squares(inputs, outputs, bias, data):
    weight, seen, hessian = problem(inputs, outputs, seed=data.draw(st.integers(0, 2**32 - 1)), bias=bias)
    kept = sorted(data.draw(st.sets(st.integers(0, inputs - 1), min_size=1)))
    expected, _ = solved_by_numpy(weight, hessian, kept)
    np.testing.assert_allclose(solve_kept(weight, hessian, torch.tensor(kept)).numpy(), expected, rtol=1e-6, atol=1e-8)

    # With other targets than what the layer gave: rows of the damping stand below those of the data.
    target = torch.from_numpy(np.random.default_rng(inputs).standard_normal((len(seen), outputs)))
    damping = hessian - seen.T @ seen
    cross = target.T @ seen + weight @ damping
    rows = np.concatenate(
        [seen.numpy(), np.sqrt(damping.diagonal().clamp(min=0).numpy())[:, None] * np.eye(len(damping))]
    )
    wanted = np.concatenate([target.numpy(), rows[len(seen) :] @ weight.numpy().T])
    expected = np.linalg.lstsq(rows[:, kept], wanted, rcond=None)[0].T
    found = solve_kept(weight, hessian, torch.tensor(kept), cross).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@given(st.integers(2, 90), st.integers(1, 4), st.sampled_from([1, 2, 3]), st.integers(0, 2**32 - 1))
@settings(max_examples=30)
def test_errors_never_fall_and_end_at_what_the_bias_cannot_carry(count, outputs, width, seed):
    count = max(1, count // width)
    weight, _, hessian = problem(count * width, outputs, seed=seed, rows=count * width // 2 + 1)  # H by damping alone
    order = order_removals(weight, hessian, width, count)

    assert sorted(order.groups.tolist()) == list(range(count))  # all once, and the bias's constant is none of them
    assert order.errors[0] == 0
    assert bool((order.errors.diff() >= 0).all())
    assert order.errors[-1] <= 1 + 1e-9


@pytest.mark.parametrize("width", [1, 2])
def test_the_constant_takes_over_the_means(width):
    weight, data, hessian = problem(8, 3, seed=1)
    hessian = damp(data.T @ data, fixed=1)
    order = order_removals(weight, hessian, width, 8 // width)
    assert order.kept(0).tolist() == []

    bias = solve_kept(weight, hessian, torch.tensor([8]))
    torch.testing.assert_close(bias[:, 0], weight[:, 8] + weight[:, :8] @ data[:, :8].mean(0), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(("width", "count"), [(1, 90), (3, 6)])
def test_inputs_that_are_always_zero_go_first_and_cost_nothing(width, count):
    weight, data, _ = problem(width * count, 4, seed=5, mixing=0.1)
    dead = [1, count - 2]
    for group in dead:
        data[:, group * width : (group + 1) * width] = 0
    hessian = damp(data.T @ data, fixed=1)
    order = order_removals(weight, hessian, width, count)

    assert set(order.groups[:2].tolist()) == set(dead)
    # Their weight is damped as any other's is: all that they cost is the damping that the sum of squares includes.
    scale = float(hessian[width, width])
    whole = float(((weight @ hessian) * weight).sum())
    own = [float(weight[:, group * width : (group + 1) * width].square().sum()) for group in dead]
    assert order.errors[2] == pytest.approx(scale * sum(own) / whole, rel=1e-9)
    assert order.errors[2] < 3 * DAMPING


def test_a_layer_that_reads_nothing_but_zeros():
    weight = torch.ones(3, 5, dtype=torch.float64)
    gram = torch.zeros(5, 5, dtype=torch.float64)
    gram[4, 4] = 7
    order = order_removals(weight, damp(gram, fixed=1), 1, 4)
    assert bool(order.errors.isfinite().all())
    torch.testing.assert_close(solve_kept(weight, damp(gram, fixed=1), torch.tensor([4])), weight[:, 4:])


@pytest.mark.parametrize(("width", "count"), [(1, 80), (2, 7), (4, 5)])
def test_of_two_equal_inputs_one_is_free_and_its_twin_takes_over(width, count):
    weight, data, _ = problem(width * count, 4, seed=7, rows=2000, mixing=0.1)
    first, second = 2, count - 1
    twins = [slice(group * width, (group + 1) * width) for group in (first, second)]
    data[:, twins[1]] = data[:, twins[0]]
    hessian = damp(data.T @ data, fixed=1)
    order = order_removals(weight, hessian, width, count)

    gone = int(order.groups[0])
    assert gone in (first, second)
    assert order.errors[1] < DAMPING
    assert order.errors[2] > 3 * order.errors[1]
    assert set(order.groups[:2].tolist()) != {first, second}

    kept = torch.tensor(
        [place for place in range(width * count + 1) if place // width != gone or place == width * count]
    )
    solution = solve_kept(weight, hessian, kept)
    wanted, found = data @ weight.T, data[:, kept] @ solution.T
    assert float((found - wanted).square().sum() / wanted.square().sum()) < 1e-5


def test_a_twin_that_is_read_with_the_opposite_sign_takes_its_read_away():
    weight, data, _ = problem(6, 2, seed=11, rows=5000, mixing=0.1)
    data[:, 5], weight[:, 5] = data[:, 0], -weight[:, 0]
    hessian = damp(data.T @ data, fixed=1)
    order = order_removals(weight, hessian, 1, 6)
    assert set(order.groups[:2].tolist()) == {0, 5}  # together they give nothing
    assert order.errors[2] < 3 * DAMPING


def test_kept_groups_are_those_that_went_last():
    weight, _, hessian = problem(9, 2, seed=2)
    order = order_removals(weight, hessian, 1, 9)
    for count in range(10):
        assert order.kept(count).tolist() == sorted(order.groups.tolist()[9 - count :])


def test_float32_is_solved_in_float64():
    weight, _, hessian = problem(20, 3, seed=4)
    order = order_removals(weight.float(), hessian.float(), 1, 20)
    assert order.errors.dtype == torch.float64
    assert damp(hessian.float()).dtype == torch.float64


@pytest.mark.parametrize("width", [1, 2])
def test_nothing_is_changed_in_what_is_given(width):
    weight, data, hessian = problem(80, 3, seed=6)
    gram = data.T @ data
    copies = [tensor.clone() for tensor in (weight, hessian, gram)]
    order_removals(weight, hessian, width, 80 // width)
    solve_kept(weight, hessian, torch.arange(10))
    damp(gram, fixed=1)
    for tensor, copy in zip((weight, hessian, gram), copies, strict=True):
        assert torch.equal(tensor, copy)


@pytest.mark.parametrize(
    ("weight", "hessian", "width", "count"),
    [((3,), (3, 3), 1, 3), ((2, 3), (4, 4), 1, 3), ((2, 3), (3, 4), 1, 3), ((2, 3), (3, 3), 2, 2)],
)
def test_shapes_that_do_not_fit(weight, hessian, width, count):
    with pytest.raises(ValueError, match="inputs of a"):
        order_removals(torch.ones(weight), torch.ones(hessian), width, count)
