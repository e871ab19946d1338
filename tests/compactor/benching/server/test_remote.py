"""The server scenario against endpoints on loopback, and reports with them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("aiohttp")

import compactor
from compactor.benching import bench as benching
from compactor.benching import preparing
from compactor.benching.report import report_problems
from compactor.benching.server.http_load import NO_ANSWER, NO_CONNECTION, Exchanges, v2_body
from compactor.benching.server.remote import Endpoint, describe_failures, is_saturated, judge_exchanges, name_statuses
from compactor.benching.server.serving import Load
from compactor.errors import UsageError
from compactor.reporting.page import render_html, render_markdown
from compactor.runtime.sampling import Clock
from tests.compactor.benching.server.endpoint import endpoint

CLOCK = Clock(warm_up_s=0.05, warm_up_calls=1, measure_s=0.1, min_samples=1, max_samples=10)
BODIES = [v2_body([text]) for text in ("one", "two", "a longer one")]
WORDS = ("fine", "dull", "a moving and funny film", "no")


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "dev.tsv"
    path.write_text("sentence\tlabel\n" + "".join(f"{text}\t0\n" for text in WORDS), encoding="utf-8")
    return path


def exchanges(latencies_s, statuses=200, due=None, given_up=False):
    latencies = np.asarray(latencies_s, float)
    due = np.arange(len(latencies)) * 0.1 if due is None else np.asarray(due, float)
    status = np.broadcast_to(np.asarray(statuses), len(due)).copy()
    return Exchanges(due, due + 0.002, due + latencies, status, np.zeros(len(due), int), given_up)


# One probe


def test_a_probe_is_of_what_was_answered():
    latencies = np.random.default_rng(0).permutation(np.linspace(0.01, 0.05, 200))
    found = judge_exchanges(exchanges(latencies), bound_ms=100)
    assert found["ok"] and not found["saturated"]
    assert (found["queries"], found["percentile"], found["p99_ms"]) == (200, 95.0, None)
    assert found["max_ms"] == 50
    assert found["achieved_qps"] == pytest.approx(199 / (19.9 + 0.05), rel=3e-3)
    assert found["sent_late_ms"] == pytest.approx(2)
    assert found["statuses"] == {
        "ok": 200, "rejected": 0, "timed_out": 0, "no_connection": 0, "no_answer": 0, "other": 0
    }  # fmt: skip


@pytest.mark.parametrize("status", [503, 504, 500, 422, NO_CONNECTION, NO_ANSWER])
def test_one_query_that_fails_fails_the_probe(status):
    statuses = np.full(200, 200)
    statuses[17] = status
    found = judge_exchanges(exchanges(np.full(200, 0.01), statuses), bound_ms=100)
    assert not found["ok"] and not found["saturated"]
    assert found["queries"] == 199
    assert found["unanswered"] == (status == NO_ANSWER)


def test_a_probe_that_breaks_the_bound_is_not_ok():
    assert not judge_exchanges(exchanges(np.full(200, 0.2)), bound_ms=100)["ok"]
    assert judge_exchanges(exchanges(np.full(200, 0.2)), bound_ms=None)["ok"]


def test_a_probe_without_an_answer_has_no_latency():
    found = judge_exchanges(exchanges(np.full(30, 0.01), 503), bound_ms=100)
    assert (found["p50_ms"], found["achieved_qps"], found["queries"], found["ok"]) == (None, 0.0, 0, False)


def test_statuses_have_names():
    found = exchanges(np.zeros(8), [200, 200, 503, 504, 500, 404, NO_CONNECTION, NO_ANSWER])
    assert name_statuses(found) == {
        "ok": 2, "rejected": 1, "timed_out": 1, "no_connection": 1, "no_answer": 1, "other": 2
    }  # fmt: skip


def test_the_note_names_the_lowest_rate_at_which_queries_failed():
    def probe(qps, **statuses):
        none = dict.fromkeys(("ok", "rejected", "timed_out", "no_connection", "no_answer", "other"), 0)
        return {"qps": qps, "statuses": {**none, **statuses}}

    probes = [probe(50.0, ok=90, rejected=9, other=1), probe(20.0, ok=10), probe(80.0, ok=1, rejected=99)]
    said = describe_failures(probes)
    assert said == "at 50 queries/s of 100: 9 rejected (503), 1 answered with another status than 200"
    assert describe_failures([probe(20.0, ok=10, no_answer=5)]) is None  # the probe was given up


STEADY = 0.05 + 0.01 * np.sin(np.arange(400))


@pytest.mark.parametrize(
    ("found", "saturated"),
    [
        (exchanges(STEADY), False),
        (exchanges(STEADY + np.linspace(0, 1, 400)), True),  # a queue that grows
        (exchanges(STEADY + np.linspace(0, 0.02, 400)), False),  # by less than it was
        (exchanges(STEADY + np.linspace(1, 0, 400)), False),  # one that shrinks
        (exchanges(STEADY, given_up=True), True),
        (exchanges(np.append(STEADY, 20.0)), True),  # half of the arrivals' time to work off
        (exchanges([0.1, 0.5, 1.0], due=[0.0, 5.0, 10.0]), False),  # too few to tell
        (exchanges([0.5]), False),
        (exchanges(STEADY, 503), False),
    ],
)
def test_saturation_as_a_client_sees_it(found, saturated):
    assert is_saturated(found) is saturated


# An endpoint that bears a load


def load(**changes):
    block = {"max_batch": 1, "qps": None, "duration_s": 0.4, "bound_ms": 500.0, "seed": 3}
    return Load(**{**block, **changes})


def test_the_capacity_is_what_it_serves_one_at_a_time():
    with endpoint(delay_s=0.02, in_turn=True) as server:
        under_load = Endpoint(server.url, BODIES, load(duration_s=2.0))
        under_load.warm_up(CLOCK)
        capacity, lone_ms = under_load.measure_capacity()
    assert 5 < capacity <= 51
    assert lone_ms >= 19
    sent = [document["inputs"][0]["data"][0] for _, document in server.requests]
    assert sorted(sent[:2]) == ["a longer one", "one"]  # the longest and the shortest first


def test_a_probe_sends_poisson_arrivals_and_waits_for_a_rest_before():
    with endpoint() as server:
        under_load = Endpoint(server.url, BODIES, load())
        under_load.measure_capacity()
        before = len(server.requests)
        probe = under_load.probe(100.0, seed=3)
    assert probe["queries"] == 80  # twice the duration, for the percentile
    assert len(server.requests) - before >= 80 + 3
    assert probe["statuses"]["ok"] == 80
    assert (probe["qps"], probe["seed"]) == (100.0, 3)


def test_the_next_probe_waits_until_what_the_last_one_left_is_done():
    """An endpoint that works on requests in turn, also on those whose client has gone."""
    with endpoint(delay_s=0.05, in_turn=True) as server:
        under_load = Endpoint(server.url, BODIES, load(bound_ms=200.0))
        under_load.measure_capacity()
        given_up = under_load.probe(60.0, seed=3)
        next_one = under_load.probe(8.0, seed=3)
    assert given_up["saturated"] and given_up["unanswered"] > 15  # which take most of a second
    assert not next_one["saturated"] and next_one["unanswered"] == 0


def test_an_endpoint_that_answers_nothing_has_no_capacity():
    with endpoint("503") as server, pytest.raises(UsageError, match=r"none of .* rejected"):
        Endpoint(server.url, BODIES, load()).measure_capacity()


# Whole reports


@pytest.fixture
def bench(data, monkeypatch):
    """Measures quickly."""
    monkeypatch.setattr(benching, "_PEAK", {"size": 64, "seconds": 0.01})

    def run(targets, **options):
        common = {"data": data, "scenario": "server", "quick": True, "duration_s": 0.5, "qps": 40.0, "bound_ms": 5000.0}
        return compactor.bench(targets, **{**common, **options})

    return run


def test_an_endpoint_alone(bench, tmp_path):
    with endpoint() as server:
        report = bench([server.url, server.url], out=tmp_path / "report")
    assert report_problems(report) == []
    (row,) = report["variants"]  # which was given twice
    assert (row["status"], row["engine"], row["provider"], row["file"]) == ("measured", "http", "remote", None)
    assert row["target"] == server.url
    assert row["load_ms"] == [] and row["counters"]["peak_rss_bytes"] is None
    assert row["server"]["best_qps"] == 40.0
    assert row["server"]["probes"][0]["statuses"]["ok"] == row["server"]["probes"][0]["queries"] == 40
    assert report["baseline"] is None and report["peak"] is None
    assert (report["workload"]["examples"], report["workload"]["file"]) == (4, "dev.tsv")
    assert any("hold all that its client waits for" in note for note in report["notes"])
    assert {document["inputs"][0]["data"][0] for _, document in server.requests} == set(WORDS)
    page = (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    assert "tokenizing, HTTP and the network too" in page and "peak memory" not in page
    assert json.loads((tmp_path / "report" / "report.json").read_text(encoding="utf-8"))["variants"]


def test_an_endpoint_that_refuses_is_measured_and_not_ok(bench):
    seen = []

    def behave(text):
        seen.append(text)
        return "503" if text == "dull" and len(seen) > 30 else "answer"

    with endpoint(behave) as server:
        report = bench([server.plain_url])
    server_block = report["variants"][0]["server"]
    assert server_block["best_qps"] is None
    assert server_block["probes"][0]["statuses"]["rejected"] > 0
    assert "rejected (503)" in server_block["note"]
    assert report_problems(report) == []
    assert "rejected" in render_markdown(report)
    assert render_html(report)


def test_the_bound_of_an_endpoint_alone_is_five_of_its_lone_requests(bench):
    with endpoint(delay_s=0.01) as server:
        report = bench([server.url], bound_ms=None)
    assert report["variants"][0]["server"]["bound_ms"] >= 45
    assert any("5 times the median of a request alone" in note for note in report["notes"])


def test_an_endpoint_that_ends_is_a_failed_row(bench, monkeypatch):
    with endpoint() as server:
        url = server.url
        ask = preparing.ask_endpoints

        def ask_and_stop(*arguments):
            found = ask(*arguments)
            server.stop()
            return found

        monkeypatch.setattr(preparing, "ask_endpoints", ask_and_stop)
        report = bench([url])
    row = report["variants"][0]
    assert row["status"] == "failed"
    assert "answered none of" in row["why"]["what"] and "no_connection" in row["why"]["what"]


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"scenario": "single", "qps": None, "bound_ms": None}, "not in the single scenario"),
        ({"data": None}, "there are none"),
        ({"metric": "accuracy"}, "quality is not measured over HTTP"),
        ({"baseline": "http://host/predict"}, "no baseline"),
    ],
)
def test_what_an_endpoint_is_not_for(bench, options, what):
    with pytest.raises(UsageError, match=what):
        bench(["http://127.0.0.1:9/predict"], **options)


def test_the_file_is_read_before_the_endpoint_is_asked(bench, tmp_path):
    with pytest.raises(UsageError, match="cannot be read"):
        bench(["http://127.0.0.1:9/predict"], data=Path(tmp_path, "missing.tsv"))
