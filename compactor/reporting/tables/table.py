"""What all tables share. A cell without a measurement says why in words; it is never a number and never empty."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

from compactor.reporting.words import Report, Row

Tone = Literal["", "good", "bad", "muted"]
TONES: dict[str, Tone] = {"faster": "good", "better": "good", "slower": "bad", "worse": "bad"}  # of verdicts


@dataclasses.dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        text: What it says.
        tone: How it looks; the text says the same without it.
        note: A second line, in small type.
        absent: Whether it stands for the missing numbers of the rest of its row.
    """

    text: str
    tone: Tone = ""
    note: str = ""
    absent: bool = False


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows in groups, each group under a heading of its own.

    Attributes:
        id: For links, unique on a page.
        title: What it shows.
        columns: Names; one that starts with ``>`` holds numbers.
        groups: Heading (None for none) and rows.
        caption: How to read it.
    """

    id: str
    title: str
    columns: tuple[str, ...]
    groups: tuple[tuple[str | None, tuple[tuple[Cell, ...], ...]], ...]
    caption: str = ""

    def __bool__(self) -> bool:
        return any(rows for _, rows in self.groups)


Column = tuple[str, Callable[..., Cell]]
"""A name, and what makes a cell of the thing that the table has a row for."""


def cells(columns: Sequence[Column], *thing: Any) -> tuple[Cell, ...]:
    """The row of one thing."""
    return tuple(write(*thing) for _, write in columns)


def make_table(identity: str, title: str, columns: Sequence[Column], things: Iterable[Any], caption: str = "") -> Table:
    """A table with a row for each of ``things``, in one group."""
    rows = tuple(cells(columns, thing) for thing in things)
    return Table(identity, title, names(columns), ((None, rows),), caption)


def names(columns: Sequence[Column]) -> tuple[str, ...]:
    """What stands above the columns."""
    return tuple(name for name, _ in columns)


def known(value: Any, write: Callable[[Any], str], missing: str = "unknown") -> Cell:
    """What ``write`` makes of a value; the words ``missing`` where there is none."""
    return Cell(missing, "muted") if value is None else Cell(write(value))


def absent(words: str) -> Cell:
    """Why the rest of a row is missing."""
    return Cell(words, "muted", absent=True)


def name_cell(report: Report, row: Row) -> Cell:
    """The name of a variant."""
    return Cell(row["name"], note="baseline" if row["id"] == report["baseline"] else "")
