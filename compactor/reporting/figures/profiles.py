"""Where the time goes: by operator, and by layer."""

from __future__ import annotations

import collections
import re
from collections.abc import Sequence
from typing import Any

from compactor.reporting.canvas import MUTED, PAPER, SERIES, TRACK, WIDTH, Drawing, draw, pixels, shorten
from compactor.reporting.figures.figure import NAME, SMALL, Figure, Key
from compactor.reporting.numbers import digits, percent
from compactor.reporting.words import Report, profiles_of

_LETTERS = "abcdefg"  # marks of the named operators, as many as there are colours beside that of the rest
_LAYER = re.compile(r"^(encoder|decoder)\.layers\.(\d+)\.")


def operators_figure(report: Report) -> Figure | None:
    """The share of each operator in a run, a bar for each profiled variant."""
    rows = [(name, profile) for _, name, profile in profiles_of(report) if profile["operators"]]
    if not rows:
        return None
    weights: dict[str, float] = collections.defaultdict(float)
    for _, profile in rows:
        for operator in profile["operators"]:
            weights[operator["name"]] += operator["share"]
    named = sorted(weights, key=lambda name: (-weights[name], name))[: len(_LETTERS)]
    keys = [Key(place, mark, name) for place, (mark, name) in enumerate(zip(_LETTERS, named, strict=False), 1)]
    others = Key(0, "…", f"{len(weights) - len(named)} others")

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
            for key, share in zip((*keys, others), (*shares.values(), rest), strict=True):
                width = share * WIDTH
                axes.barh(top + 31, width, left=left, height=24, color=key.colour, edgecolor=PAPER, linewidth=1.0)
                if width > 14:
                    style = {"fontsize": SMALL, "fontweight": "bold", "color": PAPER, "ha": "center"}
                    axes.text(left + width / 2, top + 35, key.mark, **style)
                left += width

    label = "Share of the time by operator: " + "; ".join(
        f"{name}: "
        + ", ".join(f"{operator['name']} {percent(operator['share'])}" for operator in profile["operators"][:5])
        for name, profile in rows
    )
    caption = (
        "The share of each operator in the time of a run, by ONNX Runtime's profiler. All bars are equally long, "
        "whatever the time: see the milliseconds."
    )
    legend = (*keys, others) if len(weights) > len(named) else tuple(keys)
    drawing = draw("operators-0", 54 * len(rows) + 2, paint, label=label)
    return Figure("operators", "Where the time goes", caption, (drawing,), legend)


def layer_times_figure(report: Report) -> Figure | None:
    """The time of each layer in a run, a drawing for each variant that was profiled by layer."""
    drawings = [
        _layer_times(f"layer-times-{index}", name, profile["layers"])
        for index, (_, name, profile) in enumerate(profiles_of(report))
        if profile["layers"]
    ]
    if not drawings:
        return None
    caption = "Milliseconds of a run in each layer, by ONNX Runtime's profiler."
    return Figure("layer-times", "Time by layer", caption, tuple(drawings))


def _layer_times(identity: str, name: str, layers: Sequence[Any]) -> Drawing:
    longest = max(layer["ms"] for layer in layers) or 1.0

    def paint(figure: Any) -> None:
        axes = pixels(figure)
        for index, layer in enumerate(layers):
            y, length = 10 + 20 * index, 98 * layer["ms"] / longest
            axes.text(0, y + 4, shorten(_LAYER.sub(r"\1 \2 ", str(layer["name"])), 25), fontsize=SMALL)
            axes.barh(y, 98, left=140, height=12, color=TRACK)
            axes.barh(y, length, left=140, height=12, color=SERIES[0 if layer["name"] == "other" else 1])
            words = f"{digits(layer['ms'])} ms · {percent(layer['share'])}"
            axes.text(WIDTH, y + 4, words, fontsize=SMALL, ha="right")

    label = f"Time by layer, {name}: " + ", ".join(f"{layer['name']} {percent(layer['share'])}" for layer in layers)
    return draw(identity, 20 * len(layers) + 2, paint, label=label, title=name)
