"""Where the time goes, by operator and by layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compactor.reporting.numbers import count, digits, percent
from compactor.reporting.tables.table import Cell, Table
from compactor.reporting.words import Report, Row, part_of, profiles_of, result_of


def profile_tables(report: Report) -> list[Table]:
    """Where the time goes, by operator and by layer, a table for each profiled variant."""
    tables = []
    profiles = [(row, *pair) for row in report["variants"] for pair in profiles_of(report, row)]
    for index, (row, name, profile) in enumerate(profiles):
        rows: tuple[tuple[Cell, ...], ...] = tuple(
            (
                Cell(operator["name"]),
                Cell(operator["provider"]),
                Cell(f"{operator['count']:,}"),
                Cell(digits(operator["ms"])),
                Cell(percent(operator["share"])),
                Cell(count(operator["macs"])) if operator["macs"] else Cell("none", "muted"),
            )
            for operator in profile["operators"]
        )
        columns = ("operator", "runs on", ">nodes", ">ms a run", ">share", ">MACs")
        runs = f"{profile['runs']} run{'s' * (profile['runs'] != 1)}"
        caption = f"Case {profile['case']}, {runs}, by ONNX Runtime's profiler, which slows them a little."
        caption += _search_words(report, row, profile)
        tables.append(Table(f"operators-{index}", f"Operators: {name}", columns, ((None, rows),), caption))
        if profile["layers"]:
            rows = tuple(
                (Cell(layer["name"]), Cell(digits(layer["ms"])), Cell(percent(layer["share"])))
                for layer in profile["layers"]
            )
            tables.append(Table(f"time-{index}", f"Layers: {name}", ("layer", ">ms a run", ">share"), ((None, rows),)))
    return tables


def _search_words(report: Report, row: Row, profile: Mapping[str, Any]) -> str:
    """How much of the time of a generated text is spent in the graphs; nothing about other cases."""
    case = next((case for case in report["workload"]["cases"] if case["id"] == profile["case"]), None)
    result = result_of(row, profile["case"])
    part = None if case is None else part_of(case)
    if case is None or part is None or part["kind"] != "generate" or case["batches"] > 1 or result is None:
        return ""
    return (
        f" {digits(profile['total_ms'])} ms are in operators, and the median of the case is "
        f"{digits(result['summary']['median'])} ms: the rest is the search, outside of the graphs."
    )
