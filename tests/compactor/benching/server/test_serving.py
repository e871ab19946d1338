"""The server scenario with an engine whose time is simulated: rates that are known must be found."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from compactor.benching.report import report_schema
from compactor.benching.server.serving import (
    TOLERANCE,
    combine,
    count_queries,
    find_rate,
    highest_percentile,
    judge,
    run,
)
from compactor.runtime.bucketing import Examples
from compactor.schema import schema_problems
from tests.compactor.benching.server.simulated import SimulatedEngine, play

PAD = 7
CLOCK = {"warm_up_s": 0.3, "warm_up_calls": 2, "measure_s": 1.0, "min_samples": 5, "max_samples": 100}


@pytest.fixture(scope="module")
def queries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve examples of 3 to 14 tokens; each token tells which example it is of."""
    examples = [{"input_ids": np.full(3 + i, 100 + i), "attention_mask": np.ones(3 + i, np.int64)} for i in range(12)]
    path = tmp_path_factory.mktemp("serving") / "queries.npz"
    Examples.join(examples, {"input_ids": PAD, "attention_mask": 0}).save(path)
    return path


@pytest.fixture
def spec(queries):
    def make(**serve):
        block = {"max_batch": 8, "qps": None, "duration_s": 60.0, "bound_ms": 200.0, "seed": 3}
        return {"mode": "serve", "clock": CLOCK, "serve": {"queries": str(queries), **block, **serve}}

    return make


def play_scenario(engine, spec):
    return run(engine, spec, timeline=engine.time)["serve"]


def fake_probe(holds):
    """A probe that is ok where ``holds(rate, seed)`` says so."""
    return lambda rate, seed: {"qps": rate, "seed": seed, "ok": holds(rate, seed), "percentile": 99.0}


@pytest.mark.parametrize("share", [0.05, 0.1, 0.333, 0.7, 0.95, 1.0, 1.4, 3.0])
@pytest.mark.parametrize("capacity", [0.37, 250.0, 12_345.6])
def test_the_search_finds_a_known_limit(share, capacity):
    limit = share * capacity
    best, probes = find_rate(fake_probe(lambda rate, seed: rate <= limit), capacity, seed=5)
    assert limit / TOLERANCE * 0.999 <= best <= limit
    assert probes[-1]["qps"] == best and probes[-1]["seed"] == 6
    assert {probe["seed"] for probe in probes[:-1]} == {5}
    assert len(probes) <= 14


def test_the_search_takes_few_probes_in_the_usual_case():
    _, probes = find_rate(fake_probe(lambda rate, seed: rate <= 80), 100, seed=0)
    assert len(probes) == 7


def test_the_search_gives_up_where_no_rate_is_ok():
    best, probes = find_rate(fake_probe(lambda rate, seed: False), 320, seed=0)
    assert best is None
    rates = [probe["qps"] for probe in probes]
    assert rates == sorted(rates, reverse=True) and 10 <= rates[-1] < 20


def test_a_rate_that_holds_with_one_seed_only_is_lowered_until_it_holds_with_the_other():
    best, probes = find_rate(fake_probe(lambda rate, seed: rate <= (80 if seed == 0 else 75)), 100, seed=0)
    assert 75 / TOLERANCE * 0.999 <= best <= 75
    assert {"qps": best, "seed": 1, "ok": True, "percentile": 99.0} in probes
    assert [probe["ok"] for probe in probes if probe["seed"] == 1].count(False) >= 1


def test_a_rate_that_is_never_confirmed_is_none():
    best, probes = find_rate(fake_probe(lambda rate, seed: seed == 0 and rate <= 80), 100, seed=0)
    assert best is None
    assert any(probe["ok"] for probe in probes)


@pytest.mark.parametrize(
    ("qps", "duration_s", "count"),
    [
        (200, 10, 2000),
        (100.01, 10, 1001),
        (70, 10, 1000),  # longer than asked for, to reach the 99th percentile
        (30, 10, 600),  # twice as long is the limit
        (0.1, 10, 20),
        (9000, 10, 20_000),
    ],
)
def test_a_probe_has_a_thousand_queries_where_twice_its_duration_allows(qps, duration_s, count):
    assert count_queries(qps, duration_s) == count


@pytest.mark.parametrize(
    ("samples", "percent"), [(5000, 99), (1000, 99), (999, 95), (200, 95), (199, 90), (100, 90), (99, 100), (1, 100)]
)
def test_ten_samples_lie_above_the_percentile_that_counts(samples, percent):
    assert highest_percentile(samples) == percent


def test_a_probe_says_what_happened():
    served = play(50, 2000, lambda batch: 0.01 + 0.001 * batch, max_batch=4)
    probe = judge(served, bound_ms=1000.0)
    latencies = np.sort(probe["latencies_ms"])
    assert probe["queries"] == len(latencies) == 2000 and probe["unanswered"] == 0
    assert probe["ok"] and not probe["saturated"] and probe["percentile"] == 99
    assert (probe["p50_ms"], probe["p90_ms"], probe["p95_ms"], probe["p99_ms"], probe["max_ms"]) == tuple(
        latencies[[1000, 1800, 1900, 1980, 1999]]
    )
    assert probe["mean_batch"] == pytest.approx(served.mean_batch, abs=1e-3)
    np.testing.assert_allclose(probe["latencies_ms"], 1e3 * served.latencies_s, atol=6e-4)


