"""What the figures share: a row of panels with one scale of scores, written as SVG.

Light and opaque, so that it reads the same on a dark page.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

INK, SOFT, GRID = "#1F2328", "#59636E", "#ECEFF2"
DASHES = (0, (4, 3))
LEGEND = {"loc": "lower left", "frameon": False, "fontsize": 9.5, "columnspacing": 1.6}

_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "compactor",
    "font.size": 10,
    "font.family": "DejaVu Sans",
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": SOFT,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
}


@contextlib.contextmanager
def panels(path: Path, count: int, size: tuple[float, float], *, title: str, scores: str) -> Iterator[tuple[Any, Any]]:
    """A figure and its axes to draw on; written to ``path`` afterwards, the same bytes for the same drawing.

    Args:
        path: SVG.
        count: Panels beside each other.
        size: Width and height, inches.
        title: Above all.
        scores: What the vertical axis is.
    """
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(1, count, figsize=size, sharey=True, squeeze=False, facecolor="white")
        axes[0][0].set_ylabel(scores)
        figure.suptitle(title, x=0.02, ha="left", fontsize=12, fontweight="bold")
        yield figure, axes[0]
        figure.tight_layout(rect=(0, 0.12, 1, 0.98))
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="svg", facecolor="white", metadata={"Date": None, "Creator": "compactor"})
        plt.close(figure)


def describe(panel: Any, title: str, x: str, unit: str) -> None:
    """A panel's title, and its horizontal axis, whose ticks end in ``unit``."""
    from matplotlib.ticker import FuncFormatter

    panel.set_title(title, loc="left", fontsize=10, color=SOFT)
    panel.set_xlabel(x)
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}{unit}"))
    panel.grid(True, color=GRID, linewidth=0.8)
