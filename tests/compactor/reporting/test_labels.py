"""Labels lie neither on points nor on each other."""

from __future__ import annotations

import itertools

import pytest

from compactor.reporting.canvas import draw, framed
from compactor.reporting.figures.figure import Label, put_labels, spread


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], []),
        ([5.0], [5.0]),
        ([0.0, 100.0], [0.0, 100.0]),
        ([10.0, 11.0, 40.0], [5.5, 15.5, 40.0]),
        ([40.0, 11.0, 10.0], [40.0, 15.5, 5.5]),
        ([0.0, 9.0, 10.0], [-3.667, 6.333, 16.333]),
    ],
)
def test_spread_moves_apart_and_keeps_the_order(values, expected):
    assert spread(values, 10.0) == pytest.approx(expected, abs=1e-3)


def test_labels_of_close_points_do_not_overlap():
    places = [(1.0, 1.0), (1.05, 1.0), (5.0, 1.0), (5.0, 1.01), (9.9, 1.0)]
    boxes = []

    def paint(figure):
        axes = framed(figure)
        axes.set_xlim(0, 10)
        axes.set_ylim(0, 2)
        put_labels(axes, [Label(x, y, "1: 28.2 MB", 8.0) for x, y in places], size=10.5)
        for text in axes.texts:
            dx, dy = text.get_position()
            x, y = axes.transData.transform(text.xy)
            left = x + dx - (0.66 * 10.5 * 10 if text.get_ha() == "right" else 0)
            boxes.append((left, y + dy, left + 0.66 * 10.5 * 10, y + dy + 10.5))
        points = [axes.transData.transform(place) for place in places]
        boxes.extend((x - 7, y - 7, x + 7, y + 7) for x, y in points)

    draw("x", 260, paint, label="x")
    labels, points = boxes[:5], boxes[5:]
    for one, other in [*itertools.combinations(labels, 2), *itertools.product(labels, points)]:
        assert one[0] >= other[2] or other[0] >= one[2] or one[1] >= other[3] or other[1] >= one[3]
    assert all(0 <= box[0] and box[2] <= 350 for box in labels)
