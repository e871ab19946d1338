"""What ``compactor bench`` prints at the end: the sentence, one table, the verdict, where the report is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from compactor.console import Console
from compactor.reporting.numbers import bytes_text, digits, points, rate, score_of
from compactor.reporting.page import HTML_NAME
from compactor.reporting.rows import (
    NO_DIFFERENCE,
    Report,
    Row,
    best_probe,
    is_server,
    part_of,
    primary_metric,
    quality_of,
    result_of,
)
from compactor.reporting.tables.results import ratio_cell
from compactor.reporting.words import absence, absence_in_full, summary_sentence


def print_summary(console: Console, report: Report, folder: str | Path | None = None) -> None:
    """Print the result of a measurement.

    Args:
        console: Where to.
        report: A checked ``report.json``.
        folder: Where the report was written; None where it was not.
    """
    console.line(summary_sentence(report))
    console.line()
    console.table(*_table(report))
    console.line()
    for row in report["variants"]:
        if row["status"] != "measured":
            console.line(f"{row['name']}: {absence_in_full(row)}")
    verdict = report["verdict"]
    console.line("VALID" if verdict["valid"] else "INVALID")
    for reason in verdict["reasons"]:
        console.line(f"  {reason}")
    if folder is not None:
        console.line(f"report: {Path(folder) / HTML_NAME}")


def _table(report: Report) -> tuple[list[str], list[list[str]]]:
    """A line for each variant, or for each of its cases; name, file and quality on the first of them."""
    cases = [] if is_server(report) else report["workload"]["cases"]
    compared = report["baseline"] is not None
    if is_server(report):
        columns: list[tuple[str, Callable[[Row, Any], str]]] = [
            (">highest rate, 1/s", lambda _, best: rate(best["qps"])),
            (">p50, ms", lambda _, best: digits(best["p50_ms"])),
            (">p99, ms", lambda _, best: "too few" if best["p99_ms"] is None else digits(best["p99_ms"])),
        ]
    else:
        columns = [
            (">median, ms", lambda _, result: digits(result["summary"]["median"])),
            (">p90, ms", lambda _, result: digits(result["summary"]["p90"])),
        ]
        if report["settings"]["scenario"] == "offline":
            columns.append((">examples/s", lambda _, result: rate(result["throughput"]["examples_per_s"])))
        if any(part_of(case) is not None for case in cases):
            columns.append((">tokens/s", lambda _, result: rate(result["throughput"]["tokens_per_s"])))
        if compared:
            columns.append((">against the baseline", lambda row, result: _ratio(report, row, result)))
    metric = primary_metric(report)
    quality = [f">{metric}", ">difference"][: 1 + compared] if metric else []
    rows = []
    for row in report["variants"]:
        size = row["counters"]["file_bytes"]
        start = [row["name"], "unknown" if size is None else bytes_text(size)]
        end = _quality(report, row)[: len(quality)]
        for case, found in _found(row, [case["id"] for case in cases]):
            cells = [found] * len(columns) if isinstance(found, str) else [write(row, found) for _, write in columns]
            rows.append([*start, *case, *cells, *end])
            start, end = ["", ""], [""] * len(quality)
    return ["variant", ">file", *["case"] * bool(cases), *(name for name, _ in columns), *quality], rows


def _found(row: Row, cases: Sequence[str]) -> Iterator[tuple[list[str], Any]]:
    """What was measured in each case, or in that of a server, which has no name; words where nothing was."""
    if not cases:
        words = absence(row, short=True) if row["server"] is None else "none tried"
        yield [], best_probe(row["server"]) or words
    elif row["status"] != "measured":
        yield ["all" if len(cases) > 1 else cases[0]], absence(row, short=True)
    else:
        yield from (([case], result_of(row, case) or absence(row, short=True)) for case in cases)


def _ratio(report: Report, row: Row, result: Mapping[str, Any]) -> str:
    cell = ratio_cell(report, row, result)
    return (", " if cell.text == NO_DIFFERENCE else " ").join(filter(None, (cell.text, cell.note)))


def _quality(report: Report, row: Row) -> list[str]:
    """A row's metric, and its difference from the baseline's."""
    found = quality_of(report, row)
    if found is None:
        return ["not measured" if row["status"] == "measured" else absence(row, short=True)] * 2
    difference = found["difference"]
    if difference is None:
        words = "baseline" if row["id"] == report["baseline"] else "not measured"
    else:
        words = "same answers" if difference["changed"] == 0 else f"{points(difference)} points"
    return [score_of(found), words]
