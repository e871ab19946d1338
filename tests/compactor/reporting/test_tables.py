"""The tables: every measured number once, and words where there is none."""

from __future__ import annotations

import re

import pytest

from compactor.reporting.tables.layers import layer_table, profile_tables
from compactor.reporting.tables.provenance import machine_rows, reproduce_rows, variant_rows
from compactor.reporting.tables.results import cost_table, probe_tables, result_tables, server_table, speed_table
from tests.compactor.reports import make_report

REPORTS = {
    "single": make_report(failed={"compact-fp32": "boom"}),
    "offline": make_report(scenario="offline", data=True, cases=("batch 1", "batch 32", "batch 32, bucketed")),
    "server": make_report(scenario="server", failed={"compact-fp32": "boom"}),
    "bare": make_report(baseline=None, quality=False, profile=False, layers=False, peak=False, rounds=1),
    "nothing": make_report(variants=("compact-cuda-fp16",)),
}


def rows_of(table):
    return [row for _, rows in table.groups for row in rows]


def texts(row):
    return [cell.text for cell in row]


@pytest.mark.parametrize("name", REPORTS)
def test_rows_are_complete_and_no_cell_is_empty(name):
    report = REPORTS[name]
    for table in [*result_tables(report), *profile_tables(report), layer_table(report)]:
        for row in rows_of(table):
            assert all(cell.text for cell in row)
            assert len(row) == len(table.columns) or (row[-1].absent and len(row) < len(table.columns))


@pytest.mark.parametrize("name", REPORTS)
def test_what_was_not_measured_has_words_and_no_number(name):
    report = REPORTS[name]
    for table in result_tables(report):
        for row in rows_of(table):
            variant = next(found for found in report["variants"] if found["name"] == row[0].text)
            if variant["status"] != "measured":
                assert row[-1].absent
                assert row[-1].text in ("not run: no CUDA device", "failed: boom")
                known = row[1:-1] if table.id == "cost" else ()
                assert row[1:-1] == known, "only the file's own numbers stand beside"


def test_speed():
    table = speed_table(make_report(cases=("1x128",)))
    assert table.columns == (
        "variant", ">median, ms", ">p10 to p90", ">p95", ">against the baseline", ">examples/s", ">tokens/s", ">MAC/s",
        ">of the peak",
    )  # fmt: skip
    assert table.groups[0][0] == "1x128: one 128-token request"
    first, _, int8, missing = rows_of(table)
    assert texts(first)[4] == "baseline" and first[0].note == "baseline"
    assert re.fullmatch(r"9\.5\d× \[9\.\d\d, 9\.\d\d\]", int8[4].text)
    assert (int8[4].note, int8[4].tone) == ("faster", "good")
    assert texts(missing) == ["compact fp16, CUDA", "not run: no CUDA device"]


def test_no_significant_difference_stands_where_the_ratio_would():
    report = make_report(cases=("1x128",))
    report["variants"][2]["results"][0]["ratio"] = {
        "value": 1.01, "low": 0.98, "high": 1.04, "verdict": "no significant difference",
    }  # fmt: skip
    cell = rows_of(speed_table(report))[2][4]
    assert (cell.text, cell.note) == ("no significant difference", "1.01× [0.98, 1.04]")


def test_p99_only_from_a_thousand_samples():
    assert ">p99" not in speed_table(make_report(rounds=8, samples=124)).columns
    table = speed_table(make_report(rounds=8, samples=125))
    assert ">p99" in table.columns
    report = make_report(rounds=8, samples=125)
    report["variants"][0]["results"][0]["summary"]["p99"] = None
    assert "too few" in texts(rows_of(speed_table(report))[0])


def test_columns_without_any_number_are_not_there():
    columns = speed_table(REPORTS["bare"]).columns
    assert ">of the peak" not in columns and ">against the baseline" not in columns
    assert not [column for column in cost_table(REPORTS["bare"]).columns if "accuracy" in column or "diff" in column]


def test_a_metric_that_compares_with_the_baseline_itself_has_no_difference():
    report = make_report()
    for row in report["variants"]:
        if row["quality"]:
            row["quality"]["metrics"]["cosine"] = {"value": 0.99, "se": 0.001, "n": 872, "difference": None}
    columns = [column for column in cost_table(report).columns if column.startswith(">")]
    assert columns[columns.index(">accuracy") + 1] == ">difference, points"
    assert columns[columns.index(">cosine") + 1] != ">difference, points"


def test_a_case_that_an_interrupt_took():
    report = make_report(interrupted=True)
    del report["variants"][2]["results"][1:]
    assert "not run: interrupted before this case" in [
        cell.text for row in rows_of(speed_table(report)) for cell in row
    ]


def test_cost():
    table = cost_table(make_report())
    rows = dict(zip(["base", "fp32", "int8", "cuda"], rows_of(table), strict=True))
    assert texts(rows["int8"])[:7] == [
        "compact int8", "7.32 MB", "7.06 M", "84.63 ± 1.22 %", "\N{MINUS SIGN}0.12 ± 0.41", "13 of 872", "232 MB",
    ]  # fmt: skip
    assert rows["fp32"][4].text == "none" and rows["fp32"][4].note == "the same answers"
    assert texts(rows["cuda"]) == ["compact fp16, CUDA", "14.1 MB", "7.04 M", "not run: no CUDA device"]
    assert ">first answer, ms" not in cost_table(REPORTS["server"]).columns


def test_server():
    report = REPORTS["server"]
    rows = rows_of(server_table(report))
    assert server_table(report).columns[1] == ">highest rate with p99 under 20 ms, 1/s"
    assert texts(rows[0])[:2] == ["model, PyTorch fp32", "82.0"]
    slow = make_report(scenario="server", speed={"compact-int8": 0.001})
    assert texts(rows_of(server_table(slow))[2]) == ["compact int8", "no offered rate kept p99 under the bound"]
    last = rows_of(probe_tables(report)[0])[-1]
    assert last[-1].text == "no: saturated"


def test_layers_and_profiles():
    assert texts(rows_of(layer_table(make_report()))[0]) == ["layers.0", "12 → 4", "1,536 → 1,264"]
    assert not layer_table(make_report(layers=False))
    titles = [table.title for table in profile_tables(make_report())]
    assert titles == [
        "Operators: compact fp32",
        "Layers: compact fp32",
        "Operators: compact int8",
        "Layers: compact int8",
    ]


def test_the_machine_card_leaves_out_what_is_unknown():
    rows = dict(machine_rows(make_report()))
    assert rows["cores"] == "2 physical, 2 logical, 2 usable, no CPU quota"
    assert rows["memory"] == "16.6 GB, limited to 8.59 GB"
    assert rows["peak, int8"].startswith("371 GMAC/s (one 2048³ matrix product")
    report = make_report(peak=False)
    report["machine"] = {"os": "Darwin", "cpu_quota": None, "caches": None, "gpus": None}
    assert machine_rows(report) == [("system", "Darwin")]


def test_how_to_reproduce_and_what_exactly():
    rows = dict(reproduce_rows(make_report(data=True, quick=True)))
    assert "872 examples, 4 to 66 tokens (median 24, p90 41)" in rows["inputs"]
    assert "quick run" in rows["rounds"] and "pinned to CPUs 0, 1" in rows["threads"]
    exactly = dict(variant_rows(make_report()))
    assert "sha256" in exactly["compact int8"] and "onnxruntime 1.31.1" in exactly["compact int8"]
