"""The rows of a report, and what they hold: results, metrics, profiles."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

Report = Mapping[str, Any]
Row = Mapping[str, Any]

NO_DIFFERENCE = "no significant difference"


def is_server(report: Report) -> bool:
    """Whether the rate of arrivals was searched, and no single case timed."""
    return bool(report["settings"]["scenario"] == "server")


def only_endpoints(report: Report) -> bool:
    """Whether all rows are endpoints that somebody else runs: nothing is known of their files, threads and memory."""
    return all(row["engine"] == "http" for row in report["variants"])


def part_of(case: Mapping[str, Any]) -> Any:
    """What of an encoder-decoder a case runs; None for a model with one graph, as in all older reports."""
    return case.get("part")


def measured(report: Report) -> list[Row]:
    """The rows with numbers, in order."""
    return [row for row in report["variants"] if row["status"] == "measured" and (row["server"] or row["results"])]


def baseline_row(report: Report) -> Row | None:
    """The row that the others are compared with; None where there is none or it has no numbers."""
    return next((row for row in measured(report) if row["id"] == report["baseline"]), None)


def result_of(row: Row | None, case: str) -> Any:
    """What a row measured in a case; None where it did not, or where there is no row."""
    return row and next((result for result in row["results"] if result["case"] == case), None)


def best_probe(server: Mapping[str, Any] | None) -> Any:
    """What was measured at the highest rate that kept the bound; None where none did."""
    return server and next((probe for probe in server["probes"] if probe["qps"] == server["best_qps"]), None)


def best_variant(report: Report) -> Row | None:
    """The fastest row that is not the baseline; the baseline where it is alone; None where nothing was measured.

    Over several cases by the geometric mean: each counts the same, however long its inputs.
    """
    rows = measured(report)
    others = [row for row in rows if row["id"] != report["baseline"]] or rows
    if not others:
        return None
    if is_server(report):
        return max(others, key=lambda row: row["server"]["best_qps"] or 0.0)
    most = max(len(row["results"]) for row in others)  # after an interrupt, one with every case before one without
    return min(
        (row for row in others if len(row["results"]) == most),
        key=lambda row: statistics.geometric_mean(max(result["summary"]["median"], 1e-9) for result in row["results"]),
    )


def metrics_of(report: Report) -> list[str]:
    """Every metric that any row has."""
    return list(dict.fromkeys(name for row in report["variants"] for name in (row["quality"] or {}).get("metrics", ())))


def _primary(report: Report) -> str:
    names, wanted = metrics_of(report), report["settings"]["metric"]
    return wanted if wanted in names else next(iter(names), "")


def primary_metric(report: Report) -> str:
    """The name of the metric beside speed: the one asked for, or the first that any row has; empty without any."""
    return metric_name(_primary(report))


def quality_of(report: Report, row: Row) -> Any:
    """A row's value of the metric beside speed; None where it has none."""
    return metric_of(row, _primary(report))


def metric_of(row: Row, metric: str) -> Any:
    """A row's value of a metric; None where it has none."""
    return (row["quality"] or {"metrics": {}})["metrics"].get(metric)


def metric_name(metric: str) -> str:
    """A metric's name for people: ``exact match``."""
    return metric.replace("_", " ")


def profiles_of(report: Report) -> list[tuple[Row, str, Mapping[str, Any]]]:
    """What was profiled: the row, a name (the row's, and of an encoder-decoder the part's), and the profile."""
    parts = {case["id"]: part_of(case) for case in report["workload"]["cases"]}
    found = []
    for row in report["variants"]:
        for profile in row.get("profiles") or filter(None, [row["profile"]]):
            part = parts.get(profile["case"])
            found.append((row, row["name"] if part is None else f"{row['name']}, {part['kind']}", profile))
    return found
