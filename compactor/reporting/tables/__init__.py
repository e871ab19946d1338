"""The tables of a report, as text, one subject a file: the page and the Markdown show the same cells."""

from __future__ import annotations

from compactor.reporting.tables.cost import cost_table
from compactor.reporting.tables.server import server_table
from compactor.reporting.tables.speed import speed_table
from compactor.reporting.tables.table import Table
from compactor.reporting.words import Report, is_server, only_endpoints


def result_tables(report: Report) -> list[Table]:
    """What a decision needs: speed, then what it costs."""
    tables = [server_table(report) if is_server(report) else speed_table(report)]
    if not only_endpoints(report):
        tables.append(cost_table(report))
    return [table for table in tables if table]
