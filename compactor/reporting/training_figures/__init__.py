"""The figures of a training run. One that has no data is not there.

Attention, feed-forward and the two together keep their colours and letters through all figures.
"""

from __future__ import annotations

from compactor.reporting.figures.figure import Figure
from compactor.reporting.training_figures.curves import density_figure, losses_figure, metric_figure
from compactor.reporting.training_figures.pattern import pattern_figures
from compactor.reporting.training_figures.values import Training


def make_training_figures(document: Training) -> list[Figure]:
    """All figures that ``document`` has data for, the most important first."""
    makers = (density_figure, losses_figure, metric_figure)
    figures = [figure for figure in (maker(document) for maker in makers) if figure is not None]
    return [*figures, *pattern_figures(document)]
