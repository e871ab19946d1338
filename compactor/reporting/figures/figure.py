"""What all figures of a report share: caption and legend, colours and numbers of the variants, ticks of an axis."""

from __future__ import annotations

import dataclasses
from typing import Any

from compactor.reporting.canvas import SERIES, Drawing
from compactor.reporting.words import Report, measured

SMALL = 10.5  # pixels
NAME = 12.5


@dataclasses.dataclass(frozen=True)
class Key:
    """An entry of a legend: a colour's number among the page's series, the mark on it, and what it stands for."""

    series: int
    mark: str
    text: str


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


def series_numbers(report: Report) -> dict[str, int]:
    """The colour of each variant, by id: 0 for the baseline, 1 to 7 in turn for the others."""
    others = [row["id"] for row in report["variants"] if row["id"] != report["baseline"]]
    numbers = {name: 1 + index % (len(SERIES) - 1) for index, name in enumerate(others)}
    return numbers if report["baseline"] is None else {report["baseline"]: 0, **numbers}


def marks(report: Report) -> dict[str, str]:
    """The number of each variant, by id, as it stands in the figures: its place in the tables."""
    return {row["id"]: str(index + 1) for index, row in enumerate(report["variants"])}


def legend(report: Report, shown: set[str] | None = None) -> tuple[Key, ...]:
    """An entry for each measured variant, or for those of them that are ``shown``, by id."""
    numbers, names = series_numbers(report), marks(report)
    rows = [row for row in measured(report) if shown is None or row["id"] in shown]
    return tuple(Key(numbers[row["id"]], names[row["id"]], row["name"]) for row in rows)


def few_ticks(axis: Any, most: int = 5, *, whole: bool = False) -> None:
    """Ticks at round numbers, at most so many intervals; at ``whole`` ones where nothing lies between them."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(most, integer=whole, steps=[1, 2, 5, 10]))


def plain_log(axis: Any) -> None:
    """Ticks at 1, 2 and 5 of each decade, over several decades at 1 only, as plain numbers."""
    from matplotlib.ticker import LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    few = high < 300 * low
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if few else (1.0,), numticks=20))
    axis.set_major_formatter(lambda value, _: f"{value:,g}")
    axis.set_minor_formatter(NullFormatter())
