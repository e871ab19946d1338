"""What is left of each layer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from compactor.reporting.canvas import INK, MUTED, PAPER, SERIES, TRACK, Drawing, draw, framed
from compactor.reporting.figures.figure import SMALL, Figure, few_ticks
from compactor.reporting.labels import write
from compactor.reporting.words import Report

_HALF = re.compile(r"(encoder|decoder)\.layers\.(\d+)(, cross-attention)?")


def layers_figure(report: Report) -> Figure | None:
    """Heads and FFN neurons of each layer, before and after: Figure 1 of Lagunas et al. (2021) in spirit."""
    layers = report["layers"]
    if not layers:
        return None
    drawings = []
    for what, words in (("heads", "attention heads"), ("neurons", "FFN neurons")):
        counts = [(str(layer["name"]), layer[f"{what}_before"], layer[f"{what}_after"]) for layer in layers]
        known = [(name, was, now) for name, was, now in counts if was is not None and now is not None]
        if known:
            names, before, after = zip(*known, strict=True)
            title = f"{words}: {sum(after):,} of {sum(before):,} kept"
            drawings.append(_before_after(f"layers-{what}", title, _short_names(names), before, after))
    if not drawings:
        return None
    caption = "Outline: the original model. Filled: what is left of it in the compact graph, layer by layer."
    if any(_HALF.fullmatch(str(layer["name"])) for layer in layers):
        caption += " e: encoder; d: decoder; x: the decoder's attention to the encoder."
    return Figure("layers", "What was kept", caption, tuple(drawings))


def _before_after(
    identity: str, title: str, names: Sequence[str], before: Sequence[int], after: Sequence[int]
) -> Drawing:
    few = len(names) <= 12

    def paint(figure: Any) -> None:
        axes = framed(figure, left=44, right=2, top=14, bottom=26 if few else 24)
        places = range(len(names))
        axes.grid(visible=False)
        axes.bar(places, before, 0.78, color=TRACK, edgecolor=MUTED, linewidth=1.0)
        axes.bar(places, after, 0.78, color=SERIES[1])
        for place, value in zip(places, after, strict=True) if few else ():
            inside = value > 0.8 * max(before)
            offset, colour = (-3, PAPER) if inside else (3, INK)
            style = {"ha": "center", "va": "top" if inside else "bottom", "color": colour}
            write(axes, f"{value:,}", (place, value), (0, offset), fontsize=SMALL, **style)
        every = -(-len(names) // 24)
        axes.set_xticks(places[::every], names[::every])
        axes.tick_params(axis="x", labelsize=10.5 if few else 8.5)
        spare = max(0, 5 - len(names)) / 2
        axes.set_xlim(-0.6 - spare, len(names) - 0.4 + spare)
        axes.set_ylim(0, 1.12 * max(*before, 1))
        few_ticks(axes.yaxis, "{x:,.0f}", whole=True)

    label = f"{title}: " + ", ".join(
        f"{name}: {now} of {was}" for name, was, now in zip(names, before, after, strict=True)
    )
    return draw(identity, 190, paint, label=label, title=title)


def _short_names(names: Sequence[str]) -> list[str]:
    """The number at the end of each name where that tells them apart, else their places.

    Of an encoder-decoder the number behind an ``e`` or a ``d``, or an ``x`` for cross-attention.
    """
    halves = [_HALF.fullmatch(name) for name in names]
    if all(halves):
        return [f"{'x' if half[3] else half[1][0]}{half[2]}" for half in halves if half is not None]
    found = [re.findall(r"\d+", name) for name in names]
    last = [numbers[-1] if numbers else "" for numbers in found]
    if "" not in last and len(set(last)) == len(names):
        return [str(int(number)) for number in last]
    return [str(index) for index in range(len(names))]
