"""Speed, quality and size of the variants in one picture."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from compactor.reporting.canvas import MUTED, PAPER, draw, framed
from compactor.reporting.figures.figure import NAME, SMALL, Figure, Key, Label, few_ticks, put_labels, variant_keys
from compactor.reporting.numbers import bytes_text, digits
from compactor.reporting.rows import Report, baseline_row, is_server, measured, primary_metric, quality_of, result_of


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where a variant stands; None is unknown."""

    key: Key
    speed: float
    quality: float | None  # percent
    se: float
    size: int | None

    @property
    def size_words(self) -> str:
        return "size unknown" if self.size is None else bytes_text(self.size)


def pareto_figure(report: Report) -> Figure | None:
    """Speed, quality and file size in one picture; None with fewer than two variants to show."""
    places, name = _places(report), primary_metric(report)
    with_quality = all(place.quality is not None for place in places)
    if not with_quality:
        places = [place for place in places if place.size is not None]
    if len(places) < 2:
        return None
    case = _first_case(report)
    if is_server(report):
        speed, form = "highest rate under the bound, requests/s", "{x:,g}"
    elif baseline_row(report) is None:
        speed, form = f"examples/s at {case}", "{x:,g}"
    else:
        speed, form = f"speed-up at {case}", "{x:g}×"
    if with_quality:
        title = f"Speed, {name}, size"
        caption = (
            f"Up and to the right is better: {speed} across, {name} with its standard error upwards. "
            "The area of a dot is the file's size; smaller is better."
        )
    else:
        title = "Speed and size"
        caption = f"Down and to the right is better: {speed} across, the file's size upwards. Quality was not measured."

    def paint(figure: Any) -> None:
        axes = framed(figure, left=58)
        if with_quality:
            labels, size = _paint_quality(axes, places, name), SMALL
        else:
            labels, size = _paint_size(axes, places), NAME
        axes.set_xlim(0, 1.22 * max(place.speed for place in places))
        few_ticks(axes.xaxis, form)
        axes.set_xlabel(speed)
        few_ticks(axes.yaxis)
        put_labels(axes, labels, size=size)

    spoken = "; ".join(
        f"{place.key.text}: {digits(place.speed)}"
        f"{'' if place.quality is None else f', {place.quality:.1f} %'}, {place.size_words}"
        for place in places
    )
    drawing = draw("pareto-0", 270, paint, label=f"{title}: {spoken}")
    return Figure("pareto", title, caption, (drawing,), tuple(place.key for place in places))


def _first_case(report: Report) -> str:
    return next((str(case["id"]) for case in report["workload"]["cases"]), "")  # that of a server has none


def _places(report: Report) -> list[_Place]:
    """Every variant with a speed: in the first case, or its best rate."""
    case, base, keys = _first_case(report), baseline_row(report), variant_keys(report)
    places = []
    for row in measured(report):
        result = result_of(row, case)
        if is_server(report):
            speed = row["server"]["best_qps"]
        elif result is None:
            speed = None
        elif base is None or result_of(base, case) is None:
            speed = result["throughput"]["examples_per_s"]
        else:
            speed = 1.0 if result["ratio"] is None else result["ratio"]["value"]
        if speed is not None:
            found = quality_of(report, row)
            quality, se = (None, 0.0) if found is None else (100 * found["value"], 100 * (found["se"] or 0.0))
            places.append(_Place(keys[row["id"]], float(speed), quality, se, row["counters"]["file_bytes"]))
    return places


def _paint_quality(axes: Any, places: Sequence[_Place], name: str) -> list[Label]:
    largest = max(place.size or 0 for place in places) or 1
    labels, reached = [], []
    for place in sorted(places, key=lambda place: -(place.size or 0)):  # a small dot lies on a large one
        assert place.quality is not None
        axes.errorbar([place.speed], [place.quality], yerr=[place.se], color=MUTED, linewidth=1.0, capsize=3, zorder=2)
        area = max(900 * (place.size or 0) / largest, 14.0)
        fill, edge = ("none", place.key.colour) if place.size is None else (place.key.colour, PAPER)
        style = {"color": fill, "edgecolors": edge, "linewidths": 1.0, "zorder": 3, "clip_on": False}
        axes.scatter([place.speed], [place.quality], s=area, **style)
        labels.append(Label(place.speed, place.quality, f"{place.key.mark}: {place.size_words}", 0.56 * area**0.5))
        reached.append(place.quality)
    axes.set_ylabel(f"{name}, %")
    room = 1.7 * max(0.25, *(place.se for place in places))
    axes.set_ylim(min(reached) - room, max(reached) + room)
    return labels


def _paint_size(axes: Any, places: Sequence[_Place]) -> list[Label]:
    labels = []
    for place in places:
        assert place.size is not None
        axes.plot([place.speed], [place.size / 1e6], "o", color=place.key.colour, markersize=10)
        labels.append(Label(place.speed, place.size / 1e6, place.key.mark, 6.0))
    axes.set_ylabel("file, MB")
    axes.set_ylim(0, 1.15 * max(label.y for label in labels))
    return labels
