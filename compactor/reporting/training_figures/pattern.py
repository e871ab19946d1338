"""What is left in each layer after a training run."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from compactor.reporting.canvas import MUTED, SERIES, TRACK, WIDTH, Drawing, draw, pixels
from compactor.reporting.figures.figure import NAME, SMALL, Figure
from compactor.reporting.numbers import percent
from compactor.reporting.training_figures import KINDS, Training, finite

_MOST_LAYERS = 8  # in a drawing of the pattern, so that deep models stand in columns
_COLOURS = {"attention": SERIES[1], "cross_attention": SERIES[4], "feed_forward": SERIES[2]}


def pattern_figures(document: Training) -> list[Figure]:
    """What is left in each layer, a figure for each stack: a square for each head, a bar for the neurons."""
    layers = document["final"]["layers"] if document["final"] else []
    figures = []
    for place, stack in enumerate(dict.fromkeys(layer["stack"] for layer in layers)):
        own = [layer for layer in layers if layer["stack"] == stack]
        numbered = _by_number(own)
        size = -(-len(numbered) // -(-len(numbered) // _MOST_LAYERS))  # of columns of like height
        drawings = []
        for column, first in enumerate(range(0, len(numbered), size)):
            part = numbered[first : first + size]
            title = f"layer {part[0][0]}" if len(part) == 1 else f"layers {part[0][0]} to {part[-1][0]}"
            drawings.append(_pattern(f"pattern-{place}-{column}", title, part))
        caption = "A square is an attention head: filled where it lives, hollow where it is gone."
        if any(layer["kind"] == "feed_forward" for layer in own):
            caption += " A bar is the share of the feed-forward neurons that live."
        figures.append(Figure(f"pattern-{place}", f"Kept in each layer of the {stack}", caption, tuple(drawings)))
    return figures


def _by_number(layers: Sequence[Mapping[str, Any]]) -> list[tuple[int, list[Mapping[str, Any]]]]:
    """The layers of one stack by their number: the first that stands in the name, else the place among its kind."""
    groups: dict[int, list[Mapping[str, Any]]] = {}
    seen: dict[str, int] = {}
    for layer in layers:
        found = re.search(r"(?<![^\W_])\d+(?![^\W_])", str(layer["name"]))
        number = int(found[0]) if found else seen.get(layer["kind"], 0)
        seen[layer["kind"]] = seen.get(layer["kind"], 0) + 1
        groups.setdefault(number, []).append(layer)
    return list(groups.items())


def _pattern(identity: str, title: str, numbered: Sequence[tuple[int, Sequence[Mapping[str, Any]]]]) -> Drawing:
    """A row for each sublayer, in groups: the layer's number, its kind, heads or neurons, and how many live."""
    row, gap, left, room = 17.0, 7.0, 112.0, 158.0
    height = sum(row * len(group) for _, group in numbered) + gap * (len(numbered) - 1) + 4

    def paint(figure: Any) -> None:
        axes = pixels(figure)
        top = 2.0
        for number, group in numbered:
            axes.text(0, top + 12, str(number), fontsize=NAME, fontweight="bold")
            for layer in group:
                colour = _COLOURS[layer["kind"]]
                axes.text(22, top + 12, KINDS[layer["kind"]], fontsize=SMALL, color=MUTED)
                y = top + row / 2
                if layer["heads"]:
                    cell = min(14.0, room / len(layer["heads"]))
                    fill = [colour if alive else TRACK for alive in layer["heads"]]
                    edge = [colour if alive else MUTED for alive in layer["heads"]]
                    places = [left + cell * place + 0.5 for place in range(len(fill))]
                    style = {"color": fill, "edgecolor": edge, "linewidth": 0.8}
                    axes.barh([y] * len(fill), cell - 2.5, left=places, height=min(11.5, cell - 2.5), **style)
                else:
                    axes.barh(y, room - 2.5, left=left + 0.5, height=9, color=TRACK)
                    axes.barh(y, _left(layer)[0] * (room - 2.5), left=left + 0.5, height=9, color=colour)
                axes.text(WIDTH, top + 12, _left(layer)[1], fontsize=SMALL, ha="right")
                top += row
            top += gap

    label = f"{title}: " + "; ".join(
        f"layer {number}: " + ", ".join(f"{KINDS[layer['kind']]} {_left(layer)[1]}" for layer in group)
        for number, group in numbered
    )
    return draw(identity, height, paint, label=label, title=title)


def _left(layer: Mapping[str, Any]) -> tuple[float, str]:
    """What is left, as a share and in words: heads or neurons, or weights where there is no word of either."""
    heads, density = layer["heads"], finite(layer["density"])
    live, total = (sum(map(bool, heads)), len(heads)) if heads else layer["neurons"] or (0, 0)
    if total:
        return live / total, f"{live:,} / {total:,}"
    return density or 0.0, "unknown" if density is None else percent(density)
