"""What all figures share: caption and legend, colours and numbers of the variants, ticks, and labels beside points."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from compactor.reporting.canvas import SERIES, Drawing
from compactor.reporting.rows import Report

SMALL = 10.5  # pixels
NAME = 12.5
_LINE = 1.25  # height of a line, in sizes of its type
_LETTER = 0.66  # width of a bold letter, in sizes of its type
_STEPS = (0.0, 1.0, -1.0, 2.0, -2.0, 3.0, -3.0, 4.0, -4.0)  # lines up or down from beside the point


@dataclasses.dataclass(frozen=True)
class Key:
    """An entry of a legend: a colour's number among the page's series, the mark on it, and what it stands for."""

    series: int
    mark: str
    text: str

    @property
    def colour(self) -> str:
        """For the canvas."""
        return SERIES[self.series]


@dataclasses.dataclass(frozen=True)
class Figure:
    """Drawings with one caption.

    Attributes:
        id: Unique on the page.
        title: What it is about.
        caption: How to read it.
        drawings: One or more, of one kind.
        keys: Its legend, which the page sets.
    """

    id: str
    title: str
    caption: str
    drawings: tuple[Drawing, ...]
    keys: tuple[Key, ...] = ()


def variant_keys(report: Report) -> dict[str, Key]:
    """The colour, number and name of each variant, by id, which it keeps in all figures and tables.

    The baseline's colour is 0, those of the others are 1 to 7 in turn; the number is the place in the tables.
    """
    colours = itertools.cycle(range(1, len(SERIES)))
    return {
        row["id"]: Key(0 if row["id"] == report["baseline"] else next(colours), str(place), row["name"])
        for place, row in enumerate(report["variants"], 1)
    }


def few_ticks(axis: Any, form: str | None = None, *, most: int = 5, whole: bool = False) -> None:
    """Ticks at round numbers, at most so many intervals; at ``whole`` ones where nothing lies between them.

    ``form`` says how a value ``x`` is written; None leaves that to matplotlib.
    """
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(most, integer=whole, steps=[1, 2, 5, 10]))
    if form is not None:
        axis.set_major_formatter(form)


@dataclasses.dataclass(frozen=True)
class Label:
    """What to write beside a point.

    Attributes:
        x: The point, in the units of the axes.
        y: The same, upwards.
        text: One line.
        radius: Of the point's mark, in pixels.
    """

    x: float
    y: float
    text: str
    radius: float


def put_labels(axes: Any, labels: Sequence[Label], *, size: float) -> None:
    """Write each label at the first free place: right or left of its point, then ever further up or down.

    Args:
        axes: Whose limits are final.
        labels: The more important first.
        size: Of the type, in pixels.
    """
    from matplotlib.transforms import Bbox

    points = [axes.transData.transform((label.x, label.y)) for label in labels]
    taken = [
        Bbox.from_bounds(x - label.radius, y - label.radius, 2 * label.radius, 2 * label.radius)
        for label, (x, y) in zip(labels, points, strict=True)
    ]
    for label, (x, y) in zip(labels, points, strict=True):
        width, height, gap = _LETTER * size * len(label.text), _LINE * size, label.radius + 4
        candidates = [
            (side, Bbox.from_bounds(left, y + step * height - height / 2, width, height))
            for step in _STEPS
            for side, left in (("left", x + gap), ("right", x - gap - width))
        ]
        free = [
            (side, box)
            for side, box in candidates
            if axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1 and not box.count_overlaps(taken)
        ]
        side, box = (free or candidates)[0]
        taken.append(box)
        offset = ((box.x0 if side == "left" else box.x1) - x, box.y0 + 0.3 * size - y)
        write(axes, label.text, (label.x, label.y), offset, fontsize=size, ha=side, zorder=4)


def write(axes: Any, text: str, place: tuple[float, float], offset: tuple[float, float], **style: Any) -> None:
    """Write in bold, ``offset`` pixels from ``place``, which is in the units of the axes; a point is a pixel here."""
    axes.annotate(text, place, offset, textcoords="offset points", **{"fontweight": "bold", **style})


def name_ends(
    axes: Any, ends: Sequence[tuple[str, tuple[float, float]]], *, size: float, offset: float, gap: float
) -> None:
    """Write the name of each line ``offset`` pixels right of its last point, and at least ``gap`` pixels apart.

    The limits of ``axes`` are final, and ``size`` is of the type, in pixels.
    """
    heights = [float(axes.transData.transform(end)[1]) for _, end in ends]
    for (name, end), height, moved in zip(ends, heights, spread(heights, gap), strict=True):
        write(axes, name, end, (offset, moved - height - 4), fontsize=size, annotation_clip=False)


def spread(values: Sequence[float], gap: float) -> list[float]:
    """``values`` moved as little as their order needs to be at least ``gap`` apart.

    >>> spread([10.0, 11.0, 40.0], 4.0)
    [8.5, 12.5, 40.0]
    """
    from scipy.optimize import isotonic_regression

    if not values:
        return []
    order, rungs = np.argsort(values, kind="stable"), gap * np.arange(len(values))
    moved = np.empty(len(values))
    moved[order] = isotonic_regression(np.asarray(values)[order] - rungs).x + rungs
    return list(map(float, moved))
