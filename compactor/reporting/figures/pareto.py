"""Speed, quality and size of the variants in one picture."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from compactor.reporting.canvas import MUTED, PAPER, SERIES, draw, framed
from compactor.reporting.figures.figure import NAME, SMALL, Figure, few_ticks, legend, marks, series_numbers
from compactor.reporting.labels import Label, put_labels
from compactor.reporting.numbers import bytes_text, digits, percent
from compactor.reporting.words import (
    Report,
    Row,
    baseline_row,
    is_server,
    measured,
    metric_name,
    metric_of,
    primary_metric,
    result_of,
)


def pareto_figure(report: Report) -> Figure | None:
    """Speed, quality and file size in one picture; None with fewer than two variants to show."""
    places = [place for row in measured(report) if (place := _place(report, row)) is not None]
    if len(places) < 2:
        return None
    metric = primary_metric(report)
    with_quality = all(place.quality is not None for place in places)
    if not with_quality:
        places = [place for place in places if place.size is not None]
        if len(places) < 2:
            return None
    speed = _speed_words(report)
    if with_quality and metric is not None:
        title = f"Speed, {metric_name(metric)}, size"
        caption = (
            f"Up and to the right is better: {speed} across, {metric_name(metric)} with its standard error upwards. "
            "The area of a dot is the file's size; smaller is better."
        )
        paint = _pareto_quality
    else:
        title = "Speed and size"
        caption = f"Down and to the right is better: {speed} across, the file's size upwards. Quality was not measured."
        paint = _pareto_size
    drawing = draw(
        "pareto-0",
        270,
        lambda figure: paint(report, figure, places, speed),
        label=f"{title}: " + "; ".join(_spoken_place(place) for place in places),
    )
    return Figure("pareto", title, caption, (drawing,), legend(report, {place.row["id"] for place in places}))


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where a variant stands in the Pareto plot; None is unknown."""

    row: Row
    speed: float
    quality: float | None
    se: float
    size: int | None


def _place(report: Report, row: Row) -> _Place | None:
    """Its speed in the first case, or its best rate; None without one."""
    if is_server(report):
        speed = row["server"]["best_qps"]
    else:
        result = result_of(row, report["workload"]["cases"][0]["id"])
        base = result_of(baseline_row(report), report["workload"]["cases"][0]["id"])
        if result is None:
            return None
        if base is None:
            speed = result["throughput"]["examples_per_s"]
        else:
            speed = 1.0 if result["ratio"] is None else result["ratio"]["value"]
    if speed is None:
        return None
    found = metric_of(row, primary_metric(report))
    return _Place(
        row,
        float(speed),
        None if found is None else found["value"],
        0.0 if found is None else found["se"],
        row["counters"]["file_bytes"],
    )


def _speed_words(report: Report) -> str:
    if is_server(report):
        return "highest rate under the bound, requests/s"
    case = report["workload"]["cases"][0]["id"]
    return f"examples/s at {case}" if baseline_row(report) is None else f"speed-up at {case}"


def _spoken_place(place: _Place) -> str:
    quality = "" if place.quality is None else f", {percent(place.quality)}"
    return f"{place.row['name']}: {digits(place.speed)}{quality}, {_size(place)}"


def _size(place: _Place) -> str:
    return "size unknown" if place.size is None else bytes_text(place.size)


def _pareto_quality(report: Report, figure: Any, places: Sequence[_Place], speed: str) -> None:
    numbers, names = series_numbers(report), marks(report)
    axes = framed(figure, left=58)
    largest = max((place.size or 0 for place in places), default=0) or 1
    labels = []
    for place in sorted(places, key=lambda place: -(place.size or 0)):  # a small dot lies on a large one
        colour = SERIES[numbers[place.row["id"]]]
        assert place.quality is not None
        value = 100 * place.quality
        axes.errorbar([place.speed], [value], yerr=[100 * place.se], color=MUTED, linewidth=1.0, capsize=3, zorder=2)
        area = max(900 * (place.size or 0) / largest, 14.0)
        filled = place.size is not None
        axes.scatter(
            [place.speed],
            [value],
            s=area,
            color=colour if filled else "none",
            edgecolors=PAPER if filled else colour,
            linewidths=1.0,
            zorder=3,
            clip_on=False,
        )
        labels.append(Label(place.speed, value, f"{names[place.row['id']]}: {_size(place)}", 0.56 * area**0.5))
    axes.set_ylabel(f"{metric_name(primary_metric(report) or 'quality')}, %")
    values = [100 * place.quality for place in places if place.quality is not None]
    reach = max(max(100 * place.se for place in places), 0.25)
    axes.set_ylim(min(values) - 1.7 * reach, max(values) + 1.7 * reach)
    _speed_axis(axes, places, speed)
    few_ticks(axes.yaxis)
    put_labels(axes, labels, size=SMALL)


def _pareto_size(report: Report, figure: Any, places: Sequence[_Place], speed: str) -> None:
    numbers, names = series_numbers(report), marks(report)
    axes = framed(figure, left=58)
    labels = []
    for place in places:
        assert place.size is not None
        axes.plot([place.speed], [place.size / 1e6], "o", color=SERIES[numbers[place.row["id"]]], markersize=10)
        labels.append(Label(place.speed, place.size / 1e6, names[place.row["id"]], 6.0))
    axes.set_ylabel("file, MB")
    axes.set_ylim(0, 1.15 * max(place.size or 0 for place in places) / 1e6)
    _speed_axis(axes, places, speed)
    few_ticks(axes.yaxis)
    put_labels(axes, labels, size=NAME)


def _speed_axis(axes: Any, places: Sequence[_Place], words: str) -> None:
    axes.set_xlim(0, 1.22 * max(place.speed for place in places))
    few_ticks(axes.xaxis)
    if words.startswith("speed-up"):
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}×")
    else:
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    axes.set_xlabel(words)
