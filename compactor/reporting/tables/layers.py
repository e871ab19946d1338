"""What is left of each layer, and where the time goes, by operator and by layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compactor.reporting.numbers import count, digits, percent
from compactor.reporting.rows import Report, Row, part_of, profiles_of, result_of
from compactor.reporting.tables.table import Cell, Column, Table, known, make_table


def layer_table(report: Report) -> Table:
    """Heads and neurons of each layer, before and after."""
    columns: list[Column] = [
        ("layer", lambda layer: Cell(layer["name"])),
        (">heads", lambda layer: _before_after(layer["heads_before"], layer["heads_after"])),
        (">FFN neurons", lambda layer: _before_after(layer["neurons_before"], layer["neurons_after"])),
    ]
    layers = [(layer,) for layer in report["layers"] or ()]
    return make_table("layers", "Kept in each layer", columns, {None: layers})


def _before_after(before: int | None, after: int | None) -> Cell:
    if before is None and after is None:
        return Cell("none", "muted")  # such as the neurons of an attention
    if before is None or after is None:
        return Cell("unknown", "muted")
    text = f"{before:,} → {after:,}" if before != after else f"{before:,}"
    return Cell(text, note=percent(after / before) if before else "")


def profile_tables(report: Report) -> list[Table]:
    """Where the time goes, by operator and by layer, a table for each profiled variant."""
    time: list[Column] = [
        (">ms a run", lambda found: Cell(digits(found["ms"]))),
        (">share", lambda found: Cell(percent(found["share"]))),
    ]
    by_operator: list[Column] = [
        ("operator", lambda operator: Cell(operator["name"])),
        ("runs on", lambda operator: Cell(operator["provider"])),
        (">nodes", lambda operator: Cell(f"{operator['count']:,}")),
        *time,
        (">MACs", lambda operator: known(operator["macs"] or None, count, "none")),
    ]
    by_layer: list[Column] = [("layer", lambda layer: Cell(layer["name"])), *time]
    tables = []
    for index, (row, name, profile) in enumerate(profiles_of(report)):
        runs = f"{profile['runs']} run{'s' * (profile['runs'] != 1)}"
        caption = f"Case {profile['case']}, {runs}, by ONNX Runtime's profiler, which slows them a little."
        caption += _search_words(report, row, profile)
        operators = {None: [(operator,) for operator in profile["operators"]]}
        tables.append(make_table(f"operators-{index}", f"Operators: {name}", by_operator, operators, caption))
        if profile["layers"]:
            layers = {None: [(layer,) for layer in profile["layers"]]}
            tables.append(make_table(f"time-{index}", f"Layers: {name}", by_layer, layers))
    return tables


def _search_words(report: Report, row: Row, profile: Mapping[str, Any]) -> str:
    """How much of the time of a generated text is spent in the graphs; nothing about other cases."""
    case: Mapping[str, Any] = next((case for case in report["workload"]["cases"] if case["id"] == profile["case"]), {})
    part, result = part_of(case), result_of(row, profile["case"])
    if part is None or part["kind"] != "generate" or case["batches"] > 1 or result is None:
        return ""
    return (
        f" {digits(profile['total_ms'])} ms are in operators, and the median of the case is "
        f"{digits(result['summary']['median'])} ms: the rest is the search, outside of the graphs."
    )
