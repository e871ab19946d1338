"""Files of lines, a row each: found in one pass over the file, and read by where they lie.

Lines are UTF-8, with or without a byte order mark at the beginning of the file, and end as on any system. Only a line
end ends a row: a text may hold any other separator. A line without anything on it is no row.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from compactor.errors import UsageError
from compactor.predicting.inputs import LARGEST_CHUNK_BYTES, InputFile, Span

_LONGEST_LINE = 64 * 2**20
_TELL_EVERY = 2**30
_UTF8 = "save it as UTF-8 text, not compressed"


def first_line(path: Path) -> tuple[str, int]:
    """The first line of a file that holds anything, and where the next one begins.

    Raises:
        UsageError: It is not text, or there is none.
    """
    with path.open("rb") as file:
        file.seek(_mark(file))
        while line := file.readline(_LONGEST_LINE):
            if line.strip():
                break
        end = file.tell()
    if not line:
        raise UsageError("there are no rows in it", where=str(path))
    if b"\0" in line or (len(line) == _LONGEST_LINE and not line.endswith(b"\n")):
        raise UsageError("its first line is not text", where=str(path), todo=_UTF8)
    try:
        return text_of(line), end
    except UnicodeDecodeError:
        raise UsageError("its first line is not UTF-8 text", where=str(path), todo=_UTF8) from None


def text_of(line: bytes) -> str:
    """A line as text, without its end.

    Raises:
        UnicodeDecodeError: It is not UTF-8.
    """
    return line.removesuffix(b"\n").removesuffix(b"\r").decode("utf-8")


def find_spans(
    source: InputFile,
    chunk_rows: int,
    tell: Callable[[int], None],
    *,
    start: int | None = None,
    is_row: Callable[[bytes], bool],
) -> Iterator[Span]:
    """The chunks of a file, in one pass that keeps one line at a time.

    Args:
        source: The file.
        chunk_rows: Rows of a chunk, at most.
        tell: Called with the bytes seen, now and then.
        start: Where its rows begin; behind a byte order mark when omitted.
        is_row: Whether a line is a row.

    Raises:
        UsageError: A line is so long that it is none.
    """
    number = first = rows = 0
    with source.path.open("rb") as file:
        begin = position = _mark(file) if start is None else start
        told = 0
        file.seek(position)
        while line := file.readline(_LONGEST_LINE):
            if len(line) == _LONGEST_LINE and not line.endswith(b"\n"):
                raise UsageError(
                    f"the line of row {first + rows} is longer than {_LONGEST_LINE >> 20} MiB", where=str(source.path)
                )
            position += len(line)
            rows += is_row(line)
            if rows == chunk_rows or (rows and position - begin >= LARGEST_CHUNK_BYTES):
                yield Span(number, first, rows, begin, position)
                number, first, rows, begin = number + 1, first + rows, 0, position
            if position - told >= _TELL_EVERY:
                told = position
                tell(position)
    if rows:
        yield Span(number, first, rows, begin, position)


def read_lines(source: InputFile, span: Span, is_row: Callable[[bytes], bool]) -> list[bytes]:
    """The lines of a chunk.

    Raises:
        UsageError: The file was changed.
    """
    source.check()
    with source.path.open("rb") as file:
        file.seek(span.start)
        content = file.read(span.stop - span.start)
    lines = [line for line in content.split(b"\n") if is_row(line)]
    if len(content) != span.stop - span.start or len(lines) != span.rows:
        raise source.changed()
    return lines


def _mark(file: BinaryIO) -> int:
    """The length of the byte order mark that ``file`` begins with."""
    length = len(codecs.BOM_UTF8)
    return length if file.read(length) == codecs.BOM_UTF8 else 0
