"""The paper's figure 2: score against speed-up, a panel for each shape, the paper's GPU beside what was measured here.

Light and opaque, so that it reads the same on a dark page.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

COLOURS = {
    "dense": "#1F2328",
    "hybrid": "#0072B2",
    "filled": "#009E73",
    "filled, large teacher": "#B5489A",
    "struct": "#D55E00",
    "BERT-large, filled": "#5B5B5B",
    "BERT-large, hybrid": "#8C6D1F",
}
_OTHER = "#999999"
_MARKS = ("o", "s", "D", "^")
_BAR = "#D8DCE2"
_INK, _SOFT = "#1F2328", "#59636E"
_TICKS = (0.5, 1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32)


@dataclasses.dataclass(frozen=True)
class Point:
    """One speed-up of one checkpoint.

    Attributes:
        checkpoint: Its id: what belongs together on one line.
        method: How it was pruned; gives the colour.
        score: F1.
        case: Where it was measured; None stands in every panel.
        group: Who measured it and in which precision; gives the mark.
        speed: Times faster than the dense model.
        low: Start of its interval; None where unknown.
        high: End of its interval.
    """

    checkpoint: str
    method: str
    score: float
    case: str | None
    group: str
    speed: float
    low: float | None = None
    high: float | None = None


@dataclasses.dataclass(frozen=True)
class Group:
    """What one kind of mark stands for."""

    id: str
    label: str


def draw_figure(
    points: Sequence[Point], groups: Sequence[Group], cases: Sequence[str], path: Path, *, title: str
) -> None:
    """Write the figure as SVG, the same bytes for the same points."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    style: dict[Any, Any] = {
        "svg.hashsalt": "compactor",
        "font.size": 10,
        "font.family": "DejaVu Sans",
        "text.color": _INK,
        "axes.labelcolor": _INK,
        "axes.edgecolor": _SOFT,
        "xtick.color": _SOFT,
        "ytick.color": _SOFT,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
    }
    with plt.rc_context(style):
        figure, axes = plt.subplots(
            1, len(cases), figsize=(max(5.6 * len(cases), 6.4), 5.9), sharey=True, squeeze=False, facecolor="white"
        )
        for panel, case in zip(axes[0], cases, strict=True):
            _draw_panel(panel, [point for point in points if point.case in (None, case)], groups, points)
            panel.set_title(f"batch × length: {case.replace('x', ' × ')}", loc="left", fontsize=10, color=_SOFT)
        axes[0][0].set_ylabel("F1 on SQuAD v1.1, as published")
        figure.suptitle(title, x=0.02, ha="left", fontsize=12, fontweight="bold")
        _draw_legends(figure, points, groups)
        figure.tight_layout(rect=(0, 0.12, 1, 0.98))
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="svg", facecolor="white", metadata={"Date": None, "Creator": "compactor"})
        plt.close(figure)


def _draw_panel(panel: Any, points: Sequence[Point], groups: Sequence[Group], everything: Sequence[Point]) -> None:
    """One shape: a bar from the slowest to the fastest of each checkpoint, and a mark for each measurement."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    for checkpoint in dict.fromkeys(point.checkpoint for point in points):
        own = [point for point in points if point.checkpoint == checkpoint]
        speeds = [point.speed for point in own]
        panel.plot([min(speeds), max(speeds)], [own[0].score] * 2, color=_BAR, linewidth=2.5, zorder=1)
    for mark, group in zip(_MARKS, groups, strict=False):
        for point in (point for point in points if point.group == group.id):
            colour = COLOURS.get(point.method, _OTHER)
            if point.low is not None and point.high is not None:
                panel.plot([point.low, point.high], [point.score] * 2, color=colour, linewidth=1.2, zorder=2)
            panel.plot(
                point.speed,
                point.score,
                marker=mark,
                markersize=6.5,
                markeredgewidth=1.4,
                color=colour,
                markerfacecolor="white" if point.group == groups[0].id else colour,
                zorder=3,
                gid=f"{point.group}-{point.checkpoint}",
            )
    panel.axvline(1, color=_SOFT, linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
    panel.set_xscale("log")
    bounds = [1.0, *(point.speed for point in everything)]
    panel.set_xlim(min(bounds) / 1.12, max(bounds) * 1.12)
    panel.xaxis.set_major_locator(
        FixedLocator([tick for tick in _TICKS if min(bounds) / 1.1 <= tick <= max(bounds) * 1.1])
    )
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
    panel.grid(True, color="#ECEFF2", linewidth=0.8)
    panel.set_xlabel("speed-up over the dense model of the same size (log scale)")


def _draw_legends(figure: Any, points: Sequence[Point], groups: Sequence[Group]) -> None:
    """Colours are methods, marks are who measured."""
    from matplotlib.lines import Line2D

    marks = [
        Line2D(
            [],
            [],
            linestyle="",
            marker=mark,
            color=_INK,
            label=group.label,
            markerfacecolor="white" if i == 0 else _INK,
        )
        for i, (mark, group) in enumerate(zip(_MARKS, groups, strict=False))
    ]
    methods = [
        Line2D([], [], linestyle="", marker="o", markersize=8, color=COLOURS.get(name, _OTHER), label=name)
        for name in dict.fromkeys(point.method for point in points)
    ]
    place = {"loc": "lower left", "frameon": False, "handletextpad": 0.3, "columnspacing": 1.6, "fontsize": 9.5}
    figure.legend(handles=marks, bbox_to_anchor=(0.02, 0.06), ncols=len(marks), **place)
    figure.legend(handles=methods, bbox_to_anchor=(0.02, 0.015), ncols=max(len(methods), 1), **place)
