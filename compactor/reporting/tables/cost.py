"""What each variant needs and gives: size, memory, start, quality."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from compactor.reporting.numbers import bytes_text, count, digits, points, score_of
from compactor.reporting.rows import Report, Row, is_server, metric_name, metric_of, metrics_of
from compactor.reporting.tables.table import TONES, Cell, Column, Table, known, make_table, name_cell, uncompared
from compactor.reporting.words import absence


def cost_table(report: Report) -> Table:
    """What each variant needs and gives: file, memory, start, quality."""
    differences = [metric["difference"] for row in report["variants"] for metric in _compared(row)]
    columns: list[Column] = [
        ("variant", lambda row: name_cell(report, row)),
        (">file", lambda row: known(row["counters"]["file_bytes"], bytes_text)),
        (">parameters", lambda row: known(row["counters"]["parameters"], count)),
    ]
    always = len(columns)  # also where nothing was measured
    for name in metrics_of(report):
        columns.append(
            (f">{metric_name(name)}", lambda row, name=name: known(metric_of(row, name), score_of, "not measured"))
        )
        if differences:
            columns.append((">difference, points", lambda row, name=name: _difference(report, row, name)))
    with_quality = len(columns) > always
    if any(difference["changed"] is not None for difference in differences):
        columns.append((">answers changed", lambda row: _changed(report, row)))
    columns.append((">peak memory", lambda row: _peak(row["counters"])))
    columns.append((">load, ms", lambda row: _median(row["load_ms"])))
    if not is_server(report):
        columns.append(
            (">first answer, ms", lambda row: _median(row["results"][0]["first_ms"] if row["results"] else []))
        )
    caption = "Load and first answer are medians over processes, each new. Peak memory is that of the whole process."
    if with_quality:
        caption = f"Quality ± standard error. {caption}"
    if differences:
        caption = f"Differences are paired, example by example, with the baseline. {caption}"
    title = "Size, quality, memory" if with_quality else "Size and memory"
    rows = [(row,) for row in report["variants"]]
    return make_table("cost", title, columns, {None: rows}, caption, absence=_why_absent, always=always)


def _why_absent(row: Row) -> str | None:
    return None if row["status"] == "measured" else absence(row)


def _compared(row: Row) -> list[Mapping[str, Any]]:
    """The metrics that were compared with the baseline's."""
    metrics = row["quality"]["metrics"].values() if row["quality"] else ()
    return [metric for metric in metrics if metric["difference"] is not None]


def _difference(report: Report, row: Row, name: str) -> Cell:
    difference = (metric_of(row, name) or {}).get("difference")
    if difference is None:
        return uncompared(report, row, "not measured")
    if difference["changed"] == 0:
        return Cell("none", note="the same answers")
    return Cell(points(difference), TONES.get(difference["verdict"], ""), note=difference["verdict"])


def _changed(report: Report, row: Row) -> Cell:
    for metric in _compared(row):
        if metric["difference"]["changed"] is not None:
            return Cell(f"{metric['difference']['changed']:,} of {metric['n']:,}")
    return uncompared(report, row, "not measured")


def _peak(counters: Mapping[str, Any]) -> Cell:
    peak, before = counters["peak_rss_bytes"], counters["rss_before_bytes"]
    if peak is None:
        return Cell("not measured", "muted")
    return Cell(bytes_text(peak), note="" if before is None else f"{bytes_text(before)} before loading")


def _median(values: Sequence[float]) -> Cell:
    return known(statistics.median(values) if values else None, digits, "not measured")
