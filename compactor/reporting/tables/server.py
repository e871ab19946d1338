"""The server scenario: the highest rates, and all that were tried."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compactor.reporting.numbers import digits, rate
from compactor.reporting.tables.table import Cell, Table, name_cell, unknown
from compactor.reporting.words import Report, absence, bound_words, measured


def server_table(report: Report) -> Table:
    """The highest rate of each variant, and the latency there."""
    found = [row["server"] for row in measured(report)]
    if found:
        columns: tuple[str, ...] = (
            "variant",
            f">highest rate with {bound_words(found[0])}, 1/s",
        )
    else:
        columns = ("variant", ">highest rate, 1/s")
    columns += (">p50, ms", ">p90, ms", ">p99, ms", ">mean batch")
    rows: list[tuple[Cell, ...]] = []
    for row in report["variants"]:
        server = row["server"]
        if row["status"] != "measured" or server is None:
            words = absence(row) if row["status"] != "measured" else "not run: interrupted"
            rows.append((name_cell(report, row), Cell(words, "muted", absent=True)))
            continue
        best = next((probe for probe in server["probes"] if probe["qps"] == server["best_qps"]), None)
        if best is None:
            rows.append(
                (name_cell(report, row), Cell(server["note"] or "none of the rates tried", "muted", absent=True))
            )
        else:
            rows.append(
                (
                    name_cell(report, row),
                    Cell(rate(best["qps"]), note=server["note"] or ""),
                    Cell(digits(best["p50_ms"])),
                    Cell(digits(best["p90_ms"])),
                    _p99(best),
                    _mean_batch(best),
                )
            )
    caption = (
        "Poisson arrivals with a fixed seed; latency counts from the scheduled arrival, waiting in the queue included."
    )
    return Table("server-rates", "Highest rate under the bound", columns, ((None, tuple(rows)),), caption)


def probe_tables(report: Report) -> list[Table]:
    """Every rate that was tried, a table for each variant."""
    columns = (
        ">offered, 1/s",
        ">achieved, 1/s",
        ">queries",
        ">p50, ms",
        ">p90, ms",
        ">p99, ms",
        ">max, ms",
        ">mean batch",
        "within the bound",
    )
    tables = []
    for index, row in enumerate(row for row in measured(report) if row["server"] is not None):
        rows = tuple(
            (
                Cell(rate(probe["qps"])),
                Cell(rate(probe["achieved_qps"])),
                Cell(f"{probe['queries']:,}"),
                _latency(probe["p50_ms"]),
                _latency(probe["p90_ms"]),
                _p99(probe),
                _latency(probe["max_ms"]),
                _mean_batch(probe),
                _within_the_bound(probe),
            )
            for probe in sorted(row["server"]["probes"], key=lambda probe: probe["qps"])
        )
        tables.append(Table(f"probes-{index}", f"Rates tried: {row['name']}", columns, ((None, rows),)))
    return tables


def _p99(probe: Mapping[str, Any]) -> Cell:
    return Cell("too few queries", "muted") if probe["p99_ms"] is None else Cell(digits(probe["p99_ms"]))


def _latency(milliseconds: float | None) -> Cell:
    return Cell("no answer", "muted") if milliseconds is None else Cell(digits(milliseconds))


def _mean_batch(probe: Mapping[str, Any]) -> Cell:
    """Of an endpoint nobody here sees it."""
    return unknown() if probe["mean_batch"] is None else Cell(digits(probe["mean_batch"]))


def _within_the_bound(probe: Mapping[str, Any]) -> Cell:
    """Whether the rate held; where queries failed, how many of each kind."""
    failed = [
        f"{count:,} {name.replace('_', ' ')}"
        for name, count in (probe.get("statuses") or {}).items()
        if count and name != "ok"
    ]
    note = ", ".join(failed)
    if probe["saturated"]:
        return Cell("no: saturated", "bad", note=note)
    return Cell("yes", "good") if probe["ok"] else Cell("no", "bad", note=note)
