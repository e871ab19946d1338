"""Density, losses and metric along the steps of a training run; phases are shaded in turn behind them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from compactor.reporting.canvas import GRID, INK, MUTED, PAPER, SERIES, TRACK, Drawing, draw, framed, shorten
from compactor.reporting.figures.figure import NAME, SMALL, Figure, Key, few_ticks
from compactor.reporting.labels import Label, put_labels, spread
from compactor.reporting.numbers import digits, percent
from compactor.reporting.training_figures.values import Training, final_metric, finite
from compactor.reporting.words import metric_name

_MOST_POINTS = 240  # of a line: as many as one sees
_SHARES = (("density_attention", 1, "A", "attention"), ("density_feed_forward", 2, "F", "feed-forward"))
_ALL = ("density", 0, "L", "all prunable linear weights")
_QUARTERS = (0, 25, 50, 75, 100)  # percent


@dataclasses.dataclass(frozen=True)
class _Line:
    """Values along the steps, of which one that is not known is nan."""

    steps: np.ndarray
    values: np.ndarray
    series: int
    mark: str = ""  # at its end

    @property
    def last(self) -> tuple[float, float] | None:
        """The last point that is known."""
        known = np.flatnonzero(np.isfinite(self.values))
        return (float(self.steps[known[-1]]), float(self.values[known[-1]])) if len(known) else None


@dataclasses.dataclass(frozen=True)
class _Panel:
    """Lines on axes of their own, below the panel before and along the same steps."""

    name: str  # above it, with the last value; empty for none
    height: float  # pixels
    lines: tuple[_Line, ...]
    shares: bool = False  # whether the values are shares of one


def density_figure(document: Training) -> Figure | None:
    """The share of the weights that is left, along the steps; below it the threshold and λ."""
    shown = [share for share in (_ALL, *_SHARES) if _is_known(document, share[0])]
    if not shown:
        return None
    lines = tuple(_line(document, field, series, mark) for field, series, mark, _ in shown)
    panels = [_Panel("", 176, lines, shares=True)]
    for field, name in (("threshold", "threshold"), ("lambda", "λ")):
        if _is_known(document, field):
            panels.append(_Panel(name, 40, (_line(document, field, 3),)))
    label = "Density along the steps: " + "; ".join(
        f"{name} {percent(line.last[1])} at step {line.last[0]:,.0f}"
        for (_, _, _, name), line in zip(shown, lines, strict=True)
        if line.last is not None
    )
    caption = "Share of the weights that the current masks leave, in percent, along the steps."
    if len(panels) > 1:
        caption += (
            f" Below, thin: {' and '.join(panel.name for panel in panels[1:])}, with the last value at the right."
        )
    keys = tuple(Key(series, mark, name) for _, series, mark, name in shown)
    return Figure("density", "Density", caption, (_over_time("density-0", document, panels, label),), keys)


def losses_figure(document: Training) -> Figure | None:
    """The parts of the loss along the steps, each on its own scale; the loss itself where its parts are unknown."""
    parts = (("task_loss", "task"), ("distillation_loss", "distillation"), ("regularization", "regularization"))
    shown = [part for part in parts if _is_known(document, part[0])]
    if not shown:
        shown = [("loss", "loss")] if _is_known(document, "loss") else []
    if not shown:
        return None
    height = 78.0 if len(shown) > 1 else 176.0
    panels = [
        _Panel(name, height, (_line(document, field, 5 + index),)) for index, (field, name) in enumerate(shown)
    ]  # colours that no kind of layer has
    label = "Losses along the steps: " + "; ".join(
        f"{panel.name} {digits(panel.lines[0].last[1])} at last" for panel in panels if panel.lines[0].last is not None
    )
    caption = "Each part on a scale of its own, from zero, with its last value at the right; lower is better."
    group = _group(len(document["log"]))
    if group > 1:
        caption += f" A point is the mean of {group} entries of the log."
    return Figure("losses", "Losses", caption, (_over_time("losses-0", document, panels, label),))


def metric_figure(document: Training) -> Figure | None:
    """The metric of each evaluation, along the steps and against the density; None without an evaluation."""
    metric = document["metric"]
    found = [
        (step, finite(evaluation["density"]), value)
        for evaluation in document["evaluations"]
        if (value := finite(evaluation["metrics"].get(metric))) is not None
        and (step := finite(evaluation["step"])) is not None
    ]
    if not found:
        return None
    name = metric_name(metric)
    final, teacher = final_metric(document, "metrics"), final_metric(document, "teacher_metrics")
    drawings = [_metric_over_time(document, name, [(step, value) for step, _, value in found], final, teacher)]
    places = [(density, value) for _, density, value in found if density is not None]
    end = finite(document["final"]["density"]) if document["final"] else None
    if places:
        drawings.append(_metric_by_density(name, places, None if end is None else final, end, teacher))
    caption = f"A dot is an evaluation with the masks of its step: {name}, in percent."
    if final is not None:
        caption += " The diamond is the final model, read back from disk, with its standard error."
    if teacher is not None:
        caption += " Broken line: the teacher."
    if places:
        caption += " Against density, up and to the left is better; the line goes from evaluation to evaluation."
    return Figure("metric", name.capitalize(), caption, tuple(drawings))


def _is_known(document: Training, field: str) -> bool:
    return any(finite(entry.get(field)) is not None for entry in document["log"])


def _group(entries: int) -> int:
    """How many entries of a log make a point."""
    return max(1, -(-entries // _MOST_POINTS))


def _line(document: Training, field: str, series: int, mark: str = "") -> _Line:
    log = document["log"]
    steps = [float(entry["step"]) for entry in log]
    values = [finite(entry.get(field)) for entry in log]
    group = _group(len(log))
    parts = [slice(first, first + group) for first in range(0, len(log), group)]
    return _Line(
        np.array([np.mean(steps[part]) for part in parts]),
        np.array([_mean(values[part]) for part in parts]),
        series,
        mark,
    )


def _mean(values: Iterable[float | None]) -> float:
    """Of those that are known; nan without any."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else math.nan


