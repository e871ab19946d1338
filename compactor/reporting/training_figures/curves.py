"""Density, losses and metric along the steps of a training run; phases are shaded in turn behind them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compactor.reporting.canvas import GRID, INK, MUTED, PAPER, SERIES, TRACK, Drawing, draw, framed, shorten
from compactor.reporting.figures.figure import (
    NAME,
    SMALL,
    Figure,
    Key,
    Label,
    few_ticks,
    name_ends,
    put_labels,
    spread,
    write,
)
from compactor.reporting.numbers import digits, percent
from compactor.reporting.rows import metric_name
from compactor.reporting.training_figures import Training, final_metric, finite

_MOST_POINTS = 240  # of a line: as many as one sees
_DENSITIES = {
    "density": Key(0, "L", "all prunable linear weights"),
    "density_attention": Key(1, "A", "attention"),
    "density_feed_forward": Key(2, "F", "feed-forward"),
}
_STEERED = {"threshold": Key(3, "", "threshold"), "lambda": Key(3, "", "λ")}
_LOSSES = {
    field: Key(5, "", field.removesuffix("_loss"))
    for field in ("task_loss", "distillation_loss", "hidden_loss", "regularization")
}
_QUARTERS = (0, 25, 50, 75, 100)  # percent

_Points = NDArray[np.float64]  # (2, n): steps, and values of which one that is not known is nan


@dataclasses.dataclass(frozen=True)
class _Panel:
    """Lines on axes of their own, below the panel before and along the same steps."""

    name: str  # above it, with the last value; empty for percentages, whose lines have marks at their ends
    height: float  # pixels
    lines: Sequence[tuple[Key, _Points]]


def density_figure(document: Training) -> Figure | None:
    """The share of the weights that is left, along the steps; below it the threshold and λ."""
    lines = [(key, points * [[1], [100]]) for key, points in _known(document, _DENSITIES)]
    if not lines:
        return None
    thin = [_Panel(key.text, 40, [(key, points)]) for key, points in _known(document, _STEERED)]
    label = "Density along the steps: " + "; ".join(
        f"{key.text} {_last(points)[1]:.1f} % at step {_last(points)[0]:,.0f}" for key, points in lines
    )
    caption = "Share of the weights that the current masks leave, in percent, along the steps."
    if thin:
        caption += f" Below, thin: {' and '.join(panel.name for panel in thin)}, with the last value at the right."
    drawing = _over_time("density-0", document, [_Panel("", 176, lines), *thin], label)
    return Figure("density", "Density", caption, (drawing,), tuple(key for key, _ in lines))


def losses_figure(document: Training) -> Figure | None:
    """The parts of the loss along the steps, each on its own scale; the loss itself where its parts are unknown."""
    shown = _known(document, _LOSSES) or _known(document, {"loss": Key(5, "", "loss")})
    if not shown:
        return None
    height = 78.0 if len(shown) > 1 else 176.0
    panels = [  # in colours that no kind of layer has
        _Panel(key.text, height, [(dataclasses.replace(key, series=series), points)])
        for series, (key, points) in enumerate(shown, min(5, len(SERIES) - len(shown)))
    ]
    label = "Losses along the steps: " + "; ".join(
        f"{key.text} {digits(_last(points)[1])} at last" for key, points in shown
    )
    caption = "Each part on a scale of its own, from zero, with its last value at the right; lower is better."
    group = _group(document)
    if group > 1:
        caption += f" A point is the mean of {group} entries of the log."
    return Figure("losses", "Losses", caption, (_over_time("losses-0", document, panels, label),))


def metric_figure(document: Training) -> Figure | None:
    """The metric of each evaluation, along the steps and against the density; None without an evaluation."""
    found = [
        (step, finite(evaluation["density"]), 100 * value)
        for evaluation in document["evaluations"]
        if (value := finite(evaluation["metrics"].get(document["metric"]))) is not None
        and (step := finite(evaluation["step"])) is not None
    ]
    if not found:
        return None
    name, final = metric_name(document["metric"]), final_metric(document)

    def paint_steps(axes: Any) -> None:
        _step_axis(axes, document)
        _phases(axes, document, raised=0.0)

    def paint_density(axes: Any) -> None:
        axes.set_xlim(0, 104)
        axes.set_xticks(_QUARTERS)
        axes.xaxis.set_major_formatter("{x:g} %")
        axes.set_xlabel("density")

    points = [(step, value) for step, _, value in found]
    label = f"{name} along the steps: " + ", ".join(f"{value:.1f} % at step {x:,.0f}" for x, value in _some(points))
    paint = _metric_painter(document, points, _last_step(document), paint_steps, 0.98)  # it is below the teacher's late
    drawings = [draw("metric-0", 250, paint, label=label, title="along the steps")]
    caption = f"A dot is an evaluation with the masks of its step: {name}, in percent."
    if final is not None:
        caption += " The diamond is the final model, read back from disk, with its standard error."
    if final_metric(document, "teacher_metrics") is not None:
        caption += " Broken line: the teacher."
    points = [(100 * density, value) for _, density, value in found if density is not None]
    if points:
        label = f"{name} against density: " + ", ".join(f"{value:.1f} % at {x:.1f} %" for x, value in _some(points))
        end = finite(document["final"]["density"]) if document["final"] else None
        if final is not None and end is not None:
            label += f"; final {percent(final['value'])} at {percent(end)}"
        paint = _metric_painter(document, points, None if end is None else 100 * end, paint_density, 0.02)
        drawings.append(draw("metric-1", 250, paint, label=label, title="against density"))
        caption += " Against density, up and to the left is better; the line goes from evaluation to evaluation."
    return Figure("metric", name.capitalize(), caption, tuple(drawings))


def _metric_painter(
    document: Training,
    points: Sequence[tuple[float, float]],
    end: float | None,
    paint_x: Callable[[Any], None],
    teacher_at: float,
) -> Callable[[Any], None]:
    """What draws the metric at ``points``, in percent; the final model at ``end``; the teacher's name ``teacher_at``.

    That is a share of the width; None shows no final model. ``paint_x`` makes the axis across.
    """
    final, teacher = final_metric(document), final_metric(document, "teacher_metrics")

    def paint(figure: Any) -> None:
        axes = framed(figure, right=24, top=22)
        x, y = zip(*points, strict=True)
        axes.plot(x, y, color=SERIES[1], linewidth=1.2)
        axes.plot(x, y, "o", color=SERIES[1], markersize=5 if len(points) <= 40 else 3, clip_on=False)
        paint_x(axes)
        few_ticks(axes.yaxis, "{x:g}")
        axes.set_ylabel(f"{metric_name(document['metric'])}, %")
        reached, labels = [*y], []
        if final is not None and end is not None:
            value, error = 100 * final["value"], 100 * (finite(final.get("se")) or 0.0)
            axes.errorbar([end], [value], yerr=[error], color=MUTED, linewidth=1.0, capsize=3, zorder=3)
            axes.plot([end], [value], "D", color=INK, markeredgecolor=PAPER, markersize=9, zorder=4, clip_on=False)
            labels = [Label(end, value, f"final {percent(final['value'])}", 7.0)]
            labels += [Label(x, y, "", 4.0) for x, y in points]  # that it lies clear of them
            reached += [value - error, value + error]
        if teacher is not None:
            axes.axhline(100 * teacher["value"], color=INK, linewidth=1.2, linestyle=(0, (4, 3)), zorder=2)
            style = {"xycoords": axes.get_yaxis_transform(), "ha": "left" if teacher_at < 0.5 else "right"}
            text = f"teacher {percent(teacher['value'])}"
            write(axes, text, (teacher_at, 100 * teacher["value"]), (0, 4), fontsize=SMALL, **style)
            reached.append(100 * teacher["value"])
        room = max(0.14 * (max(reached) - min(reached)), 1.0)
        axes.set_ylim(min(reached) - room, max(reached) + room)
        put_labels(axes, labels, size=SMALL)

    return paint


def _some(points: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    """Few enough to be read aloud: the first and the last ones where there are many."""
    return points if len(points) <= 12 else (*points[:4], *points[-8:])


def _group(document: Training) -> int:
    """How many entries of the log make a point."""
    return max(1, -(-len(document["log"]) // _MOST_POINTS))


def _known(document: Training, fields: Mapping[str, Key]) -> list[tuple[Key, _Points]]:
    """Those of the ``fields`` that the log knows, along the steps; a point is the mean of what is known in a group."""
    log, group = document["log"], _group(document)
    found = []
    for field, key in fields.items():
        values = np.array([(entry["step"], entry.get(field)) for entry in log], dtype=float).reshape(-1, 2)
        if np.isfinite(values[:, 1]).any():
            parts = [values[first : first + group] for first in range(0, len(log), group)]
            known = [part[np.isfinite(part[:, 1]), 1] for part in parts]
            steps = [part[:, 0].mean() for part in parts]
            found.append((key, np.array([steps, [part.mean() if len(part) else np.nan for part in known]])))
    return found


def _last(points: _Points) -> tuple[float, float]:
    """The last point that is known."""
    step, value = points[:, np.isfinite(points[1])][:, -1]
    return float(step), float(value)


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
    thin = panel.height < 60
    for key, points in panel.lines:
        few = np.isfinite(points[1]).sum() <= 12  # a line between gaps may be a point
        width, mark = 1.2 if thin else 1.8, "o" if few else ""
        axes.plot(*points, color=key.colour, linewidth=width, marker=mark, markersize=3, clip_on=False)
    values = np.concatenate([points[1] for _, points in panel.lines])
    low, high = min(0.0, np.nanmin(values)), max(0.0, np.nanmax(values))
    if panel.name:
        axes.set_ylim(low, high + 0.08 * (high - low) if high > low else low + 1.0)
        few_ticks(axes.yaxis, "{x:,.4g}", most=2 if thin else 3)
        last = digits(_last(panel.lines[0][1])[1])
        for x, text, side in ((0.0, panel.name, "left"), (1.0, last, "right")):
            write(axes, text, (x, 1.0), (0, 6), xycoords="axes fraction", ha=side, fontsize=SMALL)
    else:
        axes.set_ylim(0, max(100.0, high) * 1.02)
        axes.yaxis.set_major_formatter("{x:g} %")
        axes.set_yticks(_QUARTERS)
        name_ends(axes, [(key.mark, _last(points)) for key, points in panel.lines], size=NAME, offset=6, gap=12.5)


def _step_axis(axes: Any, document: Training, *, named: bool = True) -> None:
    axes.set_xlim(0, _last_step(document))
    few_ticks(axes.xaxis, "{x:,.0f}", whole=True)
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
    scale = axes.bbox.width / _last_step(document)
    places = spread([scale * (phase["first"] + phase["last"]) / 2 for phase in phases], width)
    over = max(0.0, places[-1] + width / 2 - axes.bbox.width - 20)  # so much may hang over, at either side
    style = {"xycoords": "axes fraction", "ha": "center", "color": MUTED, "fontsize": SMALL, "fontweight": "normal"}
    for name, centre in zip(names, places, strict=True):
        write(axes, name, (0, 1), (centre - over, raised + 7), **style)
