"""Two reports side by side: what became slower is found, what did not is not."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest

from compactor.benching import statistics
from compactor.benching.comparing import NOT_COMPARABLE, compare
from compactor.benching.statistics import NO_DIFFERENCE
from compactor.errors import UsageError
from tests.compactor.reports import make_report

ROWS = 6  # two variants beside the baseline, three cases


@pytest.fixture(autouse=True)
def fewer_resamples(monkeypatch):
    monkeypatch.setattr(statistics, "_MOST_RESAMPLES", 800)  # an eighth of the time


def report(seed=7, *, machine=1.0, speed=None, **kwargs):
    """A report of a machine that takes ``machine`` times as long for everything."""
    factors = {key: 1 / machine for key in ("model-torch", "compact-fp32", "compact-int8")}
    for key, factor in (speed or {}).items():
        factors[key] *= factor
    return make_report(seed=seed, speed=factors, samples=9, **kwargs)


def rows(comparison, verdict):
    return {(row["variant"], row["case"]) for row in comparison["rows"] if row["verdict"] == verdict}


def variant(found, name):
    return next(row for row in found["variants"] if row["id"] == name)


@pytest.mark.parametrize("seed", range(5))
def test_identical_graphs_are_not_slower(seed):
    found = compare(report(seed), report(100 + seed))
    assert not found["slower"]
    assert len(found["rows"]) == ROWS and rows(found, NO_DIFFERENCE) == {
        (row["variant"], row["case"]) for row in found["rows"]
    }


@pytest.mark.parametrize("seed", range(5))
def test_finds_a_graph_slowed_by_fifteen_percent_and_blames_no_other(seed):
    found = compare(report(seed), report(100 + seed, speed={"compact-int8": 1 / 1.15}))
    assert found["slower"]
    assert rows(found, "slower") == {("compact-int8", case) for case in ("1x32", "1x128", "8x128")}
    assert found["baseline"] == "model-torch"


def test_slower_machine_cancels_through_the_baseline_and_is_mentioned():
    found = compare(report(1), report(2, machine=1.3))
    assert not found["slower"]
    row = found["rows"][0]
    assert row["time"]["verdict"] == "slower" and row["decided_by"] == "speed-up"
    assert row["speedup"]["value"] == pytest.approx(row["speedup"]["after"] / row["speedup"]["before"])
    assert any(
        note.startswith("The machine itself is slower than before: model, PyTorch fp32") for note in found["notes"]
    )


def test_slower_graph_on_a_faster_machine_is_found():
    found = compare(report(1), report(2, machine=0.8, speed={"compact-fp32": 1 / 1.2}))
    assert {name for name, _ in rows(found, "slower")} == {"compact-fp32"}


def test_values_are_quotients_of_the_medians():
    row = compare(report(1), report(2, machine=1.3))["rows"][0]
    assert row["time"]["value"] == pytest.approx(row["before_ms"] / row["after_ms"])
    before = report(1)
    medians = [variant(before, name)["results"][0]["summary"]["median"] for name in ("model-torch", row["variant"])]
    assert row["speedup"]["before"] == pytest.approx(medians[0] / medians[1])


def test_result_is_json():
    found = compare(report(1), report(2))
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def change_baseline(second, how):
    base = variant(second, "model-torch")
    if how == "id":
        second["baseline"] = "compact-fp32"
    elif how == "file":
        base["sha256"] = "0" * 64
    elif how == "environment":
        base["environment"] = {"torch": "2.14.0"}
    elif how == "none":
        second["baseline"] = None


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("id", "different baselines, model, PyTorch fp32 and compact fp32"),
        ("file", "another file than before"),
        ("environment", "other versions or settings"),
        ("none", "no measured baseline in both"),
    ],
)
def test_without_a_common_baseline_times_decide_with_room_for_the_machine(how, reason):
    first = report(1)
    drifted, slowed = report(2, machine=1.04), report(2, speed={"compact-int8": 1 / 1.15})
    for second in (drifted, slowed):
        change_baseline(second, how)

    found = compare(first, drifted)

    assert not found["slower"] and found["baseline"] is None
    assert any(reason in note and "times alone" in note for note in found["notes"])
    assert {row["decided_by"] for row in found["rows"]} == {"time"}
    assert {name for name, _ in rows(compare(first, slowed), "slower")} == {"compact-int8"}


def test_baseline_alone_is_compared_by_its_time():
    only = {"variants": ("compact-fp32",), "baseline": "compact-fp32"}
    found = compare(report(1, **only), report(2, **only))
    assert not found["slower"] and [row["case"] for row in found["rows"]] == ["1x32", "1x128", "8x128"]
    assert compare(report(1, **only), report(2, speed={"compact-fp32": 1 / 1.2}, **only))["slower"]


def test_many_identical_rows_do_not_add_up_to_an_alarm():
    """At 95 % each, one of 40 rows would be called slower; the intervals hold for all rows at once."""
    generator = np.random.default_rng(1)
    alarms = 0
    for seed in range(8):
        cases = [f"1x{length}" for length in range(8, 88, 16)]
        first, second = (report(seed + shift, cases=cases, rounds=8) for shift in (0, 1000))
        for one in (first, second):
            for row in one["variants"]:
                for result in row["results"]:
                    slow = np.where(generator.random(8) < 0.3, 1.4, 1.0)
                    result["rounds_ms"] = [
                        [sample * factor for sample in samples[:3]]
                        for samples, factor in zip(result["rounds_ms"], slow, strict=True)
                    ]
        alarms += compare(first, second)["slower"]
    assert alarms == 0  # in 80 rows


def test_intervals_are_wider_where_more_rows_are_judged_together():
    first, second = report(1), report(2)
    many = compare(first, second)["rows"][0]
    for one in (first, second):
        one["workload"]["cases"] = one["workload"]["cases"][:1]
        one["variants"] = one["variants"][:2]
    [alone] = compare(first, second)["rows"]
    for key in ("time", "speedup"):
        assert many[key]["low"] < alone[key]["low"] and alone[key]["high"] < many[key]["high"]


def test_another_cpu_leaves_only_what_the_baseline_decides():
    first, second = report(1), report(2, machine=2.0)
    second["machine"]["cpu_model"] = "another"
    found = compare(first, second)
    assert not found["slower"] and {row["decided_by"] for row in found["rows"]} == {"speed-up"}
    assert any(note.startswith("Another cpu model: AMD EPYC") for note in found["notes"])

    first["baseline"] = second["baseline"] = None
    found = compare(first, second)
    assert not found["slower"] and {row["verdict"] for row in found["rows"]} == {NOT_COMPARABLE}


@pytest.mark.parametrize(("key", "value"), [("scenario", "offline"), ("threads", 4)])
def test_refuses_different_questions(key, value):
    second = report(2)
    second["settings"][key] = value
    with pytest.raises(UsageError, match=f"differ in their {key}"):
        compare(report(1), second)


def test_refuses_reports_with_nothing_in_common():
    with pytest.raises(UsageError, match="no variant and case in common") as caught:
        compare(report(1, cases=("1x32",)), report(2, cases=("8x128",)))
    assert "measure the same targets" in caught.value.todo


def test_refuses_other_inputs():
    second = report(2, data=True)
    with pytest.raises(UsageError, match="no variant and case in common"):
        compare(report(1), second)
    other = report(2)
    for case in other["workload"]["cases"][1:]:
        case["tokens"] -= 1
    found = compare(report(1), other)
    assert {row["case"] for row in found["rows"]} == {"1x32"}
    assert "The case 1x128 has other inputs in the second report." in found["notes"]


def test_says_what_differs_and_what_is_missing():
    first = report(1)
    second = report(2, failed={"compact-int8": "Killed"}, reasons=("it was busy",))
    second["machine"]["versions"]["onnxruntime"] = "1.32.0"
    second["settings"]["spinning"] = False
    notes = compare(first, second)["notes"]
    assert "compact int8 has no numbers in the second report: Killed." in notes
    assert "The second report is INVALID: it was busy." in notes
    assert "Another onnxruntime: 1.31.1, then 1.32.0." in notes
    assert "Another setting of spinning: True, then False." in notes
    second["variants"] = [row for row in second["variants"] if row["id"] != "compact-int8"]
    assert "compact int8 is not in the second report." in compare(first, second)["notes"]


def test_leaves_out_a_variant_that_runs_in_another_way():
    second = report(2)
    variant(second, "compact-int8")["provider"] = "cuda"
    found = compare(report(1), second)
    assert {row["variant"] for row in found["rows"]} == {"compact-fp32"}
    assert any("compact int8 has another provider: cpu, then cuda" in note for note in found["notes"])


def server_reports(factor):
    """Two reports of the server scenario; in the second, the best rate of int8 is multiplied."""
    first = report(1, scenario="server")
    second = copy.deepcopy(first)
    served = variant(second, "compact-int8")["server"]
    served["best_qps"] = None if factor is None else served["best_qps"] * factor
    return first, second


@pytest.mark.parametrize(
    ("factor", "verdict"),
    [(1.0, NO_DIFFERENCE), (0.9, NO_DIFFERENCE), (0.8, "slower"), (None, "slower"), (1.3, "faster")],
)
def test_server_compares_the_best_rates(factor, verdict):
    found = compare(*server_reports(factor))
    row = next(row for row in found["server"] if row["variant"] == "compact-int8")
    assert row["verdict"] == verdict and found["slower"] == (verdict == "slower")
    assert row["common"][0]["p50_ms"][0] == row["common"][0]["p50_ms"][1]
    assert row["value"] == (None if factor is None else pytest.approx(factor))
    assert found["rows"] == []


def test_server_rates_with_other_bounds_are_not_compared():
    first, second = server_reports(0.5)
    variant(second, "compact-int8")["server"]["bound_ms"] = 40.0
    found = compare(first, second)
    assert not found["slower"]
    assert any("20.0 ms with batches up to 8, then 40.0 ms" in note for note in found["notes"])