def _last_step(document: Training) -> float:
    """Where the axis of the steps ends: the plan's end, or what was reached beyond it."""
    steps = [phase["last"] for phase in document["phases"]]
    steps += [entry["step"] for entry in (*document["log"], *document["evaluations"])]
    return float(max(steps, default=0)) or 1.0


def _over_time(identity: str, document: Training, panels: Sequence[_Panel], label: str) -> Drawing:
    """Panels below each other, along the same steps."""
    gap, top, bottom = 26.0, 40.0 if panels[0].name else 22.0, 38.0
    height = top + bottom + sum(panel.height for panel in panels) + gap * (len(panels) - 1)

    def paint(figure: Any) -> None:
        above = top
        for place, panel in enumerate(panels):
            axes = framed(figure, right=24, top=above, bottom=height - above - panel.height)
            _paint_panel(axes, panel)
            _step_axis(axes, document, named=place == len(panels) - 1)
            _phases(axes, document, raised=18.0 * bool(panel.name) if place == 0 else None)
            above += panel.height + gap

    return draw(identity, height, paint, label=label)


def _paint_panel(axes: Any, panel: _Panel) -> None:
    factor = 100 if panel.shares else 1
    thin = len(panel.lines) == 1 and panel.height < 60
    for line in panel.lines:
        few = np.isfinite(line.values).sum() <= 12  # a line between gaps may be a point
        axes.plot(
            line.steps,
            factor * line.values,
            color=SERIES[line.series],
            linewidth=1.2 if thin else 1.8,
            marker="o" if few else "",
            markersize=3,
            solid_joinstyle="round",
            clip_on=False,
        )
    known = [factor * value for line in panel.lines for value in line.values if math.isfinite(value)]
    if panel.shares:
        axes.set_ylim(0, max(100.0, *known) * 1.02)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g} %")
        axes.set_yticks(_QUARTERS)
    else:
        low, high = min(0.0, *known), max(0.0, *known)
        axes.set_ylim(low, high + 0.08 * (high - low) if high > low else low + 1.0)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.4g}")
        few_ticks(axes.yaxis, most=2 if thin else 3)
    ends = [(line.mark, line.last) for line in panel.lines if line.mark and line.last is not None]
    heights = [float(axes.transData.transform((x, factor * y))[1]) for _, (x, y) in ends]
    for (mark, (x, y)), height, moved in zip(ends, heights, spread(heights, 12.5), strict=True):
        axes.annotate(
            mark,
            (x, factor * y),
            (6, moved - height - 4),
            textcoords="offset points",  # a point is a pixel here
            fontsize=NAME,
            fontweight="bold",
            annotation_clip=False,
        )
    if panel.name:
        last = panel.lines[0].last
        for x, text, side in ((0.0, panel.name, "left"), (1.0, "" if last is None else digits(last[1]), "right")):
            axes.annotate(
                text,
                (x, 1.0),
                (0, 6),
                xycoords="axes fraction",
                textcoords="offset points",
                ha=side,
                fontsize=SMALL,
                fontweight="bold",
            )


def _step_axis(axes: Any, document: Training, *, named: bool = True) -> None:
    axes.set_xlim(0, _last_step(document))
    few_ticks(axes.xaxis, whole=True)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    if named:
        axes.set_xlabel("step")
    else:
        axes.tick_params(axis="x", labelbottom=False)


def _phases(axes: Any, document: Training, *, raised: float | None) -> None:
    """Shade every other phase, and name all of them ``raised`` pixels above the axes; None names none."""
    phases = [phase for phase in document["phases"] if phase["last"] > phase["first"]]
    for place, phase in enumerate(phases):
        if place % 2 == 0:
            axes.axvspan(phase["first"], phase["last"], color=TRACK, linewidth=0, zorder=0)
        if place:
            axes.axvline(phase["first"], color=GRID, linewidth=1.0, zorder=0.6)
    if raised is None or not phases:
        return
    names = [shorten(str(phase["name"]), 14) for phase in phases]
    width = 6.0 * max(map(len, names)) + 8
    left, right = axes.bbox.x0, axes.bbox.x1
    centres = [float(axes.transData.transform(((phase["first"] + phase["last"]) / 2, 0))[0]) - left for phase in phases]
    places = spread(centres, width)
    over = max(0.0, places[-1] + width / 2 - (right - left) - 20)  # so much may hang over, at either side
    for name, centre in zip(names, places, strict=True):
        axes.annotate(
            name,
            (0, 1),
            (centre - over, raised + 7),
            xycoords="axes fraction",
            textcoords="offset points",
            ha="center",
            color=MUTED,
            fontsize=SMALL,
        )


