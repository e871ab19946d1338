"""Which size each block should have, so that all together take no longer than they may and the answers change least.

What a size costs in quality is guessed as ``c e``: e the block's own squared error (``surgery.Order``), c how much the
model minds that, measured with the block changed alone. Sizes of all blocks under a budget of time are then a
multiple-choice knapsack, solved by dynamic programming over blocks. As blocks do not err independently, the guesses
are then varied at random, and what the variation chooses is tried on texts: the best that was seen is taken.

Reference: Kurtić, Frantar and Alistarh (2023), Section 3.2, "structured SPDY search"; Frantar and Alistarh, "SPDY:
Accurate Pruning with Speedup Guarantees", 2022, arXiv:2201.13096.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

_STEPS = 4000  # of the time that blocks may take: what the dynamic program tells apart
_SPREAD = 0.6  # of the logarithm of a guess, when it is varied

Floats = NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Choices:
    """The sizes that one block may have.

    Attributes:
        sizes: (K,) heads or neurons, ascending, the block's own size last.
        times_ms: (K,) what they take.
        errors: (K,) their squared errors, 0 for the block's own size.
    """

    sizes: tuple[int, ...]
    times_ms: Floats
    errors: Floats


def cheapest(choices: Sequence[Choices], weights: Sequence[float] | Floats, budget_ms: float) -> tuple[int, ...] | None:
    """For each block the place of a size in ``choices``: the least sum of ``weights * errors`` within the budget.

    Times are rounded up to a ``_STEPS``-th of the budget, so that the sum never passes it.

    Args:
        choices: Of each block.
        weights: Of each block's errors.
        budget_ms: What all of them may take together.

    Returns:
        None where even the smallest sizes take longer.
    """
    if budget_ms < 0:
        return None
    unit = max(budget_ms, 1e-9) / _STEPS
    best = np.zeros(_STEPS + 1)  # the least cost of the blocks so far within so many units
    taken: list[NDArray[np.int64]] = []
    for block, weight in zip(choices, weights, strict=True):
        units = np.ceil(block.times_ms / unit - 1e-6).astype(np.int64)
        table = np.full((len(units), _STEPS + 1), np.inf)
        for place, (needs, error) in enumerate(zip(units, block.errors, strict=True)):
            if needs <= _STEPS:
                table[place, needs:] = best[: _STEPS + 1 - needs] + weight * error
        taken.append(np.argmin(table, axis=0))
        best = table.min(axis=0)
    if not np.isfinite(best[_STEPS]):
        return None
    left, found = _STEPS, []
    for block, places in zip(reversed(choices), reversed(taken), strict=True):
        place = int(places[left])
        found.append(place)
        left -= int(np.ceil(block.times_ms[place] / unit - 1e-6))
    return tuple(reversed(found))


def search(
    choices: Sequence[Choices],
    weights: Sequence[float],
    budget_ms: float,
    loss: Callable[[tuple[int, ...]], float],
    *,
    trials: int,
    seed: int,
) -> tuple[tuple[int, ...], float] | None:
    """The best sizes that were tried, and their loss.

    Args:
        choices: Of each block.
        weights: What each block's errors are first guessed to matter.
        budget_ms: What all of them may take together.
        loss: Of the sizes with these places in ``choices``.
        trials: How many different choices are tried.
        seed: Of the variations.

    Returns:
        None where the budget cannot be met.
    """
    random = np.random.default_rng(seed)
    first = cheapest(choices, weights, budget_ms)
    if first is None:
        return None
    guess = np.asarray(weights, np.float64)
    best, least = first, loss(first)
    seen, tried, failed = {first}, 1, 0
    while tried < trials and failed < 20 * trials:
        share = random.random(len(guess)) < max(0.15, 1 - failed / trials) * 0.5
        varied: Floats = guess * np.exp(_SPREAD * random.standard_normal(len(guess)) * share)
        found = cheapest(choices, varied, budget_ms)
        if found is None or found in seen:
            failed += 1
            continue
        seen.add(found)
        tried += 1
        value = loss(found)
        if value < least or np.isnan(least):
            best, least, guess = found, value, varied
    return best, least
