"""What the page of a report and its Markdown both say: the same sentences, tables and facts."""

from __future__ import annotations

from typing import Any

from compactor.reporting.rows import Report, is_server, only_endpoints
from compactor.reporting.tables.cost import cost_table
from compactor.reporting.tables.layers import layer_table, profile_tables
from compactor.reporting.tables.provenance import machine_rows, reproduce_rows, variant_rows
from compactor.reporting.tables.server import probe_tables, server_table
from compactor.reporting.tables.speed import speed_table
from compactor.reporting.tables.table import Table
from compactor.reporting.words import about_words, absence_in_full, placement_words, summary_sentence


def contents(report: Report) -> dict[str, Any]:
    """The content of ``report``, a checked ``report.json``, by the names that the templates know."""
    return {
        "report": report,
        "verdict": "VALID" if report["verdict"]["valid"] else "INVALID",
        "about": about_words(report),
        "summary": summary_sentence(report),
        "tables": result_tables(report),
        "layers": layer_table(report),
        "probes": probe_tables(report),
        "profiles": profile_tables(report),
        "placements": placement_words(report),
        "reproduce": reproduce_rows(report),
        "machine": machine_rows(report),
        "exactly": variant_rows(report),
        "failures": [(row["name"], absence_in_full(row)) for row in report["variants"] if row["status"] != "measured"],
    }


def result_tables(report: Report) -> list[Table]:
    """What a decision needs: speed, then what it costs."""
    tables = [server_table(report) if is_server(report) else speed_table(report)]
    if not only_endpoints(report):
        tables.append(cost_table(report))
    return [table for table in tables if table]
