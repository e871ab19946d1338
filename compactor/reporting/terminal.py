"""What ``compactor bench`` prints at the end: the sentence, one table, the verdict, where the report is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

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
from compactor.reporting.tables.speed import ratio_cell
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
    metric = primary_metric(report)
    compared = report["baseline"] is not None
    if is_server(report):
        found = [">highest rate, 1/s", ">p50, ms", ">p99, ms"]
    else:
        found = ["case", ">median, ms", ">p90, ms"]
        found += [">examples/s"] * (report["settings"]["scenario"] == "offline")
        found += [">tokens/s"] * any(part_of(case) is not None for case in report["workload"]["cases"])
        found += [">against the baseline"] * compared
    quality = [f">{metric}", ">difference"][: 1 + compared] if metric else []
    rows = []
    for row in report["variants"]:
        size = row["counters"]["file_bytes"]
        start = [row["name"], "unknown" if size is None else bytes_text(size)]
        end = _quality(report, row)[: len(quality)]
        for cells in [_rates(row)] if is_server(report) else _times(report, row, found):
            rows.append([*start, *cells, *end])
            start, end = ["", ""], [""] * len(quality)
    return ["variant", ">file", *found, *quality], rows


def _times(report: Report, row: Row, columns: Sequence[str]) -> Iterator[list[str]]:
    """What stands in ``columns`` for each case of a row; in one line where it has no numbers."""
    cases = report["workload"]["cases"]
    missing = [absence(row, short=True)] * (len(columns) - 1)
    if row["status"] != "measured":
        yield ["all" if len(cases) > 1 else cases[0]["id"], *missing]
        return
    for case in cases:
        result = result_of(row, case["id"])
        if result is None:
            yield [case["id"], *missing]
            continue
        ratio = ratio_cell(report, row, result)
        separator = ", " if ratio.text == NO_DIFFERENCE else " "
        cells = {
            "case": case["id"],
            ">median, ms": digits(result["summary"]["median"]),
            ">p90, ms": digits(result["summary"]["p90"]),
            ">examples/s": rate(result["throughput"]["examples_per_s"]),
            ">tokens/s": rate(result["throughput"]["tokens_per_s"]),
            ">against the baseline": separator.join(filter(None, (ratio.text, ratio.note))),
        }
        yield [cells[column] for column in columns]


def _rates(row: Row) -> list[str]:
    """The highest rate of a row, and the latency there."""
    if row["server"] is None:
        return [absence(row, short=True)] * 3
    best = best_probe(row["server"])
    if best is None:
        return ["none tried"] * 3
    return [rate(best["qps"]), digits(best["p50_ms"]), "too few" if best["p99_ms"] is None else digits(best["p99_ms"])]


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
