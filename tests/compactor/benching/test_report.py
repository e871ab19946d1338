"""A report follows its schema, names only what it holds, and a damaged or foreign one is refused in one line."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from compactor.benching.report import REPORT_NAME, dump_report, load_report, report_problems, report_schema
from compactor.errors import ModelDirectoryError
from compactor.manifest import manifest_schema
from tests.compactor.reports import make_report

Report = dict[str, Any]

KINDS = [
    pytest.param({}, id="single"),
    pytest.param({"scenario": "offline", "cases": ("batch 32", "batch 32, bucketed"), "data": True}, id="offline"),
    pytest.param({"scenario": "server"}, id="server"),
    pytest.param({"baseline": None, "quality": False, "profile": False, "layers": False, "peak": False}, id="bare"),
    pytest.param({"ledger": True}, id="ledger"),
    pytest.param({"failed": {"compact-int8": "it crashed"}, "interrupted": True, "reasons": ["load"]}, id="failed"),
]


def closed(schema: Any) -> Any:
    """``schema`` without room for fields that it does not name: what our own code writes has none."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {key: closed(value) for key, value in schema.items()}
    return inner | ({"additionalProperties": False} if isinstance(schema.get("required"), list) else {})


def test_the_schema_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(report_schema())


def test_a_ledger_is_the_manifests() -> None:
    assert report_schema()["$defs"]["ledger"] == manifest_schema()["$defs"]["ledger"]


@pytest.mark.parametrize("options", KINDS)
def test_a_report_survives_writing_and_reading(options: dict[str, Any], tmp_path: Path) -> None:
    report = make_report(**options)
    (tmp_path / REPORT_NAME).write_text(dump_report(report), encoding="utf-8")
    assert load_report(tmp_path) == load_report(tmp_path / REPORT_NAME) == report
    jsonschema.validate(report, closed(report_schema()))


def test_a_list_of_numbers_takes_one_line_and_texts_stay_as_they_are() -> None:
    report = make_report(variants=("compact-fp32",), baseline=None, rounds=2, samples=300)
    report["notes"] = ["[\n 1,\n 2\n]", "naïve"]
    text = dump_report(report)
    assert json.loads(text) == report
    assert "naïve" in text
    samples = report["variants"][0]["results"][0]["rounds_ms"]
    lines = [line.strip().removesuffix(",") for line in text.splitlines()]
    assert all(json.dumps(process) in lines for process in samples)


def test_fields_may_be_added_within_a_version() -> None:
    report = make_report()
    report["variants"][0]["results"][0]["summary"]["p999"] = 3.0
    assert report_problems(report) == []
    jsonschema.validate(report, report_schema())


@pytest.mark.parametrize("verdict", ["no significant difference", "too few processes to tell"])
def test_an_interval_may_be_missing(verdict: str) -> None:
    report = make_report()
    ratio = report["variants"][1]["results"][0]["ratio"]
    ratio.update(low=None, high=None, verdict=verdict)
    assert report_problems(report) == []
    jsonschema.validate(report, report_schema())


def _set(value: object, *keys: str | int) -> Callable[[Report], None]:
    def change(report: Any) -> None:
        for key in keys[:-1]:
            report = report[key]
        report[keys[-1]] = value

    return change


def _drop(*keys: str | int) -> Callable[[Report], None]:
    def change(report: Any) -> None:
        for key in keys[:-1]:
            report = report[key]
        del report[keys[-1]]

    return change


RESULT = ("variants", 1, "results", 0)
BROKEN = [
    pytest.param(_drop("machine"), "report: 'machine' is missing", id="no-machine"),
    pytest.param(_drop("verdict", "valid"), "report.verdict: 'valid' is missing", id="no-verdict"),
    pytest.param(_drop(*RESULT, "usage"), "report.variants[1].results[0]: 'usage' is missing", id="no-usage"),
    pytest.param(_set("tpu", "variants", 0, "provider"), "report.variants[0].provider: expected one of", id="provider"),
    pytest.param(_set("fine", "variants", 0, "status"), "report.variants[0].status: expected one of", id="status"),
    pytest.param(
        _set("quick", *RESULT, "ratio", "verdict"), "report.variants[1].results[0].ratio.verdict", id="ratio-verdict"
    ),
    pytest.param(
        _set(-1.0, *RESULT, "rounds_ms", 2, 3),
        "report.variants[1].results[0].rounds_ms[2][3]: expected at least 0",
        id="negative-time",
    ),
    pytest.param(
        _set("3", *RESULT, "rounds_ms", 2, 3),
        "report.variants[1].results[0].rounds_ms[2][3]: expected number",
        id="time-is-text",
    ),
    pytest.param(_set([], *RESULT, "rounds_ms"), "report.variants[1].results[0].rounds_ms: wrong number", id="no-time"),
    pytest.param(_set([], "variants"), "report.variants: wrong number of items", id="no-variants"),
    pytest.param(_set(0, "settings", "threads"), "report.settings.threads: expected at least 1", id="no-threads"),
    pytest.param(_set("BABA", "settings", "order"), "report.settings.order: expected 'ABBA'", id="order"),
    pytest.param(_set(1, "machine", "versions", "torch"), "report.machine.versions.torch: expected string", id="ints"),
]


