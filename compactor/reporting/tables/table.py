"""What all tables share. A cell without a measurement says why in words; it is never a number and never empty."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

from compactor.reporting.rows import Report, Row

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
"""A name, and what makes a cell of a thing that the table has a row for."""


def make_table(
    identity: str,
    title: str,
    columns: Sequence[Column],
    groups: Mapping[Any, Iterable[tuple[Any, ...]]],
    caption: str = "",
    *,
    absence: Callable[..., str | None] = lambda *thing: None,
    always: int = 1,
) -> Table:
    """A table with a row for each thing in ``groups``, by the arguments of what makes its cells.

    ``absence`` says why a thing has no cells but the first ``always``; None where it has them all.
    """

    def cells(thing: tuple[Any, ...]) -> tuple[Cell, ...]:
        why = absence(*thing)
        if why is None:
            return tuple(write(*thing) for _, write in columns)
        return (*(write(*thing) for _, write in columns[:always]), Cell(why, "muted", absent=True))

    rows = tuple((heading, tuple(map(cells, things))) for heading, things in groups.items())
    return Table(identity, title, tuple(name for name, _ in columns), rows, caption)


def known(value: Any, write: Callable[[Any], str], missing: str = "unknown") -> Cell:
    """What ``write`` makes of a value; the words ``missing`` where there is none."""
    return Cell(missing, "muted") if value is None else Cell(write(value))


def name_cell(report: Report, row: Row) -> Cell:
    """The name of a variant."""
    return Cell(row["name"], note="baseline" if row["id"] == report["baseline"] else "")


def uncompared(report: Report, row: Row, words: str) -> Cell:
    """Why there is no comparison: the row is the baseline itself; or ``words``."""
    return Cell("baseline" if row["id"] == report["baseline"] else words, "muted")
