"""What all figures of a report share: caption and legend, colours and numbers of the variants, ticks of an axis."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

from compactor.reporting.canvas import SERIES, Drawing
from compactor.reporting.rows import Report

SMALL = 10.5  # pixels
NAME = 12.5


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
