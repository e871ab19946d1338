"""The figures of a family of pruned models, and what they read from its document. One that has no data is not there.

Attention and feed-forward keep their colours through all figures.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from compactor.reporting.canvas import (
    BAD,
    INK,
    MUTED,
    PAPER,
    SERIES,
    TRACK,
    WIDTH,
    Drawing,
    draw,
    framed,
    pixels,
    shorten,
)
from compactor.reporting.figures.figure import NAME, SMALL, Figure, Label, few_ticks, put_labels, write
from compactor.reporting.numbers import MINUS, digits, duration, percent, score, times
from compactor.reporting.rows import metric_name
from compactor.reporting.training_figures import KINDS, finite, metric_in
from compactor.tasks import FEATURES

Family = Mapping[str, Any]

_COLOURS = {"attention": SERIES[1], "cross_attention": SERIES[4], "feed_forward": SERIES[2]}
_SHAPE = re.compile(r"(\w+) (\d+) (\d+)x(\d+)")  # Unit.shape


def loss_name(document: Family) -> str:
    """What is measured of a model's answers against the whole one's."""
    return f"1 {MINUS} cosine" if document["task"] == FEATURES else "KL"


def scored(document: Family) -> str | None:
    """The metric, where any pruned model has it; else their losses stand for it."""
    name = document["metric"]
    known = name is not None and any(metric_in(model["metrics"], name) for model in document["models"])
    return name if known else None


def parts(blocks: Sequence[Mapping[str, Any]]) -> dict[str, list[int]]:
    """The places of the blocks of each kind."""
    found: dict[str, list[int]] = {}
    for place, block in enumerate(blocks):
        found.setdefault(block["kind"], []).append(place)
    return found


def speed_figure(document: Family) -> Figure | None:
    """Metric and loss against measured speed for the whole family; the loss alone where there is no metric."""
    metric = scored(document)
    wanted = [None] if metric is None else [metric, None]
    found = [
        (name, points)
        for name in wanted
        if (points := [point for model in document["models"] if (point := _point(model, name)) is not None])
    ]
    if not found:
        return None
    caption = (
        "A dot is a model, with the 95 % interval of its speed; the square is the whole model. Dotted: the speeds that "
        "were asked for."
    )
    if metric is not None:
        caption += f" Up and to the right is better of {metric_name(metric)}, which has its standard error; broken "
        caption += "line: the whole model in fp32."
    if found[-1][0] is None:
        caption += f" Down and to the right is better of {loss_name(document)}, which is how far the answers are from "
        caption += "the whole model's."
    if any(not point.kept for _, points in found for point in points):
        caption += " A hollow diamond misses its promise."
    if any(len(points) < len(document["models"]) for _, points in found):
        caption += " A model of which either is unknown is not shown."
    drawings = [_speed(f"family-{number}", document, *pair) for number, pair in enumerate(found)]
    if len(drawings) == 1:
        drawings = [dataclasses.replace(drawings[0], title="")]  # the figure's own says it
    first = _quantity(document, found[0][0])
    return Figure("family", f"{first[:1].upper()}{first[1:]} against measured speed", caption, tuple(drawings))


@dataclasses.dataclass(frozen=True)
class _Point:
    """A model: its speed with the ends of its interval, and a metric in percent with its error, or a loss."""

    name: str
    speed: float
    low: float
    high: float
    value: float
    se: float
    kept: bool


def _speed(identity: str, document: Family, metric: str | None, points: Sequence[_Point]) -> Drawing:
    name, fp32 = _quantity(document, metric), _value(document["whole"]["fp32_metrics"], metric)
    whole = (0.0, 0.0) if metric is None else _value(document["whole"]["metrics"], metric)
    targets = [target for model in document["models"] if (target := finite(model["target"])) is not None]

    def paint(figure: Any) -> None:
        axes = framed(figure, left=58, top=22)
        axes.grid(visible=False, axis="x")
        for target in targets:
            axes.axvline(target, color=MUTED, linewidth=0.8, linestyle=(0, (2, 3)), zorder=0.8)
        bars = [(point.speed, point.value, point.se) for point in points]
        bars += [] if whole is None else [(1.0, *whole)]
        axes.plot(*zip(*((x, y) for x, y, _ in sorted(bars)), strict=True), color=SERIES[1], linewidth=1.0, zorder=1)
        for x, y, se in bars:
            axes.errorbar([x], [y], yerr=[se], color=MUTED, linewidth=1.0, capsize=3 if se else 0, zorder=2)
        if whole is not None:
            style = {"color": SERIES[0], "markeredgecolor": PAPER, "zorder": 3}
            axes.plot([1], [whole[0]], "s", markersize=9, clip_on=False, **style)
        for point in points:
            ends = [[point.speed - point.low], [point.high - point.speed]]
            axes.errorbar([point.speed], [point.value], xerr=ends, color=MUTED, linewidth=1.0, capsize=3, zorder=2)
            mark, fill, edge = ("o", SERIES[1], PAPER) if point.kept else ("D", PAPER, BAD)
            style = {"color": fill, "markeredgecolor": edge, "markeredgewidth": 1.0 if point.kept else 2.0, "zorder": 3}
            axes.plot([point.speed], [point.value], mark, markersize=9 if point.kept else 8, clip_on=False, **style)
        across = [1.0, *targets, *(end for point in points for end in (point.low, point.high))]
        reached = [y + side * se for x, y, se in bars for side in (-1, 1)]
        reached += [] if fp32 is None else [fp32[0]]
        room, rise = 0.14 * (max(across) - min(across)), 0.16 * (max(reached) - min(reached)) or 1.0
        axes.set_xlim(min(across) - room, max(across) + room)
        axes.set_ylim(min(reached) - rise, max(reached) + rise)
        few_ticks(axes.xaxis, "{x:g}×")
        few_ticks(axes.yaxis, "{x:g}")
        axes.set_xlabel("measured speed-up")
        axes.set_ylabel(name if metric is None else f"{name}, %")
        if fp32 is not None:
            axes.axhline(fp32[0], color=INK, linewidth=1.2, linestyle=(0, (4, 3)), zorder=0.9)
            style = {"xycoords": axes.get_yaxis_transform(), "ha": "right", "fontsize": SMALL}
            write(axes, f"whole, fp32: {fp32[0]:.1f} %", (0.99, fp32[0]), (0, 4), **style)
        labels = [Label(point.speed, point.value, shorten(point.name, 12), 6.0) for point in points]
        put_labels(axes, [*labels, *_obstacles(axes, sorted(bars), fp32)], size=SMALL)

    spoken = "; ".join(
        f"{point.name} {times(point.speed)}, {digits(point.value) if metric is None else f'{point.value:.1f} %'}"
        for point in points
    )
    return draw(identity, 290, paint, label=f"{name} against measured speed: {spoken}", title=name)


def _obstacles(
    axes: Any, bars: Sequence[tuple[float, float, float]], fp32: tuple[float, float] | None
) -> Iterator[Label]:
    """Labels without words along all lines, of which the others lie clear."""
    for (x, y, _), (to_x, to_y, _) in itertools.pairwise(bars):
        for share in np.linspace(0, 1, 16):
            yield Label(x + share * (to_x - x), y + share * (to_y - y), "", 2.0)
    for x, y, se in bars:
        yield from (Label(x, y + share * se, "", 2.0) for share in (-1.0, -0.5, 0.5, 1.0))
    if fp32 is not None:
        yield from (Label(x, fp32[0], "", 3.0) for x in np.linspace(min(axes.get_xlim()), max(axes.get_xlim()), 48))


def _quantity(document: Family, metric: str | None) -> str:
    return loss_name(document) if metric is None else metric_name(metric)


def _point(model: Mapping[str, Any], metric: str | None) -> _Point | None:
    """None where its speed or the metric is unknown; without a metric, its loss."""
    measured, loss = model["measured"] or {}, finite(model["loss"])
    speed = finite(measured.get("speedup"))
    found = _value(model["metrics"], metric) if metric is not None else None if loss is None else (loss, 0.0)
    if speed is None or found is None:
        return None
    low, high = finite(measured["low"]), finite(measured["high"])
    low, high = (speed, speed) if low is None or high is None else (min(low, speed), max(high, speed))
    return _Point(str(model["name"]), speed, low, high, *found, bool(model["kept"]))


def _value(metrics: Mapping[str, Any] | None, metric: str | None) -> tuple[float, float] | None:
    """A metric and its standard error, in percent."""
    found = None if metric is None else metric_in(metrics, metric)
    return None if found is None else (100 * found["value"], 100 * (finite(found.get("se")) or 0.0))


def sizes_figure(document: Family) -> Figure | None:
    """What is left of each block: a row for each model, a column for each block, kind by kind."""
    if not document["models"] or not document["blocks"]:
        return None
    drawings = [
        _sizes(f"sizes-{number}", document, kind, places)
        for number, (kind, places) in enumerate(parts(document["blocks"]).items())
    ]
    caption = (
        "A row is a model and a column a block, numbered by its layer: filled as far as heads or neurons are left, "
        "hollow where nothing is. At the right, the share that is left of all of them."
    )
    return Figure("sizes", "Sizes left in each block", caption, tuple(drawings))


def _sizes(identity: str, document: Family, kind: str, places: Sequence[int]) -> Drawing:
    models, blocks = document["models"], [document["blocks"][place] for place in places]
    shares = [
        [model["sizes"][place] / block["count"] for place, block in zip(places, blocks, strict=True)]
        for model in models
    ]
    total = sum(block["count"] for block in blocks)
    left_of = [sum(model["sizes"][place] for place in places) / total for model in models]
    left, right, row, bar = 58.0, 50.0, 38.0, 28.0
    width = min((WIDTH - left - right) / len(blocks), 44.0)
    step = -(-18 // width)  # so that numbers do not touch

    def paint(figure: Any) -> None:
        axes = pixels(figure)
        across = left + width * (np.arange(len(blocks)) + 0.5)
        for number, (model, own) in enumerate(zip(models, shares, strict=True)):
            base = row * number + bar + 4
            axes.text(0, base - bar / 2 + 4, shorten(str(model["name"]), 8), fontsize=NAME)
            axes.text(WIDTH, base - bar / 2 + 4, percent(left_of[number]), fontsize=SMALL, ha="right")
            edge = ["none" if share else MUTED for share in own]
            axes.bar(across, -bar, bottom=base, width=width - 2, color=TRACK, edgecolor=edge, linewidth=0.8)
            axes.bar(across, [-bar * share for share in own], bottom=base, width=width - 2, color=_COLOURS[kind])
        for number, (x, block) in enumerate(zip(across, blocks, strict=True)):
            if number % step == 0:
                found = re.search(r"\d+", str(block["name"]))
                style = {"fontsize": SMALL, "color": MUTED, "ha": "center"}
                axes.text(x, row * len(models) + 12, found[0][:4] if found else str(number), **style)

    label = f"Left of {KINDS[kind]}: " + "; ".join(
        f"{model['name']} {percent(share)}: {', '.join(f'{100 * part:.0f}' for part in own)}"
        for model, share, own in zip(models, left_of, shares, strict=True)
    )
    what = "neurons" if kind == "feed_forward" else "heads"
    return draw(identity, row * len(models) + 18, paint, label=label, title=f"{KINDS[kind]}: {what}")


def costs_figure(document: Family) -> Figure | None:
    """What a block takes by its size, a drawing for each shape of block."""
    tables = {shape: rows for shape, rows in document["costs"]["tables"].items() if len(rows) > 1}
    if not tables:
        return None
    drawings = [_costs(f"costs-{number}", shape, rows) for number, (shape, rows) in enumerate(tables.items())]
    fixed, dense = finite(document["costs"]["fixed_ms"]), finite(document["costs"]["dense_ms"])
    caption = "Milliseconds of one block by what is left of it. Broken line: if time were in proportion to size."
    if fixed is not None and dense:
        caption += (
            f" Beside its blocks the model takes {duration(fixed)} that no pruning changes, {percent(fixed / dense)} "
            "of its time."
        )
    return Figure("costs", "Costs by size", caption, tuple(drawings))


def _costs(identity: str, shape: str, rows: Sequence[tuple[int, float]]) -> Drawing:
    kind, title = _shape(shape)

    def paint(figure: Any) -> None:
        axes = framed(figure, right=24)
        size, taken = zip(*rows, strict=True)
        axes.plot([0, size[-1]], [0, taken[-1]], color=MUTED, linewidth=1.0, linestyle=(0, (4, 3)))
        axes.plot(size, taken, "o-", color=_COLOURS.get(kind, SERIES[3]), markersize=4, linewidth=1.6, clip_on=False)
        axes.set_xlim(0, 1.04 * size[-1])
        axes.set_ylim(0, 1.08 * max(*taken, 1e-9))
        few_ticks(axes.xaxis, "{x:,.0f}", whole=True)
        few_ticks(axes.yaxis, "{x:g}")
        axes.set_xlabel({"feed_forward": "neurons", "attention": "heads", "cross_attention": "heads"}.get(kind, "size"))
        axes.set_ylabel("ms")

    label = f"Costs of {title}: " + ", ".join(f"{digits(taken)} ms with {size:,}" for size, taken in rows)
    return draw(identity, 210, paint, label=label, title=title)


def _shape(shape: str) -> tuple[str, str]:
    """The kind of block, and for people what it is: ``attention: 12 heads of 32, 384 wide``."""
    found = _SHAPE.fullmatch(shape)
    if found is None or found[1] not in KINDS:
        return "", shorten(shape, 60)
    kind, wide, count, inner = found[1], *map(int, found.groups()[1:])
    if kind != "feed_forward":
        return kind, f"{KINDS[kind]}: {count:,} heads of {inner}, {wide:,} wide"
    return kind, f"{KINDS[kind]}: {count:,} neurons{', gated' if inner > 1 else ''}, {wide:,} wide"


def make_family_figures(document: Family) -> list[Figure]:
    """All figures that ``document`` has data for, the most important first."""
    return list(filter(None, (speed_figure(document), sizes_figure(document), costs_figure(document))))


def score_or_loss(document: Family, model: Mapping[str, Any]) -> str | None:
    """A model's metric; where no model has one, its loss; None where that is unknown."""
    metric, loss = scored(document), finite(model["loss"])
    if metric is None:
        return None if loss is None else digits(loss)
    found = metric_in(model["metrics"], metric)
    return None if found is None else score(found["value"])
