"""What the samples say, on made-up samples of which the truth is known; the seeds are fixed."""

from __future__ import annotations

import math

import numpy as np
import pytest

from compactor.benching import statistics
from compactor.benching.statistics import NO_DIFFERENCE, TOO_FEW, change, ratio, summarise

RUNS = 60
DIFFERENT = ("faster", "slower")


def processes(generator, rounds=8, *, ms=10.0, noise="normal", drift=None, samples=9):
    """Samples of several processes around ``ms``, each process off by its own factor."""
    log = 0.02 * generator.standard_normal(rounds)
    if noise == "heavy":
        log = 0.02 * generator.standard_t(2, rounds)
    elif noise == "modes":  # a whole process is 1.4 times slower, with a probability of 0.3
        log = log + math.log(1.4) * (generator.random(rounds) < 0.3)
    if drift is not None:
        log = log + drift
    return [list(ms * factor * np.exp(0.03 * np.abs(generator.standard_normal(samples)))) for factor in np.exp(log)]


@pytest.fixture
def fewer_resamples(monkeypatch):
    """For simulations: a quarter of the time."""
    monkeypatch.setattr(statistics, "_MOST_RESAMPLES", 500)


def verdicts(slowdown=1.0, *, rounds=8, noise="normal", drifting=False, paired=True, runs=RUNS):
    """How often each verdict came out for a variant that takes ``slowdown`` times as long."""
    generator = np.random.default_rng(11)
    counts: dict[str, int] = {}
    for seed in range(runs):
        drift = np.cumsum(0.05 * generator.standard_normal(rounds)) if drifting else None
        base = processes(generator, rounds, noise=noise, drift=drift)
        mine = processes(generator, rounds, ms=10 * slowdown, noise=noise, drift=drift)
        verdict = ratio(base, mine, paired=paired, seed=seed).verdict
        counts[verdict] = counts.get(verdict, 0) + 1
    return counts


def different(**kwargs):
    counts = verdicts(**kwargs)
    return sum(counts.get(word, 0) for word in DIFFERENT) / sum(counts.values())


def test_summary_prints_the_median_of_the_processes_medians_and_percentiles_of_all_samples():
    rounds = [[1.0, 2.0, 9.0], [4.0, 4.0, 4.0, 5.0], [3.0, 30.0, 3.0]]

    found = summarise(rounds)

    pooled = sorted(sample for samples in rounds for sample in samples)
    assert found.median == 3.0  # of 2, 4 and 3; that of all samples together is 4
    assert found.p50 == np.median(pooled) == 4.0
    assert (found.p10, found.p90, found.p95) == pytest.approx(tuple(np.percentile(pooled, (10, 90, 95))))
    assert found.mean == pytest.approx(np.mean(pooled))
    assert (found.samples, found.processes) == (10, 3)


def test_p99_needs_a_thousand_samples():
    assert summarise([[1.0] * 500, [1.0] * 499]).p99 is None
    assert summarise([[1.0] * 500, [1.0] * 490 + [7.0] * 11]).p99 == pytest.approx(7.0)


def test_process_spread_sees_three_slow_processes_of_ten_and_is_unknown_for_one():
    rounds = [[10.0]] * 7 + [[14.0]] * 3
    assert summarise(rounds).process_spread == pytest.approx(0.4)
    assert summarise([[10.0], [10.0]]).process_spread == 0.0
    assert summarise(rounds[:1]).process_spread is None


def test_spread_is_between_processes_not_within():
    assert summarise([[5.0, 10.0, 20.0]] * 4).process_spread == 0.0


@pytest.mark.parametrize("rounds", [[], [[]], [[1.0], []]])
def test_refuses_processes_without_samples(rounds):
    with pytest.raises(ValueError, match="at least one process"):
        summarise(rounds)


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("rounds", [3, 5, 8, 10])
def test_value_is_the_quotient_of_the_printed_medians_and_lies_within_its_interval(rounds, paired):
    generator = np.random.default_rng(3)
    base, mine = processes(generator, rounds, samples=6), processes(generator, rounds, ms=4.0, noise="modes")

    found = ratio(base, mine, paired=paired)

    assert found.value == summarise(base).median / summarise(mine).median
    assert found.low <= found.value <= found.high


