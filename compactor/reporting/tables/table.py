"""What all tables share. A cell without a measurement says why in words; it is never a number and never empty."""

from __future__ import annotations

import dataclasses
from typing import Literal

from compactor.reporting.words import Report, Row

Tone = Literal["", "good", "bad", "muted", "code"]


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


def name_cell(report: Report, row: Row) -> Cell:
    """The name of a variant."""
    return Cell(row["name"], note="baseline" if row["id"] == report["baseline"] else "")


def unknown() -> Cell:
    """What nobody can tell."""
    return Cell("unknown", "muted")
