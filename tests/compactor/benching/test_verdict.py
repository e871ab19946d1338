"""Each disturbance makes a report INVALID, with a reason that names it; a quiet machine's report is VALID."""

from __future__ import annotations

import pytest

from compactor.benching.statistics import summarise
from compactor.benching.verdict import judge, remarks
from tests.compactor.reports import make_report

WALL = 1.0


def quiet(**kwargs):
    """A report with usage as a virtual machine of two cores shows it when nothing else runs."""
    report = make_report(**kwargs)
    set_usage(report, wall_s=WALL, cpu_s=1.96 * WALL, waited_s=0.01, others_cpu_s=0.06, steal_s=0.01)
    return report


def results(report, variant=None):
    return [
        result for row in report["variants"] for result in row["results"] if variant is None or row["id"] == variant
    ]


def set_usage(report, variant=None, processes=None, **fields):
    """Set fields of the usage of the first ``processes`` processes, of one variant or all."""
    for result in results(report, variant):
        for usage in result["usage"][:processes]:
            usage.update(fields)


def only_reason(report):
    found = judge(report)
    assert not found["valid"]
    assert len(found["reasons"]) == 1, found["reasons"]
    return found["reasons"][0]


@pytest.mark.parametrize("scenario", ["single", "offline"])
def test_quiet_machine_is_valid(scenario):
    assert judge(quiet(scenario=scenario)) == {"valid": True, "reasons": []}


def test_busy_neighbour_is_named_with_the_rows_it_disturbed():
    report = quiet()
    set_usage(report, "compact-int8", others_cpu_s=1.02)
    reason = only_reason(report)
    assert reason.startswith(
        "other processes used more than 10% of the machine's 2 cores: compact int8, 1x32 (0.97 cores"
    )
    assert "in 8 of 8 processes" in reason and "compact fp32" not in reason


def test_reason_lists_three_rows_and_counts_the_rest():
    report = quiet()
    set_usage(report, others_cpu_s=1.02)
    reason = only_reason(report)
    assert reason.count("0.97 cores") == 3
    assert reason.endswith("; and 6 more")


@pytest.mark.parametrize(("processes", "valid"), [(2, True), (3, False)])
def test_a_quarter_of_the_processes_may_be_disturbed(processes, valid):
    report = quiet()
    set_usage(report, processes=processes, others_cpu_s=1.02)
    assert judge(report)["valid"] == valid


def test_others_on_a_large_machine_leave_room():
    report = quiet()
    set_usage(report, others_cpu_s=1.02)
    report["machine"]["logical_cores"] = 32
    assert judge(report)["valid"]


def test_clock_ticks_in_a_short_measurement_are_no_neighbour():
    report = quiet()
    set_usage(report, wall_s=0.1, cpu_s=0.196, others_cpu_s=0.06, steal_s=0.0)
    assert judge(report)["valid"]


def test_waiting_threads():
    report = quiet()
    set_usage(report, "model-torch", waited_s=0.3)
    assert "ready but had no core for more than 5% of the time: model, PyTorch fp32, 1x32 (15% in" in only_reason(
        report
    )


def test_stolen_time():
    report = quiet()
    set_usage(report, steal_s=0.2)
    assert "hypervisor gave more than 5%" in only_reason(report) and "(10% in 8 of 8" in only_reason(report)


def test_spinning_threads_that_did_not_get_their_cores():
    report = quiet()
    set_usage(report, "compact-int8", cpu_s=1.2, others_cpu_s=None)
    assert "less than 75% of their time: compact int8, 1x32 (60% in 8 of 8" in only_reason(report)


def test_spinning_threads_stopped_by_a_quota():
    report = quiet()
    set_usage(report, "compact-int8", cpu_s=1.2)
    assert judge(report)["valid"]  # nobody else used the machine: the threads had little to do
    report["machine"]["cpu_quota"] = 2.0
    assert "less than 75% of their time" in only_reason(report)


@pytest.mark.parametrize("variant", ["model-torch", "compact-openvino-fp32", "compact-cuda-fp16"])
def test_cpu_time_says_nothing_of_threads_that_rest(variant):
    report = quiet(variants=("compact-fp32", variant), baseline="compact-fp32", not_run={})
    set_usage(report, variant, cpu_s=0.3, others_cpu_s=None)
    assert judge(report)["valid"]


