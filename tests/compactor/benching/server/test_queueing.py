"""The queue of the server scenario against queueing theory, in simulated time."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from compactor.benching.server.queueing import WallTime, percentile, poisson_arrivals, serve
from compactor.benching.server.serving import judge
from tests.compactor.benching.server.simulated import SimulatedTime, play

SEEDS = range(8)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_gaps_are_exponential(seed):
    gaps = np.diff(poisson_arrivals(50, 5000, seed))
    assert stats.kstest(gaps, "expon", args=(0, 1 / 50)).pvalue > 0.01


def test_arrivals_in_a_second_are_as_spread_as_poisson_says():
    arrivals = poisson_arrivals(20, 100_000, seed=3)
    counts = np.bincount(arrivals.astype(int))[:-1]
    assert counts.mean() == pytest.approx(20, rel=0.01)
    assert counts.var() == pytest.approx(20, rel=0.06)  # evenly spaced arrivals have hardly any


def test_the_mean_rate_is_the_one_that_was_asked_for():
    arrivals = poisson_arrivals(37, 1001, seed=5)
    assert arrivals[0] == 0
    assert 1000 / arrivals[-1] == pytest.approx(37)


def test_the_seed_decides_the_arrivals_and_the_rate_scales_them():
    arrivals = poisson_arrivals(10, 300, seed=7)
    np.testing.assert_array_equal(arrivals, poisson_arrivals(10, 300, seed=7))
    np.testing.assert_allclose(arrivals, 4 * poisson_arrivals(40, 300, seed=7))
    assert np.abs(arrivals - poisson_arrivals(10, 300, seed=8)).max() > 0.1


def test_one_query_is_due_at_once():
    np.testing.assert_array_equal(poisson_arrivals(3, 1, seed=0), [0.0])


@pytest.mark.parametrize(("qps", "count"), [(0, 10), (-1, 10), (float("nan"), 10), (1, 0)])
def test_refuses_a_rate_or_a_number_that_is_none(qps, count):
    with pytest.raises(ValueError, match="expected a rate above 0"):
        poisson_arrivals(qps, count, seed=0)


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_waits_as_long_as_theory_says_for_a_fixed_service_time(load):
    """M/D/1: the mean wait is load * service / (2 (1 - load)), by Pollaczek and Khinchine."""
    service = 0.02
    served = play(load / service, 200_000, lambda _: service)
    assert served.latencies_s.mean() - service == pytest.approx(load * service / (2 * (1 - load)), rel=0.06)


def test_is_as_slow_as_theory_says_for_a_random_service_time():
    """M/M/1: latency is exponential with the rate of service less that of arrival."""
    random = np.random.default_rng(1)
    served = play(6, 200_000, lambda _: random.exponential(0.1))
    assert served.latencies_s.mean() == pytest.approx(1 / (10 - 6), rel=0.06)
    assert percentile(served.latencies_s, 99) == pytest.approx(math.log(100) / (10 - 6), rel=0.08)


@pytest.mark.parametrize("offered", [0.5, 2.0, 5.0])
def test_batches_are_as_large_as_theory_says(offered):
    """Of unlimited batches that all take a second, the next one holds who came meanwhile, or the first to come."""
    served = play(offered, 50_000, lambda _: 1.0, max_batch=10**6)
    assert served.mean_batch == pytest.approx(offered + math.exp(-offered), rel=0.02)


@pytest.mark.parametrize("seed", SEEDS)
def test_serves_in_order_without_gaps_and_in_full_batches_while_a_queue_waits(seed):
    served = play(100, 3000, lambda batch: 0.02 + 0.004 * batch, seed=seed, max_batch=8)
    firsts = np.cumsum(served.sizes) - served.sizes
    lasts = np.cumsum(served.sizes)

    assert not served.given_up and lasts[-1] == 3000
    assert served.sizes.min() >= 1 and served.sizes.max() == 8
    assert (served.starts[1:] >= served.ends[:-1] - 1e-9).all()  # one batch at a time
    assert (served.starts >= served.arrivals[lasts - 1] - 1e-9).all()  # nobody is answered before they came
    earliest = np.maximum(served.arrivals[firsts], np.concatenate([[0.0], served.ends[:-1]]))
    np.testing.assert_allclose(served.starts, earliest, atol=1e-9)  # nor kept waiting by an idle server
    left = np.flatnonzero(lasts < 3000)
    waiting = served.arrivals[lasts[left]] <= served.starts[left] - 1e-9
    assert (served.sizes[left][waiting] == 8).all()


def test_the_queue_is_the_same_again():
    first, second = (play(40, 500, lambda batch: 0.01 * batch, seed=4, max_batch=4) for _ in range(2))
    np.testing.assert_array_equal(first.latencies_s, second.latencies_s)
    np.testing.assert_array_equal(first.sizes, second.sizes)


def test_latency_counts_from_when_a_query_was_due_also_during_a_stall():
    time = SimulatedTime()
    arrivals = np.arange(20.0)
    served = serve(arrivals, lambda first, last: time.work(10.0 if first == 3 else 0.125), time, max_batch=1)
    expected = [0.125] * 3 + [10.0 - 0.875 * i for i in range(11)]  # each waits for the stall, less its own delay
    np.testing.assert_allclose(served.latencies_s[: len(expected)], expected)


def test_achieved_rate_leaves_out_the_last_query():
    time = SimulatedTime()
    served = serve(np.arange(11.0), lambda first, last: time.work(0.0), time, max_batch=4)
    found = judge(served, None)
    assert (found["achieved_qps"], found["duration_s"]) == (1.0, 10.0)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("load", "saturated"), [(0.3, False), (0.8, False), (1.06, True), (1.5, True), (20, True)])
@pytest.mark.parametrize("max_batch", [1, 8])
def test_knows_whether_the_server_keeps_up(load, saturated, max_batch, seed):
    capacity = max_batch / (0.01 + 0.002 * max_batch)
    served = play(load * capacity, 2000 * max_batch, lambda batch: 0.01 + 0.002 * batch, seed=seed, max_batch=max_batch)
    assert served.saturated is saturated


def test_a_server_that_works_on_long_after_the_last_arrival_did_not_keep_up():
    assert play(10, 20, lambda _: 5.0, max_batch=8).saturated  # one batch started before it, too few to see a trend


def test_a_single_query_saturates_nothing():
    assert not play(1, 1, lambda _: 5.0).saturated


def test_a_long_queue_in_the_middle_is_no_saturation_when_it_empties():
    time = SimulatedTime()
    arrivals = np.arange(0, 100, 0.1)
    served = serve(arrivals, lambda first, last: time.work(20.0 if first == 300 else 0.05), time, max_batch=1)
    assert served.latencies_s.max() > 19
    assert not served.saturated


def test_gives_up_when_the_queue_is_hopeless():
    served = play(200, 10_000, lambda _: 0.01, give_up_s=0.5)
    answered = served.sizes.sum()
    assert served.given_up and served.saturated
    assert served.latencies_s.max() <= 0.5 + 0.01 + 1e-9
    # Twice as many come as go, so a wait of 0.5 s is reached after about 1 s, that is 100 answers.
    assert answered == pytest.approx(100, rel=0.3)


def test_does_not_give_up_a_queue_that_is_short_enough():
    served = play(50, 5000, lambda _: 0.01, give_up_s=0.5)
    assert not served.given_up and served.sizes.sum() == 5000


def test_a_percentile_is_a_latency_that_occurred():
    latencies = np.arange(1.0, 1001.0)
    assert percentile(latencies, 99) == 991.0  # 990 of 1,000 are below: interpolating would say 990.01
    assert percentile(latencies, 100) == 1000.0
    assert percentile(np.array([3.0]), 99) == 3.0


def test_the_wall_clock_never_returns_early():
    time = WallTime()
    for wait in (0.0005, 0.003, 0.0):
        target = time.now() + wait
        time.wait_until(target)
        assert time.now() >= target
