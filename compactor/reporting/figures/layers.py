"""What is left of each layer, and where the time goes, by operator and by layer."""

from __future__ import annotations

import collections
import re
from collections.abc import Sequence
from typing import Any

from compactor.reporting.canvas import INK, MUTED, PAPER, SERIES, TRACK, WIDTH, Drawing, draw, framed, pixels, shorten
from compactor.reporting.figures.figure import NAME, SMALL, Figure, Key, few_ticks, write
from compactor.reporting.numbers import digits, percent
from compactor.reporting.rows import Report, profiles_of

_HALF = re.compile(r"(encoder|decoder)\.layers\.(\d+)(, cross-attention)?")
_LAYER = re.compile(r"^(encoder|decoder)\.layers\.(\d+)\.")
_LETTERS = "abcdefg"  # marks of the named operators, as many as there are colours beside that of the rest


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