def test_cpu_time_says_nothing_without_spinning():
    report = quiet()
    report["settings"]["spinning"] = False
    set_usage(report, "compact-int8", cpu_s=0.3, others_cpu_s=None)
    assert judge(report)["valid"]


def test_unknown_is_no_reason():
    report = quiet()
    set_usage(report, waited_s=None, others_cpu_s=None, steal_s=None)
    report["machine"].update(load_before=None, logical_cores=None, affinity_cores=None, cpu_quota=None)
    report["settings"]["affinity"] = None
    assert judge(report)["valid"]


def test_load_counts_only_where_others_are_unknown():
    report = quiet()
    report["machine"]["load_before"] = 1.9  # this command itself, a minute ago
    assert judge(report)["valid"]
    set_usage(report, others_cpu_s=None)
    assert only_reason(report) == "the load average was 1.9 on 2 cores before the start"


def test_more_threads_than_cores():
    report = quiet()
    report["settings"]["affinity"] = [3]
    assert only_reason(report) == "2 threads shared 1 core, so that they took turns"
    report["settings"]["affinity"] = None
    report["machine"]["affinity_cores"] = 1
    assert only_reason(report) == "2 threads shared 1 core, so that they took turns"


def test_quota_below_the_threads():
    report = quiet()
    report["machine"]["cpu_quota"] = 1.5
    assert only_reason(report).startswith("2 threads under a quota of 1.5 cores")


@pytest.mark.parametrize(("rounds", "valid"), [(5, False), (6, True)])
def test_too_few_rounds(rounds, valid):
    report = quiet(rounds=rounds)
    assert judge(report)["valid"] == valid
    if not valid:
        assert only_reason(report).startswith("fewer than 6 processes: model, PyTorch fp32, 1x32 (5);")


def test_server_needs_two_processes_and_no_rounds():
    report = quiet(scenario="server")
    assert only_reason(report).startswith("fewer than 2 processes: model, PyTorch fp32 (1)")
    for variant in report["variants"]:
        if variant["server"] is not None:
            variant["server"]["probes"] = [
                {**probe, "process": process} for process in (0, 1) for probe in variant["server"]["probes"]
            ]
    assert judge(report)["valid"]


def test_interval_that_two_speeds_explain_is_valid_and_a_wider_one_is_not():
    report = quiet()
    ratio = results(report, "compact-int8")[0]["ratio"]
    ratio.update(value=1.0, low=0.72, high=1.4)
    assert judge(report)["valid"]
    ratio.update(low=0.6)
    assert only_reason(report).endswith("times its lower: compact int8, 1x32 (1.00 [0.60, 1.40])")


def test_interval_that_is_not_known_is_not_too_wide():
    report = quiet()
    results(report, "compact-int8")[0]["ratio"].update(low=None, high=None, verdict="too few processes to tell")
    assert judge(report)["valid"]


def set_spread(report, factor):
    """Make three of eight processes of every row slower."""
    for result in results(report):
        result["rounds_ms"] = [[10.0, 10.0]] * 5 + [[10.0 * factor] * 2] * 3
        result["summary"]["process_spread"] = summarise(result["rounds_ms"]).process_spread


def test_two_speeds_are_valid_with_intervals_and_without():
    for baseline in ("model-torch", None):
        report = quiet(baseline=baseline)
        set_spread(report, 1.4)
        assert judge(report)["valid"]


def test_uneven_processes_count_where_no_interval_shows_them():
    report = quiet(baseline=None)
    set_spread(report, 1.9)
    assert "the medians of the processes lie more than 60% apart" in only_reason(report)
    compared = quiet()
    set_spread(compared, 1.9)
    assert judge(compared)["valid"]  # the interval is the judge of that


def test_nothing_measured():
    report = quiet(variants=("model-torch",), failed={"model-torch": "it crashed"})
    assert only_reason(report) == "nothing was measured"


def test_failed_variants_and_uneven_processes_are_remarks():
    report = quiet(failed={"compact-int8": "Killed"})
    assert judge(report)["valid"]
    assert remarks(report) == ["failed, the others are not affected: compact int8 (Killed)"]
    set_spread(report, 1.4)
    assert "different speeds (width of the middle 80 %): model, PyTorch fp32, 1x32 (40%)" in remarks(report)[1]