def test_the_bound_is_for_the_percentile_that_the_sample_supports():
    thousand = judge(play(50, 1000, lambda _: 0.01), 1000.0)
    p95, p99 = thousand["p95_ms"], thousand["p99_ms"]
    assert p95 < p99
    assert judge(play(50, 1000, lambda _: 0.01), p99)["ok"]
    assert not judge(play(50, 1000, lambda _: 0.01), (p95 + p99) / 2)["ok"]

    few = judge(play(50, 500, lambda _: 0.01), 1000.0)
    assert few["p99_ms"] is None and few["percentile"] == 95
    assert judge(play(50, 500, lambda _: 0.01), few["p95_ms"])["ok"]
    assert not judge(play(50, 500, lambda _: 0.01), few["p95_ms"] - 0.01)["ok"]

    assert judge(play(50, 50, lambda _: 0.01), 1000.0)["p95_ms"] is None


def test_a_queue_that_grows_is_not_ok_however_loose_the_bound():
    probe = judge(play(110, 3000, lambda _: 0.01), bound_ms=1e6)
    assert probe["saturated"] and not probe["ok"]


def test_a_probe_that_was_given_up_keeps_what_was_answered():
    probe = judge(play(200, 3000, lambda _: 0.01, give_up_s=0.4), bound_ms=100.0)
    assert not probe["ok"] and probe["saturated"]
    assert probe["unanswered"] == 3000 - probe["queries"] > 2000
    assert len(probe["latencies_ms"]) == probe["queries"]


def test_finds_the_rate_that_queueing_theory_gives(spec):
    """M/M/1: the 99th percentile is ln(100) / (service rate - arrival rate), so 1.15 s at 6 of 10 a second."""
    random = np.random.default_rng([2, 99])
    engine = SimulatedEngine(lambda _: random.exponential(0.1))
    found = play_scenario(engine, spec(max_batch=1, bound_ms=1e3 * math.log(100) / 4, duration_s=1200.0))
    assert found["best_qps"] == pytest.approx(6.0, rel=0.08)  # a little low: two draws have to hold
    assert found["percentile"] == 99


def test_finds_the_capacity_of_a_server_where_the_bound_is_loose(spec):
    engine = SimulatedEngine(lambda batch: 0.02 + 0.01 * batch)
    found = play_scenario(engine, spec(bound_ms=2000.0, duration_s=120.0))
    assert found["capacity_qps"] == pytest.approx(80.0)
    assert 0.9 * 80 < found["best_qps"] <= 80
    assert found["lone_ms"] == pytest.approx(30.0)
    assert found["note"] is None


def test_a_tighter_bound_gives_a_lower_rate_and_every_probe_near_it_decides_rightly(spec):
    rates = []
    for bound in (60.0, 120.0, 400.0):
        found = play_scenario(SimulatedEngine(lambda batch: 0.02 + 0.01 * batch), spec(bound_ms=bound))
        rates.append(found["best_qps"])
        for probe in found["probes"]:
            kept = probe[{99: "p99_ms", 95: "p95_ms", 90: "p90_ms", 100: "max_ms"}[probe["percentile"]]] <= bound
            assert probe["ok"] == (kept and not probe["saturated"])
    assert rates == sorted(rates) and len(set(rates)) == 3


def test_the_block_is_what_the_report_wants(spec):
    found = play_scenario(SimulatedEngine(lambda batch: 0.02 + 0.01 * batch), spec())
    schema = report_schema()
    for block in (found, combine([found, found])):
        again = json.loads(json.dumps(block, allow_nan=False))
        assert schema_problems(again, {**schema["$defs"]["server"], "$defs": schema["$defs"]}, "server") == []
        assert any(probe["qps"] == again["best_qps"] and probe["ok"] for probe in again["probes"])
    assert found["max_batch"] == 8 and found["bound_ms"] == 200.0
    assert {"wall_s", "cpu_s", "waited_s"} <= found["probes"][0]["usage"].keys()


def test_the_seed_decides_everything_but_the_time(spec):
    def rates(seed):
        found = play_scenario(SimulatedEngine(lambda batch: 0.02 + 0.01 * batch), spec(seed=seed, duration_s=15.0))
        return [(probe["qps"], probe["latencies_ms"]) for probe in found["probes"]]

    assert rates(3) == rates(3)
    assert rates(3) != rates(4)


