"""What is left of each layer."""

from __future__ import annotations

from compactor.reporting.numbers import percent
from compactor.reporting.tables.table import Cell, Table, unknown
from compactor.reporting.words import Report


def layer_table(report: Report) -> Table:
    """Heads and neurons of each layer, before and after."""
    layers = report["layers"] or []
    rows = tuple(
        (
            Cell(layer["name"]),
            _before_after(layer["heads_before"], layer["heads_after"]),
            _before_after(layer["neurons_before"], layer["neurons_after"]),
        )
        for layer in layers
    )
    return Table("layers", "Kept in each layer", ("layer", ">heads", ">FFN neurons"), ((None, rows),))


def _before_after(before: int | None, after: int | None) -> Cell:
    if before is None and after is None:
        return Cell("none", "muted")  # such as the neurons of an attention
    if before is None or after is None:
        return unknown()
    return Cell(
        f"{before:,} → {after:,}" if before != after else f"{before:,}", note=percent(after / before) if before else ""
    )
