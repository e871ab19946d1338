"""Where the time goes, by layer."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from compactor.reporting.canvas import SERIES, TRACK, WIDTH, Drawing, draw, pixels, shorten
from compactor.reporting.figures.figure import SMALL, Figure
from compactor.reporting.numbers import digits, percent
from compactor.reporting.words import Report, profiles_of

_LAYER = re.compile(r"^(encoder|decoder)\.layers\.(\d+)\.")


def layer_times_figure(report: Report) -> Figure | None:
    """The time of each layer in a run, a drawing for each variant that was profiled by layer."""
    drawings = []
    profiles = [pair for row in report["variants"] for pair in profiles_of(report, row)]
    for index, (name, profile) in enumerate(profiles):
        if profile["layers"]:
            drawings.append(_layer_times(f"layer-times-{index}", name, profile["layers"]))
    if not drawings:
        return None
    caption = "Milliseconds of a run in each layer, by ONNX Runtime's profiler."
    return Figure("layer-times", "Time by layer", caption, tuple(drawings))


def _layer_times(identity: str, name: str, layers: Sequence[Mapping[str, Any]]) -> Drawing:
    longest = max(layer["ms"] for layer in layers) or 1.0

    def paint(figure: Any) -> None:
        axes = pixels(figure)
        for index, layer in enumerate(layers):
            y = 10 + 20 * index
            axes.text(0, y + 4, shorten(_LAYER.sub(r"\1 \2 ", str(layer["name"])), 25), fontsize=SMALL)
            axes.barh(y, 98, left=140, height=12, color=TRACK)
            axes.barh(
                y, 98 * layer["ms"] / longest, left=140, height=12, color=SERIES[0 if layer["name"] == "other" else 1]
            )
            words = f"{digits(layer['ms'])} ms · {percent(layer['share'])}"
            axes.text(WIDTH, y + 4, words, fontsize=SMALL, ha="right")

    label = f"Time by layer, {name}: " + ", ".join(f"{layer['name']} {percent(layer['share'])}" for layer in layers)
    return draw(identity, 20 * len(layers) + 2, paint, label=label, title=name)
