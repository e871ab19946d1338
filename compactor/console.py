"""What people see: results on stdout, how it is going on stderr.

Stdout belongs to the result, so that ``--json`` prints one document and nothing else: whatever a library prints
while a command works is kept away from it. Colours and spinners appear on a terminal only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import click

Progress = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of a result: its title, if any, then lines, then a table."""

    title: str = ""
    lines: Sequence[str] = ()
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()


@dataclasses.dataclass(frozen=True)
class Console:
    """Where a command's output goes.

    Args:
        quiet: Nothing on stderr but errors.
        verbose: Our log, other libraries' warnings and whatever they print, on stderr too.
    """

    quiet: bool = False
    verbose: bool = False

    @contextlib.contextmanager
    def working(self) -> Iterator[Progress]:
        """While a command computes: stdout is closed to libraries, and the value reports progress on stderr."""
        with contextlib.ExitStack() as stack:
            progress = stack.enter_context(self._progress())  # first: rich's spinner takes stdout for itself
            sink = sys.stderr if self.verbose else stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stdout(sink))
            stack.enter_context(_logging(logging.DEBUG if self.verbose else logging.ERROR if self.quiet else None))
            yield progress

    @contextlib.contextmanager
    def _progress(self) -> Iterator[Progress]:
        if self.quiet:
            yield lambda message: None
        elif self.verbose or not sys.stderr.isatty():
            yield _progress_line
        else:
            from rich.console import Console as RichConsole
            from rich.text import Text

            with RichConsole(stderr=True).status("") as status:
                yield lambda message: status.update(Text(printable(message)))

    def document(self, content: Any) -> None:
        """Print one JSON document: the whole result of a command."""
        click.echo(json.dumps(content, indent=2, allow_nan=False))

    def show(self, *sections: Section) -> None:
        """Print the parts of a result, one below the other."""
        for section in sections:
            if section.title:
                self.heading(section.title)
            for text in section.lines:
                self.line(text)
            if section.columns:
                self.table(section.columns, section.rows)

    def line(self, text: str = "") -> None:
        """Print one line of a result."""
        click.echo(printable(text))

    def heading(self, text: str) -> None:
        """Print the title of what follows, after an empty line."""
        click.echo()
        click.secho(printable(text), bold=True)  # click drops the style where stdout is no terminal

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print aligned rows. A column whose name starts with ``>`` is aligned to the right."""
        cells = [[printable(cell) for cell in row] for row in rows]
        if sys.stdout.isatty():
            _print_rich(columns, cells)
        else:
            _print_plain(columns, cells)


def printable(text: str) -> str:
    r"""``text`` with control characters escaped: names come from files, and could drive the terminal.

    >>> printable("red \x1b[31m")
    'red \\x1b[31m'
    """
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def format_bytes(count: int) -> str:
    """A size for people, with three digits: ``438 MB``, ``1.27 GB``; powers of 1000."""
    return _scaled(count, ("B", "kB", "MB", "GB", "TB"))


def format_count(count: int) -> str:
    """A number for people, with three digits: ``85.1 M``."""
    return _scaled(count, ("", "k", "M", "G", "T")).rstrip()


def format_ratio(before: float, after: float) -> str:
    """How many times smaller ``after`` is: ``4.20x``; a dash where nothing is left to compare."""
    return f"{before / after:.2f}x" if after else "-"


def _scaled(count: float, units: tuple[str, ...]) -> str:
    power = 0
    while count >= 999.5 and power < len(units) - 1:
        count, power = count / 1000, power + 1
    digits = 0 if power == 0 or count >= 99.95 else 1 if count >= 9.995 else 2
    return f"{count:.{digits}f} {units[power]}"


def _progress_line(message: str) -> None:
    # Whoever read our stderr may have left; that must not stop the work.
    with contextlib.suppress(OSError):
        click.echo(printable(message), err=True)


def _print_plain(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    names = [column.removeprefix(">") for column in columns]
    widths = [max(map(len, cells)) for cells in zip(names, *rows, strict=True)]
    for row in (names, *rows):
        aligned = [
            cell.rjust(width) if column.startswith(">") else cell.ljust(width)
            for cell, width, column in zip(row, widths, columns, strict=True)
        ]
        click.echo("  ".join(aligned).rstrip())


def _print_rich(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console as RichConsole
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 1), header_style="bold underline")
    for column in columns:
        right = column.startswith(">")
        table.add_column(Text(column.removeprefix(">")), justify="right" if right else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))  # Text, because a name in brackets is not markup
    RichConsole().print(table)


@contextlib.contextmanager
def _logging(level: int | None) -> Iterator[None]:
    """Our log from ``level`` on (default: warnings) on stderr; other libraries' warnings with the debug level only."""
    logger = logging.getLogger("compactor")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    before = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING if level is None else level)
    logger.propagate = False
    try:
        with warnings.catch_warnings():
            if level != logging.DEBUG:
                warnings.simplefilter("ignore")
            yield
    finally:
        logger.removeHandler(handler)
        logger.level, logger.propagate = before