def test_interval_of_steady_times_is_a_point_despite_rounding():
    for base in range(1, 12):
        for mine in range(1, 12):
            found = ratio([[float(base)]] * 8, [[float(mine)]] * 8)
            assert found.low <= base / mine == found.value <= found.high
            assert found.high - found.low < 1e-12


def test_same_seed_same_interval():
    generator = np.random.default_rng(3)
    base, mine = processes(generator), processes(generator, noise="modes")
    assert ratio(base, mine, seed=5) == ratio(base, mine, seed=5)


def test_samples_within_a_process_widen_the_interval_too():
    steady = [[10.0] * 5] * 8
    shaky = [[6.0, 8.0, 10.0, 12.0, 14.0]] * 8  # the same medians in all processes
    assert (ratio(steady, steady).low, ratio(steady, steady).high) == (1.0, 1.0)
    found = ratio(steady, shaky)
    assert found.low < 0.95 and found.high > 1.05


@pytest.mark.parametrize("count", [1, 2])
def test_fewer_than_three_processes_give_no_interval(count):
    generator = np.random.default_rng(0)
    found = ratio(processes(generator, 8)[:count], processes(generator, 8, ms=1.0)[:count])
    assert (found.low, found.high, found.verdict) == (None, None, TOO_FEW)
    assert found.value > 8


def test_three_processes_tell_a_large_difference():
    generator = np.random.default_rng(0)
    assert ratio(processes(generator, 3), processes(generator, 3, ms=5.0)).verdict == "faster"


def test_interrupted_run_with_one_process_more_still_compares():
    generator = np.random.default_rng(0)
    base, mine = processes(generator, 8), processes(generator, 7, ms=5.0)
    found = ratio(base, mine)
    assert found.verdict == "faster"
    assert found.value == summarise(base).median / summarise(mine).median


@pytest.mark.parametrize("noise", ["normal", "heavy", "modes"])
@pytest.mark.parametrize("paired", [True, False])
def test_identical_graphs_do_not_differ(noise, paired, fewer_resamples):
    assert different(noise=noise, paired=paired) <= 0.05  # 19 of 20; docs/measuring.md has the long runs


def test_identical_graphs_do_not_differ_on_a_drifting_machine(fewer_resamples):
    assert different(drifting=True) <= 0.05


@pytest.mark.parametrize("rounds", [3, 5])
def test_identical_graphs_do_not_differ_in_few_rounds(rounds, fewer_resamples):
    assert different(rounds=rounds, noise="modes") <= 0.05


def test_finds_a_slowdown_of_ten_percent(fewer_resamples):
    assert verdicts(1.1).get("slower", 0) >= 0.95 * RUNS
    assert verdicts(1.1, drifting=True).get("slower", 0) >= 0.95 * RUNS


def test_finds_a_slowdown_beyond_both_modes(fewer_resamples):
    assert verdicts(1.5, noise="modes").get("slower", 0) >= 0.95 * RUNS


def test_pairing_helps_on_a_drifting_machine(fewer_resamples):
    assert verdicts(1.1, drifting=True, paired=False, runs=40).get("slower", 0) < 30  # of 40


def test_no_significant_difference_is_where_the_interval_holds_one():
    generator = np.random.default_rng(2)
    found = ratio(processes(generator), processes(generator))
    assert found.low <= 1 <= found.high and found.verdict == NO_DIFFERENCE
    slower = ratio(processes(generator), processes(generator, ms=20.0))
    assert slower.high < 1 and slower.verdict == "slower"


def test_intervals_grow_with_the_number_of_comparisons():
    generator = np.random.default_rng(2)
    base, mine = processes(generator, 10), processes(generator, 10)
    one, many = (ratio(base, mine, comparisons=comparisons) for comparisons in (1, 10))
    assert many.low < one.low and one.high < many.high


