"""The server scenario: the highest rates, and all that were tried."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compactor.reporting.numbers import digits, rate
from compactor.reporting.rows import Report, Row, best_probe, measured
from compactor.reporting.tables.table import Cell, Column, Table, known, make_table, name_cell
from compactor.reporting.words import absence, bound_words


def server_table(report: Report) -> Table:
    """The highest rate of each variant, and the latency there."""
    bound = next((f" with {bound_words(row['server'])}" for row in measured(report)), "")
    columns: list[Column] = [
        ("variant", lambda row, _: name_cell(report, row)),
        (f">highest rate{bound}, 1/s", lambda row, best: Cell(rate(best["qps"]), note=row["server"]["note"] or "")),
        (">p50, ms", lambda _, best: Cell(digits(best["p50_ms"]))),
        (">p90, ms", lambda _, best: Cell(digits(best["p90_ms"]))),
        (">p99, ms", lambda _, best: _p99(best)),
        (">mean batch", lambda _, best: _mean_batch(best)),
    ]

    def why_absent(row: Row, best: Mapping[str, Any] | None) -> str | None:
        if row["server"] is None:
            return absence(row)
        return None if best is not None else row["server"]["note"] or "none of the rates tried"

    caption = (
        "Poisson arrivals with a fixed seed; latency counts from the scheduled arrival, waiting in the queue included."
    )
    rows = [(row, best_probe(row["server"])) for row in report["variants"]]
    title = "Highest rate under the bound"
    return make_table("server-rates", title, columns, {None: rows}, caption, absence=why_absent)


def probe_tables(report: Report) -> list[Table]:
    """Every rate that was tried, a table for each variant; none but in the server scenario."""
    columns: list[Column] = [
        (">offered, 1/s", lambda probe: Cell(rate(probe["qps"]))),
        (">achieved, 1/s", lambda probe: Cell(rate(probe["achieved_qps"]))),
        (">queries", lambda probe: Cell(f"{probe['queries']:,}")),
        (">p50, ms", lambda probe: known(probe["p50_ms"], digits, "no answer")),
        (">p90, ms", lambda probe: known(probe["p90_ms"], digits, "no answer")),
        (">p99, ms", _p99),
        (">max, ms", lambda probe: known(probe["max_ms"], digits, "no answer")),
        (">mean batch", _mean_batch),
        ("within the bound", _within_the_bound),
    ]
    tables = []
    for index, row in enumerate(row for row in measured(report) if row["server"] is not None):
        probes = [(probe,) for probe in sorted(row["server"]["probes"], key=lambda probe: probe["qps"])]
        tables.append(make_table(f"probes-{index}", f"Rates tried: {row['name']}", columns, {None: probes}))
    return tables


def _p99(probe: Mapping[str, Any]) -> Cell:
    return known(probe["p99_ms"], digits, "too few queries")


def _mean_batch(probe: Mapping[str, Any]) -> Cell:
    """Of an endpoint nobody here sees it."""
    return known(probe["mean_batch"], digits)


def _within_the_bound(probe: Mapping[str, Any]) -> Cell:
    """Whether the rate held; where queries failed, how many of each kind."""
    if probe["ok"] and not probe["saturated"]:
        return Cell("yes", "good")
    statuses = (probe.get("statuses") or {}).items()
    failed = [f"{number:,} {name.replace('_', ' ')}" for name, number in statuses if number and name != "ok"]
    return Cell("no: saturated" if probe["saturated"] else "no", "bad", note=", ".join(failed))
