"""The figure of ``sst2.py``: accuracy against the linear weights left, and of int8 against its speed-up.

Light and opaque, so that it reads the same on a dark page.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks._sst2_page import Page, Row

_STYLES = {  # by family: colour, mark
    "dense": ("#1F2328", "*"),
    "hybrid": ("#0072B2", "o"),
    "hybrid, longer": ("#0072B2", "p"),
    "hybrid, by λ": ("#56B4E9", "D"),
    "hybrid, no teacher": ("#8C6D1F", "v"),
    "hybrid, filled": ("#009E73", "s"),
    "struct": ("#D55E00", "^"),
    "block": ("#B5489A", "P"),
    "magnitude": ("#7A7F87", "X"),
    "nn_pruning's own code": ("#C23B22", "h"),
}
_LEFT_OUT = ("block-16-0.30", "block-8-0.30", "block-4-0.30")  # another question, with a table of its own
_SIZES = {"*": 11, "D": 6}  # of marks that look larger or smaller than others
_INK, _SOFT, _GRID = "#1F2328", "#59636E", "#ECEFF2"


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Write the figure as SVG, the same bytes for the same result; nothing before there is a dense model."""
    page = Page(result)
    dense = page.find("dense")
    if dense is None:
        return
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
        count = 1 + len(page.cases)
        size = (5.4 * count + 0.6, 5.4)
        figure, axes = plt.subplots(1, count, figsize=size, sharey=True, squeeze=False, facecolor="white")
        _draw_panel(axes[0][0], page, None)
        for panel, case in zip(axes[0][1:], page.cases, strict=True):
            _draw_panel(panel, page, case)
        axes[0][0].set_ylabel("accuracy on SST-2, %")
        title = "MiniLM on SST-2: accuracy against size and speed"
        figure.suptitle(title, x=0.02, ha="left", fontsize=12, fontweight="bold")
        _draw_legend(figure, page)
        figure.tight_layout(rect=(0, 0.12, 1, 0.98))
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="svg", facecolor="white", metadata={"Date": None, "Creator": "compactor"})
        plt.close(figure)


def drawn(page: Page, case: str | None) -> dict[str, list[tuple[float, float, Row]]]:
    """By family the points of a panel: x, accuracy in percent, and the row; from left to right.

    Args:
        page: The result.
        case: What int8 was timed on; None draws the masked model against the share of its linear weights.
    """
    found: dict[str, list[tuple[float, float, Row]]] = {}
    for row in page.made:
        if row["family"] not in _STYLES or row["id"] in _LEFT_OUT:
            continue
        if case is None:
            found.setdefault(row["family"], []).append((100 * row["density"], _percent(row, "masked"), row))
        elif (ratio := page.speed(row, case)) is not None:
            found.setdefault(row["family"], []).append((ratio["value"], _percent(row, "int8"), row))
    return {family: sorted(places, key=lambda place: place[0]) for family, places in found.items()}


def _percent(row: Row, way: str) -> float:
    return float(100 * row["quality"][way]["value"])


def _draw_panel(panel: Any, page: Page, case: str | None) -> None:
    """A line for each family, a mark for each run; whiskers are standard errors of paired differences to dense."""
    from matplotlib.ticker import FuncFormatter

    way = "masked" if case is None else "int8"
    for family, places in drawn(page, case).items():
        colour, mark = _STYLES[family]
        panel.plot([x for x, _, _ in places], [y for _, y, _ in places], color=colour, linewidth=1.4, zorder=2)
        for x, y, row in places:
            error = 100 * row["quality"][way]["difference"]["se"]
            panel.plot([x, x], [y - error, y + error], color=colour, linewidth=0.9, alpha=0.6, zorder=1)
            name = f"{case or 'density'}-{row['id']}"
            panel.plot(x, y, marker=mark, markersize=_SIZES.get(mark, 7), color=colour, zorder=3, gid=name)
    dense = page.row("dense")
    for loss in (0, 1.5, 3):
        panel.axhline(_percent(dense, "masked") - loss, color=_SOFT, linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
    panel.grid(True, color=_GRID, linewidth=0.8)
    if case is None:
        panel.invert_xaxis()
        panel.set_xlabel("linear weights left")
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} %"))
        panel.set_title("masked model", loc="left", fontsize=10, color=_SOFT)
    else:
        panel.set_xlabel("int8: speed-up over the dense model in fp32")
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
        panel.set_title(f"int8, batch × length: {case.replace('x', ' × ')}", loc="left", fontsize=10, color=_SOFT)


def _draw_legend(figure: Any, page: Page) -> None:
    """Colours are families; the dashed lines are the bars."""
    from matplotlib.lines import Line2D

    families = [family for family in _STYLES if family in drawn(page, None)]
    marks = []
    for family in families:
        colour, mark = _STYLES[family]
        label = "block 32×32" if family == "block" else family
        marks.append(Line2D([], [], marker=mark, markersize=_SIZES.get(mark, 7), color=colour, label=label))
    dashes = Line2D([], [], color=_SOFT, linewidth=0.8, linestyle=(0, (4, 3)), label="dense, and 1.5 and 3 points less")
    place: dict[str, Any] = {"loc": "lower left", "frameon": False, "handletextpad": 0.5, "columnspacing": 1.6}
    columns = -(-(len(marks) + 1) // 2)
    figure.legend(handles=[*marks, dashes], bbox_to_anchor=(0.02, 0.005), ncols=columns, fontsize=9.5, **place)
