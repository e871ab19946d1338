"""Where the time goes, by operator."""

from __future__ import annotations

from typing import Any

from compactor.reporting.canvas import MUTED, PAPER, SERIES, WIDTH, draw, pixels, shorten
from compactor.reporting.figures.figure import NAME, SMALL, Figure, Key
from compactor.reporting.numbers import digits, percent
from compactor.reporting.words import Report, profiles_of

_NAMED_OPERATORS = 7  # as many as there are colours beside that of the rest


def operators_figure(report: Report) -> Figure | None:
    """The share of each operator in a run, a bar for each profiled variant."""
    rows = [
        (name, profile)
        for row in report["variants"]
        for name, profile in profiles_of(report, row)
        if profile["operators"]
    ]
    if not rows:
        return None
    weights: dict[str, float] = {}
    for _, profile in rows:
        for operator in profile["operators"]:
            weights[operator["name"]] = weights.get(operator["name"], 0.0) + operator["share"]
    named = sorted(weights, key=lambda name: (-weights[name], name))[:_NAMED_OPERATORS]

    def paint(figure: Any) -> None:
        axes = pixels(figure)
        for index, (name, profile) in enumerate(rows):
            top = 4 + 54 * index
            axes.text(0, top + 11, shorten(name, 30), fontsize=NAME, fontweight="bold")
            each = f"{digits(profile['total_ms'])} ms a run"
            axes.text(WIDTH, top + 11, each, fontsize=NAME, ha="right", color=MUTED)
            shares = dict.fromkeys(named, 0.0)
            for operator in profile["operators"]:
                if operator["name"] in shares:
                    shares[operator["name"]] += operator["share"]
            rest = max(0.0, 1.0 - sum(shares.values()))
            left = 0.0
            for place, share in enumerate((*shares.values(), rest)):
                series = (place + 1) % (_NAMED_OPERATORS + 1)
                width = share * WIDTH
                axes.barh(top + 31, width, left=left, height=24, color=SERIES[series], edgecolor=PAPER, linewidth=1.0)
                if width > 14:
                    mark = _letter(place) if place < len(named) else "…"
                    axes.text(
                        left + width / 2, top + 35, mark, fontsize=SMALL, fontweight="bold", color=PAPER, ha="center"
                    )
                left += width

    label = "Share of the time by operator: " + "; ".join(
        f"{name}: "
        + ", ".join(f"{operator['name']} {percent(operator['share'])}" for operator in profile["operators"][:5])
        for name, profile in rows
    )
    keys = [Key(index + 1, _letter(index), name) for index, name in enumerate(named)]
    if len(weights) > len(named):
        keys.append(Key(0, "…", f"{len(weights) - len(named)} others"))
    drawing = draw("operators-0", 54 * len(rows) + 2, paint, label=label)
    caption = (
        "The share of each operator in the time of a run, by ONNX Runtime's profiler. All bars are equally long, "
        "whatever the time: see the milliseconds."
    )
    return Figure("operators", "Where the time goes", caption, (drawing,), tuple(keys))


def _letter(index: int) -> str:
    """The mark of an operator; numbers are for variants."""
    return "abcdefghij"[index]
