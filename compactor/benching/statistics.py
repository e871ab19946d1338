"""What the samples say: summaries, and how much faster one variant is than another, with an interval.

The unit is the process. Samples of one process share its memory layout, its threads' places and the state of the
machine, so a thousand of them tell little more than ten: what has to be repeated is the process (Kalibera and Jones,
"Rigorous benchmarking in reasonable time", ISMM 2013). ``docs/measuring.md`` explains the method and how it was tested.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Rounds = Sequence[Sequence[float]]  # the samples of each process, in milliseconds
Verdict = Literal["faster", "slower", "no significant difference", "too few processes to tell"]

NO_DIFFERENCE: Verdict = "no significant difference"
TOO_FEW: Verdict = "too few processes to tell"

CONFIDENCE = 0.95
"""Of the intervals."""
FALSE_ALARMS = 1 / 32
"""Largest share of pairs of identical graphs that may come out as different: what six rounds can reach, 2 / 2**6."""
LEAST_PROCESSES = 3
"""Of each variant for an interval: two show no spread worth the name."""
P99_SAMPLES = 1000
"""Samples for a 99th percentile: ten then lie above it."""
_RESAMPLES_IN_TAILS = 100
"""Resamples outside an interval: what its ends are read off from."""
_MOST_RESAMPLES = 8_000
"""Where many intervals are to hold at once; that rare events are counted right is then left to the ranks."""

_Floats = NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Summary:
    """The samples of one variant and case; times in milliseconds.

    Percentiles and the mean are of all samples together, interpolated linearly (numpy's default); ``median`` is not.

    Attributes:
        median: The median of the processes' medians: what tables print and ratios divide.
        mean: Of all samples.
        p10: 10th percentile of all samples.
        p50: 50th.
        p90: 90th.
        p95: 95th.
        p99: 99th; None with fewer than ``P99_SAMPLES`` samples.
        samples: How many there are.
        processes: How many they come from.
        process_spread: How far the processes' medians lie apart: their 90th minus their 10th percentile, as a share of
            ``median``; None for one process. Not the median absolute deviation, which three slow processes of ten leave
            untouched.
    """

    median: float
    mean: float
    p10: float
    p50: float
    p90: float
    p95: float
    p99: float | None
    samples: int
    processes: int
    process_spread: float | None


@dataclasses.dataclass(frozen=True)
class Ratio:
    """How many times faster: above 1 is faster.

    Attributes:
        value: The quotient of the two medians.
        low: Lower end of the interval; None with too few processes.
        high: Upper end.
        verdict: ``no significant difference`` where the interval holds 1.
    """

    value: float
    low: float | None
    high: float | None
    verdict: Verdict


def summarise(rounds: Rounds) -> Summary:
    """Sum up the samples of several processes.

    Raises:
        ValueError: There is no process, or one without samples.
    """
    medians = _medians(rounds)
    median = float(np.median(medians))
    samples = np.concatenate([np.asarray(process, dtype=np.float64) for process in rounds])
    p10, p50, p90, p95, p99 = (float(found) for found in np.percentile(samples, (10, 50, 90, 95, 99)))
    low, high = np.percentile(medians, (10, 90))
    return Summary(
        median=median,
        mean=float(samples.mean()),
        p10=p10,
        p50=p50,
        p90=p90,
        p95=p95,
        p99=p99 if len(samples) >= P99_SAMPLES else None,
        samples=len(samples),
        processes=len(medians),
        process_spread=float(high - low) / median if len(medians) > 1 else None,
    )


def ratio(baseline: Rounds, variant: Rounds, *, paired: bool = True, seed: int = 0, comparisons: int = 1) -> Ratio:
    """How many times faster ``variant`` is than ``baseline``.

    The interval is the wider of two at either end: a bootstrap of the quotient over processes and samples, and what a
    rank test of the processes does not reject. The first belongs to the number that is printed; the second bounds how
    often identical graphs come out as different, whatever the shape of the noise.

    Args:
        baseline: Samples of each of its processes.
        variant: The same.
        paired: The two were measured in the same rounds, in order. Rounds then are resampled together, so that a drift
            of the machine cancels. Of no effect where one has more processes than the other.
        seed: Of the bootstrap.
        comparisons: How many ratios are judged together; the intervals grow so that all hold at once (Bonferroni).
    """
    base, mine = _medians(baseline), _medians(variant)
    value = float(np.median(base) / np.median(mine))
    if min(len(base), len(mine)) < LEAST_PROCESSES:
        return Ratio(value, None, None, TOO_FEW)
    generator = np.random.default_rng(seed)
    if paired and len(base) == len(mine):
        first, second = _resample_medians([baseline, variant], generator, comparisons)
        exact = _one_sample_interval(np.log(base / mine), comparisons)
    else:
        first, second = (_resample_medians([one], generator, comparisons)[0] for one in (baseline, variant))
        exact = _two_sample_interval(np.log(base), np.log(mine), comparisons)
    return _ratio(value, first - second, exact, comparisons)


def change(
    before: tuple[Rounds, Rounds], after: tuple[Rounds, Rounds], *, seed: int = 0, comparisons: int = 1
) -> Ratio:
    """How the speed-up over the baseline changed from one run to another: above 1, the variant became faster.

    Both runs measured the baseline, which did not change: whatever the machine did between the runs cancels.

    Args:
        before: Baseline and variant, measured in the same rounds.
        after: The same in the other run.
        seed: Of the bootstrap.
        comparisons: See ``ratio``.
    """
    before, after = _complete(before), _complete(after)
    base_before, mine_before, base_after, mine_after = (_medians(rounds) for rounds in (*before, *after))
    value = float(np.median(base_after) / np.median(mine_after) / (np.median(base_before) / np.median(mine_before)))
    if min(len(base_before), len(base_after)) < LEAST_PROCESSES:
        return Ratio(value, None, None, TOO_FEW)
    generator = np.random.default_rng(seed)
    first, second = (np.subtract(*_resample_medians(run, generator, comparisons)) for run in (before, after))
    exact = _two_sample_interval(np.log(base_after / mine_after), np.log(base_before / mine_before), comparisons)
    return _ratio(value, second - first, exact, comparisons)


def verdict_of(low: float | None, high: float | None) -> Verdict:
    """What an interval of a ratio says."""
    if low is None or high is None:
        return TOO_FEW
    return "faster" if low > 1 else "slower" if high < 1 else NO_DIFFERENCE


def _ratio(value: float, resampled: _Floats, exact: tuple[float, float], comparisons: int) -> Ratio:
    """The ratio with the smallest interval that holds the value, what a test does not reject, and the bootstrap's.

    ``resampled`` and ``exact`` are of its logarithm.
    """
    tail = (1 - CONFIDENCE) / comparisons / 2
    low, high = np.quantile(resampled, (tail, 1 - tail))
    low = min(value, math.exp(low), math.exp(exact[0]))
    high = max(value, math.exp(high), math.exp(exact[1]))
    return Ratio(value, low, high, verdict_of(low, high))


def _complete(run: tuple[Rounds, Rounds]) -> tuple[Rounds, Rounds]:
    """The rounds that both took part in: an interrupt may leave one of them a round ahead."""
    count = min(map(len, run))
    return run[0][:count], run[1][:count]


def _medians(rounds: Rounds) -> _Floats:
    """Each process's median, (processes,)."""
    if not rounds or not all(len(samples) for samples in rounds):
        raise ValueError("expected samples of at least one process, got a process without samples or no process")
    return np.array([np.median(np.asarray(samples, dtype=np.float64)) for samples in rounds])


# -- the bootstrap: processes, then the samples of each --


def _resample_medians(variants: Sequence[Rounds], generator: np.random.Generator, comparisons: int) -> list[_Floats]:
    """For each variant logarithms of the processes' median, (resamples,), from the same rounds for all."""
    resamples = min(_MOST_RESAMPLES, round(_RESAMPLES_IN_TAILS * comparisons / (1 - CONFIDENCE)))
    processes = len(variants[0])
    chosen = generator.integers(processes, size=(resamples, processes))
    return [np.log(np.median(_resample_samples(rounds, chosen, generator), axis=1)) for rounds in variants]


def _resample_samples(rounds: Rounds, chosen: NDArray[np.int64], generator: np.random.Generator) -> _Floats:
    """The median of a resample of the samples of each chosen process, (resamples, processes).

    No resample is drawn: the k-th smallest of n values that are drawn from a sorted list at random lies at the k-th
    smallest of n uniform positions in it, and that position has a Beta(k, n + 1 - k) distribution. For an even n the
    second middle value is the least of the remaining n - k, which are uniform above the first.
    """
    ordered = [np.sort(np.asarray(samples, dtype=np.float64)) for samples in rounds]
    starts = np.cumsum([0, *(len(samples) for samples in ordered[:-1])])[chosen]
    values = np.concatenate(ordered)
    counts = np.array([len(samples) for samples in ordered])[chosen]
    middle = (counts + 1) // 2
    position = generator.beta(middle, counts + 1 - middle)
    lower = values[starts + (position * counts).astype(np.int64)]
    above = np.where(counts % 2 == 0, counts - middle, 1)
    position = position + (1 - position) * generator.beta(1, above)
    upper = values[starts + np.minimum((position * counts).astype(np.int64), counts - 1)]
    medians: _Floats = np.where(counts % 2 == 0, (lower + upper) / 2, lower)
    return medians


# -- what a test of the processes does not reject --


def _one_sample_interval(differences: _Floats, comparisons: int) -> tuple[float, float]:
    """Shifts that Wilcoxon's signed-rank test does not reject, from the means of every two differences.

    Within a round identical graphs may swap places, so their differences are symmetric and the test is exact. With too
    few rounds for it to reject anything: Student's t, which takes the differences for normal.
    """
    count = len(differences)
    cut = _largest_rejected(_signed_rank_counts(count), FALSE_ALARMS / comparisons)
    if cut is None:
        error = float(differences.std(ddof=1)) / math.sqrt(count)
        return _t_interval(float(differences.mean()), error, count - 1, comparisons)
    first, second = np.triu_indices(count)
    return _cut_ends((differences[first] + differences[second]) / 2, cut)


def _two_sample_interval(left: _Floats, right: _Floats, comparisons: int) -> tuple[float, float]:
    """Shifts of ``left`` against ``right`` that the rank-sum test of Wilcoxon, Mann and Whitney does not reject.

    It is exact where the processes of both come from the same distribution. With too few for it: Student's t with
    Welch's standard error and the fewest degrees of freedom that this may have.
    """
    cut = _largest_rejected(_rank_sum_counts(len(left), len(right)), FALSE_ALARMS / comparisons)
    if cut is None:
        error = math.sqrt(sum(float(side.var(ddof=1)) / len(side) for side in (left, right)))
        return _t_interval(float(left.mean() - right.mean()), error, min(len(left), len(right)) - 1, comparisons)
    return _cut_ends((left[:, None] - right[None, :]).ravel(), cut)


def _t_interval(mean: float, error: float, freedom: int, comparisons: int) -> tuple[float, float]:
    from scipy.special import stdtrit

    reach = error * float(stdtrit(freedom, 1 - FALSE_ALARMS / comparisons / 2))
    return mean - reach, mean + reach


def _cut_ends(shifts: _Floats, cut: int) -> tuple[float, float]:
    ordered = np.sort(shifts)
    return float(ordered[cut]), float(ordered[-1 - cut])


def _largest_rejected(counts: _Floats, level: float) -> int | None:
    """The largest value of a symmetric statistic that a two-sided test rejects; None where it rejects none.

    Args:
        counts: How many of the equally likely outcomes give 0, 1, 2 and so on.
        level: Of the test.
    """
    rejected = np.flatnonzero(2 * np.cumsum(counts) <= level * counts.sum() * (1 + 1e-9))
    return int(rejected[-1]) if len(rejected) else None


def _signed_rank_counts(count: int) -> _Floats:
    """How many of the 2**count choices of signs give the ranks 1 … count a positive sum of 0, 1, 2 and so on."""
    counts = np.ones(1)
    for rank in range(1, count + 1):
        counts = np.pad(counts, (0, rank)) + np.pad(counts, (rank, 0))
    return counts


def _rank_sum_counts(left: int, right: int) -> _Floats:
    """How many orders of ``left`` and ``right`` values have 0, 1, 2 and so on pairs in which the left one is larger."""
    least = left * (left + 1) // 2  # the left ones hold the lowest ranks
    counts = np.zeros((left + 1, least + left * right + 1))  # of the choices of so many ranks, by their sum
    counts[0, 0] = 1
    for rank in range(1, left + right + 1):
        for chosen in range(min(left, rank), 0, -1):
            counts[chosen, rank:] += counts[chosen - 1, :-rank]
    return counts[left, least:]
