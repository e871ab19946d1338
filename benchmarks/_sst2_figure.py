"""The figure of ``sst2.py``: accuracy against the linear weights left, and of int8 against its speed-up."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks._figure import DASHES, LEGEND, SOFT, describe, panels
from benchmarks._sst2_findings import Page, Row

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


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Write the figure as SVG, the same bytes for the same result; nothing before there is a dense model."""
    page = Page(result)
    dense = page.find("dense")
    if dense is None:
        return
    count = 1 + len(page.cases)
    title = "MiniLM on SST-2: accuracy against size and speed"
    with panels(path, count, (5.4 * count + 0.6, 5.4), title=title, scores="accuracy on SST-2, %") as (figure, axes):
        for panel, case in zip(axes, (None, *page.cases), strict=True):
            _draw_panel(panel, page, case)
        _draw_legend(figure, page)


def drawn(page: Page, case: str | None) -> dict[str, list[tuple[float, float, Row]]]:
    """By family the points of a panel: x, accuracy in percent, and the row; from left to right.

    Args:
        page: The result.
        case: What int8 was timed on; None draws the masked model against the share of its linear weights.
    """
    found: dict[str, list[tuple[float, float, Row]]] = {}
    for row in page.made():
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
        panel.axhline(_percent(dense, "masked") - loss, color=SOFT, linewidth=0.8, linestyle=DASHES, zorder=0)
    if case is None:
        panel.invert_xaxis()
        describe(panel, "masked model", "linear weights left", " %")
    else:
        title = f"int8, batch × length: {case.replace('x', ' × ')}"
        describe(panel, title, "int8: speed-up over the dense model in fp32", "×")


def _draw_legend(figure: Any, page: Page) -> None:
    """Colours are families; the dashed lines are the bars."""
    from matplotlib.lines import Line2D

    lines = []
    for family in (family for family in _STYLES if family in drawn(page, None)):
        colour, mark = _STYLES[family]
        label = "block 32×32" if family == "block" else family
        lines.append(Line2D([], [], marker=mark, markersize=_SIZES.get(mark, 7), color=colour, label=label))
    label = "dense, and 1.5 and 3 points less"
    lines.append(Line2D([], [], color=SOFT, linewidth=0.8, linestyle=DASHES, label=label))
    columns = math.ceil(len(lines) / 2)
    figure.legend(handles=lines, bbox_to_anchor=(0.02, 0.005), ncols=columns, handletextpad=0.5, **LEGEND)
