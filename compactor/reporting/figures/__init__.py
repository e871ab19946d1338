"""The figures of a report, a subject a file. One that has no data is not there.

Every variant keeps its colour and its number through all figures, so that neither colours nor print are needed to tell
them apart; the baseline is grey.
"""

from __future__ import annotations

from compactor.reporting.figures.figure import Figure
from compactor.reporting.figures.layers import layer_times_figure, layers_figure, operators_figure
from compactor.reporting.figures.ledger import ledger_figure
from compactor.reporting.figures.pareto import pareto_figure
from compactor.reporting.figures.speed import latency_figure, processes_figure, server_figure, throughput_figure
from compactor.reporting.rows import Report


def make_figures(report: Report) -> list[Figure]:
    """All figures that ``report`` has data for, the most important first."""
    figures = (
        latency_figure(report),
        server_figure(report),
        pareto_figure(report),
        throughput_figure(report),
        layers_figure(report),
        operators_figure(report),
        layer_times_figure(report),
        ledger_figure(report),
        processes_figure(report),
    )
    return list(filter(None, figures))
