"""What ``compactor bench`` prints at the end: the sentence, one table, the verdict, where the report is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compactor.console import Console
from compactor.reporting.numbers import bytes_text, digits, points, rate, score, with_interval
from compactor.reporting.page import HTML_NAME
from compactor.reporting.words import (
    NO_DIFFERENCE,
    Report,
    Row,
    absence,
    absence_in_full,
    is_server,
    metric_name,
    metric_of,
    part_of,
    primary_metric,
    result_of,
    summary_sentence,
)


def print_summary(console: Console, report: Report, folder: str | Path | None = None) -> None:
    """Print the result of a measurement.

    Args:
        console: Where to.
        report: A checked ``report.json``.
        folder: Where the report was written; None where it was not.
    """
    console.line(summary_sentence(report))
    console.line()
    columns, rows = _server_rows(report) if is_server(report) else _timing_rows(report)
    console.table(columns, rows)
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


def _timing_rows(report: Report) -> tuple[list[str], list[list[str]]]:
    """A line for each variant and case; file and quality on the first line of each variant."""
    metric = primary_metric(report)
    compared = report["baseline"] is not None
    offline = report["settings"]["scenario"] == "offline"
    written = any(part_of(case) is not None for case in report["workload"]["cases"])
    columns = ["variant", ">file", "case", ">median, ms", ">p90, ms"]
    columns += [">examples/s"] * offline + [">tokens/s"] * written + [">against the baseline"] * compared
    columns += [f">{metric_name(metric)}"] if metric is not None else []
    columns += [">difference"] * (metric is not None and compared)
    rows = []
    for row in report["variants"]:
        for index, case in enumerate(report["workload"]["cases"]):
            result = result_of(row, case["id"])
            cells = [row["name"], _size(row)] if index == 0 else ["", ""]
            cells.append(case["id"])
            if result is None:
                missing = absence(row, short=True) if row["status"] != "measured" else "not run"
                cells += [missing] * (2 + offline + written + compared)
            else:
                cells += [digits(result["summary"]["median"]), digits(result["summary"]["p90"])]
                cells += [rate(result["throughput"]["examples_per_s"])] * offline
                cells += [rate(result["throughput"]["tokens_per_s"])] * written
                cells += [_ratio(report, row, result)] * compared
            if metric is not None:
                cells += _quality(report, row, metric, compared=compared) if index == 0 else [""] * (1 + compared)
            rows.append(cells)
            if row["status"] != "measured":
                cells[2] = "all" if len(report["workload"]["cases"]) > 1 else case["id"]
                break
    return columns, rows


def _server_rows(report: Report) -> tuple[list[str], list[list[str]]]:
    metric = primary_metric(report)
    compared = report["baseline"] is not None
    columns = ["variant", ">file", ">highest rate, 1/s", ">p50, ms", ">p99, ms"]
    columns += [f">{metric_name(metric)}"] if metric is not None else []
    columns += [">difference"] * (metric is not None and compared)
    rows = []
    for row in report["variants"]:
        server = row["server"]
        cells = [row["name"], _size(row)]
        if row["status"] != "measured" or server is None:
            cells += [absence(row, short=True) if row["status"] != "measured" else "not run"] * 3
        else:
            best = next((probe for probe in server["probes"] if probe["qps"] == server["best_qps"]), None)
            if best is None:
                cells += ["none tried"] * 3
            else:
                p99 = "too few" if best["p99_ms"] is None else digits(best["p99_ms"])
                cells += [rate(best["qps"]), digits(best["p50_ms"]), p99]
        if metric is not None:
            cells += _quality(report, row, metric, compared=compared)
        rows.append(cells)
    return columns, rows


def _size(row: Row) -> str:
    size = row["counters"]["file_bytes"]
    return "unknown" if size is None else bytes_text(size)


def _ratio(report: Report, row: Row, result: Mapping[str, Any]) -> str:
    ratio = result["ratio"]
    if ratio is None:
        return "baseline" if row["id"] == report["baseline"] else "no baseline"
    text = with_interval(ratio)
    return f"{text} {ratio['verdict']}" if ratio["verdict"] != NO_DIFFERENCE else f"{NO_DIFFERENCE}, {text}"


def _quality(report: Report, row: Row, metric: str, *, compared: bool) -> list[str]:
    found = metric_of(row, metric)
    if found is None:
        words = absence(row, short=True) if row["status"] != "measured" else "not measured"
        return [words] * (1 + compared)
    cells = [score(found["value"], found["se"])]
    if compared:
        difference = found["difference"]
        missing = "baseline" if row["id"] == report["baseline"] else "not measured"
        if difference is None:
            cells.append(missing)
        else:
            cells.append("same answers" if difference["changed"] == 0 else f"{points(difference)} points")
    return cells