def test_change_cancels_a_machine_that_became_slower():
    generator = np.random.default_rng(4)
    before = processes(generator), processes(generator, ms=5.0)
    slow = processes(generator, ms=13.0), processes(generator, ms=6.5)
    worse = processes(generator, ms=13.0), processes(generator, ms=6.5 * 1.15)

    assert change(before, slow).verdict == NO_DIFFERENCE
    found = change(before, worse)
    assert found.verdict == "slower"
    speedups = [summarise(base).median / summarise(mine).median for base, mine in (before, worse)]
    assert found.value == pytest.approx(speedups[1] / speedups[0])


def test_change_takes_only_rounds_that_both_took_part_in():
    generator = np.random.default_rng(4)
    before = processes(generator, 8), processes(generator, 8, ms=5.0)
    cut = processes(generator, 8), processes(generator, 7, ms=5.0)
    assert change(before, cut) == change(before, (cut[0][:7], cut[1]))
    assert change(before, (before[0][:2], before[1])).verdict == TOO_FEW


@pytest.mark.parametrize("count", [5, 6, 8, 11])
def test_signed_rank_counts_are_those_of_all_signs(count):
    signs = (np.arange(2**count)[:, None] >> np.arange(count)) & 1
    sums = signs @ np.arange(1, count + 1)
    np.testing.assert_array_equal(statistics._signed_rank_counts(count), np.bincount(sums))


@pytest.mark.parametrize(("left", "right"), [(3, 3), (4, 6), (8, 8)])
def test_rank_sum_test_rejects_as_scipy_does(left, right):
    stats = pytest.importorskip("scipy.stats")
    counts = statistics._rank_sum_counts(left, right)
    for larger in range(left * right // 2):
        x = np.arange(right, dtype=float)  # the left values are placed so that they exceed ``larger`` of the right ones
        places = np.clip(larger - right * np.arange(left), 0, right) - 0.5
        y = places + 1e-3 * np.arange(left)
        expected = stats.mannwhitneyu(y, x, method="exact", alternative="less").pvalue
        assert counts[: larger + 1].sum() / counts.sum() == pytest.approx(expected)


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("comparisons", [1, 3])
def test_interval_of_ranks_ends_where_scipy_begins_to_reject(paired, comparisons):
    stats = pytest.importorskip("scipy.stats")
    generator = np.random.default_rng(8)
    left, right = generator.standard_normal(9), generator.standard_normal(8)

    def p_value(shift):
        if paired:
            return stats.wilcoxon(left - shift, method="exact").pvalue
        return stats.mannwhitneyu(left - shift, right, method="exact").pvalue

    if paired:
        low, high = statistics._one_sample_interval(left, comparisons)
    else:
        low, high = statistics._two_sample_interval(left, right, comparisons)
    level = 1 / 32 / comparisons
    for inside, outside in ((low + 1e-9, low - 1e-9), (high - 1e-9, high + 1e-9)):
        assert p_value(outside) <= level < p_value(inside)


def test_one_round_against_seven_is_not_overruled_by_the_bootstrap():
    base = [[10.0, 10.0]] * 8
    mine = [[9.0 + 0.01 * i] * 2 for i in range(7)] + [[20.0, 20.0]]
    assert ratio(base, mine).verdict == NO_DIFFERENCE
    assert ratio(base, [*mine[:7], [9.1, 9.1]]).verdict == "faster"


@pytest.mark.parametrize("count", [4, 5])
def test_resampled_median_is_distributed_as_that_of_drawn_resamples(count):
    generator = np.random.default_rng(0)
    samples = [1.0, 2.0, 4.0, 8.0, 16.0][:count]
    chosen = np.zeros((40_000, 1), dtype=np.int64)

    found = statistics._resample_samples([samples], chosen, generator)[:, 0]

    drawn = np.median(generator.choice(samples, size=(40_000, count)), axis=1)
    for value in np.unique(drawn):
        assert np.mean(found == value) == pytest.approx(np.mean(drawn == value), abs=0.012)
    assert set(np.unique(found)) == set(np.unique(drawn))
