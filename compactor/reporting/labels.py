"""Puts labels beside points where they cover neither points nor each other."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

_LINE = 1.25  # height of a line, in sizes of its type
_LETTER = 0.66  # width of a bold letter, in sizes of its type
_STEPS = (0.0, 1.0, -1.0, 2.0, -2.0, 3.0, -3.0, 4.0, -4.0)  # lines up or down from beside the point

_Box = tuple[float, float, float, float]  # left, bottom, right, top, in pixels


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
    points = [axes.transData.transform((label.x, label.y)) for label in labels]
    taken: list[_Box] = [
        (x - label.radius, y - label.radius, x + label.radius, y + label.radius)
        for label, (x, y) in zip(labels, points, strict=True)
    ]
    frame = axes.bbox
    for label, (x, y) in zip(labels, points, strict=True):
        width, height, gap = _LETTER * size * len(label.text), _LINE * size, label.radius + 4
        candidates = [
            (side, x + gap if side == "left" else x - gap - width, y + step * height - height / 2)
            for step in _STEPS
            for side in ("left", "right")
        ]
        free = [
            (side, left, low)
            for side, left, low in candidates
            if frame.x0 <= left
            and left + width <= frame.x1
            and not any(_overlap((left, low, left + width, low + height), box) for box in taken)
        ]
        side, left, low = (free or candidates)[0]
        taken.append((left, low, left + width, low + height))
        anchor = left if side == "left" else left + width
        axes.annotate(
            label.text,
            (label.x, label.y),
            (anchor - x, low + 0.3 * size - y),
            textcoords="offset points",  # a point is a pixel here
            fontsize=size,
            fontweight="bold",
            ha=side,
            zorder=4,
        )


def spread(values: Sequence[float], gap: float) -> list[float]:
    """``values`` moved as little as their order needs to be at least ``gap`` apart.

    >>> spread([10.0, 11.0, 40.0], 4.0)
    [8.5, 12.5, 40.0]
    """
    groups: list[list[int]] = []  # of neighbours that touch, lowest first
    centres: list[float] = []
    for index in sorted(range(len(values)), key=lambda index: values[index]):
        groups.append([index])
        centres.append(values[index])
        while len(groups) > 1 and centres[-1] - centres[-2] < gap * (len(groups[-1]) + len(groups[-2])) / 2:
            merged = groups.pop(-2) + groups.pop(-1)
            groups.append(merged)
            centres[-2:] = [sum(values[i] for i in merged) / len(merged)]
    moved = list(values)
    for group, centre in zip(groups, centres, strict=True):
        for place, index in enumerate(group):
            moved[index] = centre + gap * (place - (len(group) - 1) / 2)
    return moved


def _overlap(one: _Box, other: _Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