def test_queries_are_padded_to_the_longest_of_their_batch_and_batches_keep_the_limit(spec):
    engine = SimulatedEngine(lambda batch: 0.02 + 0.01 * batch)
    play_scenario(engine, spec(max_batch=5, qps=60.0, duration_s=20.0))
    sizes, seen = set(), set()
    for feeds in engine.asked:
        ids, mask = feeds["input_ids"], feeds["attention_mask"]
        sizes.add(len(ids))
        lengths = mask.sum(axis=1)
        assert ids.shape == mask.shape == (len(ids), lengths.max())
        for row, length in zip(ids, lengths, strict=True):
            seen.add(int(row[0]))
            assert length == row[0] - 100 + 3
            assert (row[:length] == row[0]).all() and (row[length:] == PAD).all()
    assert max(sizes) == 5 and min(sizes) == 1
    assert seen == set(range(100, 112))


def test_a_rate_that_was_asked_for_is_the_only_one_tried(spec):
    engine = SimulatedEngine(lambda batch: 0.02 + 0.01 * batch)
    found = play_scenario(engine, spec(qps=20.0))
    assert [probe["qps"] for probe in found["probes"]] == [20.0]
    assert found["best_qps"] == 20.0 and "no other tried" in found["note"]

    found = play_scenario(SimulatedEngine(lambda batch: 0.02 + 0.01 * batch), spec(qps=200.0))
    assert found["best_qps"] is None
    probe = found["probes"][0]
    assert probe["saturated"] and not probe["ok"]
    assert probe["unanswered"] > 10_000 and 600 < probe["max_ms"] <= 4 * 200.0 + 100.0  # given up after four bounds


def test_a_bound_below_a_lone_query_is_not_searched(spec):
    found = play_scenario(SimulatedEngine(lambda batch: 0.02 + 0.01 * batch), spec(bound_ms=25.0))
    assert found["best_qps"] is None and len(found["probes"]) == 1
    assert "one query alone takes 30 ms, which is over the bound of 25 ms" in found["note"]


def test_a_bound_that_no_rate_keeps_is_said(spec):
    random = np.random.default_rng(0)  # one answer in 20 takes 50 times as long
    engine = SimulatedEngine(lambda batch: 0.01 if random.random() < 0.95 else 0.5)
    found = play_scenario(engine, spec(bound_ms=40.0))
    assert found["best_qps"] is None
    assert "no rate kept the bound, down to" in found["note"]


def test_says_which_percentile_where_there_are_too_few_queries(spec):
    found = play_scenario(SimulatedEngine(lambda batch: 0.02 + 0.01 * batch), spec(duration_s=3.0))
    assert found["percentile"] == 95
    assert "the bound is for the 95th percentile: a 99th percentile takes 1,000" in found["note"]
    assert all(probe["p99_ms"] is None for probe in found["probes"])


def test_warms_up_with_the_longest_and_the_shortest_example_before_anything_counts(spec):
    engine = SimulatedEngine(lambda _: 0.02)
    found = play_scenario(engine, spec(qps=10.0, duration_s=5.0))
    shapes = [feeds["input_ids"].shape for feeds in engine.asked]
    assert shapes[:4] == [(8, 14), (1, 14), (8, 3), (1, 3)]
    counted = sum(probe["queries"] for probe in found["probes"])
    assert shapes[4:15] == [(8, shape[1]) for shape in shapes[4:15]]  # until 0.3 s are over
    assert counted == 100 < sum(shape[0] for shape in shapes)


def test_with_the_real_clock(spec):
    engine = SimulatedEngine(lambda _: 0.0)
    block = run(engine, {**spec(qps=400.0, duration_s=0.1), "clock": {**CLOCK, "warm_up_s": 0.0}})["serve"]
    probe = block["probes"][0]
    assert probe["queries"] == 80 and probe["percentile"] == 100
    assert min(probe["latencies_ms"]) > 0
    assert probe["usage"]["wall_s"] >= probe["duration_s"]


def test_several_processes_give_the_median_of_rates_that_were_tried():
    def block(best, note=None):
        probes = [{"qps": best or 9.0, "ok": best is not None}]
        return {
            "bound_ms": 50.0, "percentile": 99.0, "max_batch": 8, "best_qps": best, "probes": probes, "note": note,
            "capacity_qps": 200.0, "lone_ms": 10.0,
        }  # fmt: skip

    assert combine([block(100.0)]) == {**block(100.0), "probes": [{"qps": 100.0, "ok": True, "process": 0}]}
    assert combine([block(100.0), block(120.0), block(90.0)])["best_qps"] == 100.0
    even = combine([block(120.0), block(100.0)])
    assert even["best_qps"] == 100.0 and [probe["process"] for probe in even["probes"]] == [0, 1]
    assert even["note"] == "the median of 2 processes: 120, 100 queries/s"
    assert combine([block(None, "a"), block(100.0), block(120.0, "a")])["best_qps"] == 100.0
    assert combine([block(100.0), block(None, "why")])["best_qps"] is None
    assert combine([block(None, "why"), block(None, "why")])["note"] == "why"
    with pytest.raises(ValueError, match="at least one process"):
        combine([])
