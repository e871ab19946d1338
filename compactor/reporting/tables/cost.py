"""What each variant needs and gives: size, memory, start, quality."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from compactor.reporting.numbers import bytes_text, count, digits, points, score
from compactor.reporting.tables.table import Cell, Table, Tone, name_cell, unknown
from compactor.reporting.words import Report, Row, absence, is_server, metric_name, metric_of


def cost_table(report: Report) -> Table:
    """What each variant needs and gives: file, memory, start, quality."""
    metrics = list(
        dict.fromkeys(name for row in report["variants"] if row["quality"] for name in row["quality"]["metrics"])
    )
    compared = any(metric["difference"] is not None for row in report["variants"] for metric in _metrics(row).values())
    with_changed = compared and any(
        metric["difference"]["changed"] is not None
        for row in report["variants"]
        for metric in _metrics(row).values()
        if metric["difference"] is not None
    )
    columns = ["variant", ">file", ">parameters"]
    for name in metrics:
        columns.append(f">{metric_name(name)}")
        columns += [">difference, points"] * compared
    columns += [">answers changed"] * with_changed
    columns += [">peak memory", ">load, ms"]
    columns += [">first answer, ms"] * (not is_server(report))

    def cells(row: Row) -> tuple[Cell, ...]:
        counters = row["counters"]
        size = counters["file_bytes"]
        found = [
            name_cell(report, row),
            unknown() if size is None else Cell(bytes_text(size)),
            unknown() if counters["parameters"] is None else Cell(count(counters["parameters"])),
        ]
        if row["status"] != "measured":
            return (*found, Cell(absence(row), "muted", absent=True))
        for name in metrics:
            metric = metric_of(row, name)
            found.append(
                Cell("not measured", "muted") if metric is None else Cell(score(metric["value"], metric["se"]))
            )
            if compared:
                found.append(_difference(report, row, metric))
        if with_changed:
            found.append(_changed(report, row))
        peak, before = counters["peak_rss_bytes"], counters["rss_before_bytes"]
        if peak is None:
            found.append(Cell("not measured", "muted"))
        else:
            found.append(
                Cell(bytes_text(peak), note=f"{bytes_text(before)} before loading" if before is not None else "")
            )
        found.append(
            Cell(digits(statistics.median(row["load_ms"]))) if row["load_ms"] else Cell("not measured", "muted")
        )
        if not is_server(report):
            first = row["results"][0]["first_ms"] if row["results"] else []
            found.append(Cell(digits(statistics.median(first))) if first else Cell("not measured", "muted"))
        return tuple(found)

    caption = "Load and first answer are medians over processes, each new. Peak memory is that of the whole process."
    if metrics:
        caption = "Quality ± standard error. " + caption
        if compared:
            caption = "Differences are paired, example by example, with the baseline. " + caption
    title = "Size, quality, memory" if metrics else "Size and memory"
    return Table("cost", title, tuple(columns), ((None, tuple(cells(row) for row in report["variants"])),), caption)


def _difference(report: Report, row: Row, metric: Mapping[str, Any] | None) -> Cell:
    if row["id"] == report["baseline"]:
        return Cell("baseline", "muted")
    if metric is None or metric["difference"] is None:
        return Cell("not measured", "muted")
    difference = metric["difference"]
    if difference["changed"] == 0:
        return Cell("none", note="the same answers")
    tone: Tone = {"better": "good", "worse": "bad"}.get(difference["verdict"], "")  # type: ignore[assignment]
    return Cell(points(difference), tone, note=difference["verdict"])


def _changed(report: Report, row: Row) -> Cell:
    if row["id"] == report["baseline"]:
        return Cell("baseline", "muted")
    for metric in _metrics(row).values():
        if metric["difference"] is not None and metric["difference"]["changed"] is not None:
            return Cell(f"{metric['difference']['changed']:,} of {metric['n']:,}")
    return Cell("not measured", "muted")


def _metrics(row: Row) -> Mapping[str, Any]:
    return row["quality"]["metrics"] if row["quality"] else {}