@pytest.mark.parametrize(("change", "problem"), BROKEN)
def test_says_what_is_wrong_where_as_a_schema_library_does(change: Callable[[Report], None], problem: str) -> None:
    report = make_report()
    change(report)
    assert any(said.startswith(problem) for said in report_problems(report)), report_problems(report)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(report, report_schema())
    with pytest.raises(ValueError, match="invalid report"):
        dump_report(report)


def test_refuses_to_write_what_is_not_a_number() -> None:
    report = make_report()
    report["variants"][1]["results"][0]["rounds_ms"][0][0] = float("nan")
    with pytest.raises(ValueError, match=r"rounds_ms\[0\]\[0\]: expected a finite number"):
        dump_report(report)


def _twice(key: str) -> Callable[[Report], None]:
    def change(report: Report) -> None:
        entries = report[key] if key == "variants" else report["workload"]["cases"]
        entries.append(copy.deepcopy(entries[0]))

    return change


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        pytest.param(_set("nobody", "baseline"), "report.baseline: there is no variant 'nobody'", id="baseline"),
        pytest.param(_set("9x9", *RESULT, "case"), "report.variants[1].results: there is no case '9x9'", id="case"),
        pytest.param(_twice("variants"), "report.variants: two are called 'model-torch'", id="variant-twice"),
        pytest.param(_twice("cases"), "report.workload.cases: two are called '1x32'", id="case-twice"),
    ],
)
def test_names_lead_somewhere(change: Callable[[Report], None], problem: str) -> None:
    report = make_report()
    change(report)
    assert report_problems(report) == [problem]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param("{", "the report is not JSON", id="truncated"),
        pytest.param("\x00\x01", "the report is not JSON", id="binary"),
        pytest.param(b"\xff\xfe", "the report is not JSON", id="not-text"),
        pytest.param('{"kind": "compactor-bench", "schema": NaN}', "NaN is not a number", id="not-a-number"),
        pytest.param("[]", "this is not a report", id="a-list"),
        pytest.param('{"schema": 1, "source": {}}', "this is not a report", id="a-manifest"),
        pytest.param('{"schema": 1, "kind": "compactor-bench"}', "'created' is missing (and ", id="nearly-empty"),
        pytest.param('{"schema": 2, "kind": "compactor-bench"}', "has schema 2; this compactor reads", id="future"),
    ],
)
def test_refuses_a_file_that_is_no_report(content: str | bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ModelDirectoryError) as caught:
        load_report(file)
    assert message in caught.value.what
    assert "\n" not in caught.value.what
    assert caught.value.where == str(file)


def test_refuses_a_huge_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compactor.benching.report._MAX_BYTES", 10)
    (tmp_path / "a.json").write_text(" " * 11)
    with pytest.raises(ModelDirectoryError, match="too large"):
        load_report(tmp_path / "a.json")


@pytest.mark.parametrize(("name", "message"), [(".", "no 'report.json' in this folder"), ("no.json", "no such report")])
def test_says_where_there_is_none(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelDirectoryError, match=message):
        load_report(tmp_path / name)


def test_every_field_is_documented() -> None:
    text = (Path(__file__).parents[3] / "docs" / "report.md").read_text(encoding="utf-8")

    def fields(schema: object) -> set[str]:
        if isinstance(schema, list):
            return set().union(*map(fields, schema))
        if not isinstance(schema, dict):
            return set()
        return set(schema.get("properties", {})).union(*map(fields, schema.values()))

    schema = copy.deepcopy(report_schema())
    del schema["$defs"]["ledger"]  # docs/manifest.md describes it
    assert {name for name in fields(schema) if f"`{name}`" not in text} == set()