def _metric_over_time(
    document: Training,
    name: str,
    points: Sequence[tuple[float, float]],
    final: tuple[float, float] | None,
    teacher: tuple[float, float] | None,
) -> Drawing:
    end = _last_step(document)

    def paint(figure: Any) -> None:
        axes = framed(figure, right=24, top=22)
        _evaluations(axes, points)
        _metric_axis(axes, name, [value for _, value in points], final, teacher)
        _step_axis(axes, document)
        _phases(axes, document, raised=0.0)
        _ends(axes, points, final, end)
        _teacher(axes, teacher, 0.98)  # late in the training the metric is below it

    return draw(
        "metric-0",
        250,
        paint,
        label=f"{name} along the steps: "
        + ", ".join(f"{percent(value)} at step {step:,.0f}" for step, value in _some(points)),
        title="along the steps",
    )


def _metric_by_density(
    name: str,
    points: Sequence[tuple[float, float]],
    final: tuple[float, float] | None,
    density: float | None,
    teacher: tuple[float, float] | None,
) -> Drawing:
    shares = [(100 * density, value) for density, value in points]

    def paint(figure: Any) -> None:
        axes = framed(figure, right=24, top=22)
        _evaluations(axes, shares)
        _metric_axis(axes, name, [value for _, value in points], final, teacher)
        axes.set_xlim(0, 104)
        axes.set_xticks(_QUARTERS)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g} %")
        axes.set_xlabel("density")
        _ends(axes, shares, final, None if density is None else 100 * density)
        _teacher(axes, teacher, 0.02)

    spoken = ", ".join(f"{percent(value)} at {percent(density)}" for density, value in _some(points))
    if final is not None and density is not None:
        spoken += f"; final {percent(final[0])} at {percent(density)}"
    return draw("metric-1", 250, paint, label=f"{name} against density: {spoken}", title="against density")


def _evaluations(axes: Any, points: Sequence[tuple[float, float]]) -> None:
    x, y = zip(*points, strict=True)
    axes.plot(x, 100 * np.array(y), color=SERIES[1], linewidth=1.2)
    axes.plot(x, 100 * np.array(y), "o", color=SERIES[1], markersize=5 if len(points) <= 40 else 3, clip_on=False)


def _metric_axis(
    axes: Any,
    name: str,
    values: Sequence[float],
    final: tuple[float, float] | None,
    teacher: tuple[float, float] | None,
) -> None:
    reached = [100 * value for value in values]
    if final is not None:
        reached += [100 * (final[0] - final[1]), 100 * (final[0] + final[1])]
    if teacher is not None:
        reached.append(100 * teacher[0])
    low, high = min(reached), max(reached)
    room = max(0.14 * (high - low), 1.0)
    axes.set_ylim(low - room, high + room)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    few_ticks(axes.yaxis)
    axes.set_ylabel(f"{name}, %")


def _ends(axes: Any, points: Sequence[tuple[float, float]], final: tuple[float, float] | None, x: float | None) -> None:
    """The final model's point at ``x``, its label clear of the ``points``; the limits of ``axes`` are final."""
    if final is None or x is None:
        return
    value, error = 100 * final[0], 100 * final[1]
    axes.errorbar([x], [value], yerr=[error], color=MUTED, linewidth=1.0, capsize=3, zorder=3)
    axes.plot([x], [value], "D", color=INK, markeredgecolor=PAPER, markersize=9, zorder=4, clip_on=False)
    others = [Label(x, 100 * value, "", 4.0) for x, value in points]
    put_labels(axes, [Label(x, value, f"final {percent(final[0])}", 7.0), *others], size=SMALL)


def _teacher(axes: Any, teacher: tuple[float, float] | None, place: float) -> None:
    """The teacher's line, with its label above it at ``place``, a share of the width."""
    if teacher is None:
        return
    axes.axhline(100 * teacher[0], color=INK, linewidth=1.2, linestyle=(0, (4, 3)), zorder=2)
    axes.annotate(
        f"teacher {percent(teacher[0])}",
        (place, 100 * teacher[0]),
        (0, 4),
        xycoords=axes.get_yaxis_transform(),
        textcoords="offset points",
        ha="left" if place < 0.5 else "right",
        fontsize=SMALL,
        fontweight="bold",
    )


def _some(points: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    """Few enough to be read aloud: the first and the last ones where there are many."""
    return points if len(points) <= 12 else (*points[:4], *points[-8:])
