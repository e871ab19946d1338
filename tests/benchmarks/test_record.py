"""A run becomes a report, tables and files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import _record
from compactor.benching.report import report_problems
from tests.benchmarks.made_up import CASE, row, run_of


@pytest.fixture
def report(tmp_path: Path) -> dict[str, Any]:
    rows = [row(name, tmp_path) for name in ("base", "fast", "same", "absent", "wrong")]
    run = run_of(rows, {"base": 20.0, "fast": 5.0, "same": 20.0, "wrong": 1.0})
    run.measurements.variants["wrong"].error = {"what": "its answers are off", "where": None, "todo": None}
    return _record.make_report("A title", rows, run, baseline="base", command="python benchmarks/x.py")


def _variant(report: dict[str, Any], name: str) -> dict[str, Any]:
    return next(variant for variant in report["variants"] if variant["id"] == name)


def test_it_is_a_report_like_any_other(report: dict[str, Any]) -> None:
    assert report_problems(report) == []


def test_rows_that_were_not_asked_for_stay_out(tmp_path: Path) -> None:
    rows = [row(name, tmp_path) for name in ("base", "fast")]
    run = run_of(rows, {"base": 20.0, "fast": 5.0})
    made = _record.make_report("A title", rows[:1], run, baseline="base", command="x")
    assert [variant["id"] for variant in made["variants"]] == ["base"]


def test_cells_say_how_fast_and_how_sure(report: dict[str, Any]) -> None:
    assert _record.speed_cell(_variant(report, "base"), CASE.id) == "1.00×"
    fast = _record.speed_cell(_variant(report, "fast"), CASE.id)
    assert fast.startswith("4.00× [")
    assert "≈" not in fast
    assert _record.speed_cell(_variant(report, "same"), CASE.id).endswith(" ≈")
    assert _record.time_cell(_variant(report, "fast"), CASE.id).startswith("5.00 [")


def test_a_row_without_numbers_is_never_quoted(report: dict[str, Any]) -> None:
    for name, status in {"absent": "not run", "wrong": "failed"}.items():
        assert _record.speed_cell(_variant(report, name), CASE.id) == status
        assert _record.time_cell(_variant(report, name), CASE.id) == "-"
    assert _record.failures([report]) == ["wrong"]


def test_the_end_of_a_page_names_what_has_no_numbers_and_how_to_repeat_it(report: dict[str, Any]) -> None:
    text = "\n".join([*_record.remarks(report), *_record.provenance(report)])
    assert "absent: not run: it is absent." in text
    assert "wrong: failed: its answers are off." in text
    assert "4 rounds in ABBA order" in text
    assert "`python benchmarks/x.py`" in text
    assert ("VALID" in text) and (report["verdict"]["valid"] or "INVALID: " in text)


def test_a_gpu_is_named_where_it_was_measured() -> None:
    machine = {"cpu_model": "A CPU", "gpus": [{"name": "A GPU"}]}
    assert _record.device_name({"settings": {"providers": ["cuda"]}, "machine": machine}) == "A GPU"
    assert _record.device_name({"settings": {"providers": ["cpu"]}, "machine": machine}) == "A CPU"


def test_json_keeps_samples_on_one_line_and_reads_back() -> None:
    value = {"a": {"rounds": [[1.0, 2.0], [3.0]], "empty": {}, "none": []}, "b": "text"}
    text = _record.compact_json(value)
    assert "[1.0, 2.0]" in text.splitlines()[3]
    assert json.loads(text) == value


def test_a_table_refuses_a_row_of_another_width() -> None:
    assert _record.markdown_table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | ---: |\n| 1 | 2 |"
    with pytest.raises(ValueError, match="expected 2 cells, got 1"):
        _record.markdown_table(["a", "b"], [["1"]])


def test_a_result_is_written_with_its_table(tmp_path: Path) -> None:
    _record.write_result(tmp_path / "new" / "result.json", {"x": [1]}, "| a |")
    assert json.loads((tmp_path / "new" / "result.json").read_text()) == {"x": [1]}
    assert (tmp_path / "new" / "result.md").read_text() == "| a |\n"
