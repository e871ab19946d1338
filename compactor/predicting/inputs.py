"""The file whose rows are answered: what its columns are, and where its chunks lie.

A chunk is some thousand rows that follow one another. It is what one call answers, what one part of the output holds,
and what is lost, and done again, when a process dies. Where the chunks begin depends on the file and the number of
rows alone: an answer may depend on the texts beside it in its batch, and a batch is made within one chunk.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from compactor.errors import UsageError

if TYPE_CHECKING:
    import pyarrow as pa

Format = Literal["tsv", "jsonl", "parquet"]

LARGEST_CHUNK_BYTES = 64 * 2**20  # what a chunk's rows may fill before they are fewer than asked for

_FORMATS: Mapping[str, Format] = {
    ".tsv": "tsv",
    ".tab": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
}


@dataclasses.dataclass(frozen=True)
class Span:
    """Where a chunk lies.

    Attributes:
        number: Of the chunk, from 0 on.
        first: The row of the file that it begins with.
        rows: How many it has.
        start: The byte of the file that it begins with; 0 in Parquet, which is found by row.
        stop: The one behind its last.
    """

    number: int
    first: int
    rows: int
    start: int = 0
    stop: int = 0


@dataclasses.dataclass(frozen=True)
class Rows:
    """The rows of a chunk.

    Attributes:
        texts: For each column that was asked for, one value a row: text, or whatever else is there.
        kept: The columns to be kept.
        errors: Why a row could not be read, by its place in the chunk; its values are None.
    """

    texts: Sequence[Sequence[Any]]
    kept: pa.RecordBatch
    errors: Mapping[int, str]


class Reader(Protocol):
    """Reads chunks; fastest in the order of the file."""

    def read(self, span: Span) -> Rows:
        """The rows of a chunk.

        Raises:
            UsageError: The file changed since its chunks were planned.
        """


@dataclasses.dataclass(frozen=True)
class InputFile:
    """A file as it was when it was first looked at.

    Attributes:
        path: Where it is, on every machine that reads it.
        format: How it is read.
        columns: Their names; of JSON lines those of the first line.
        size_bytes: Its size.
        modified_ns: When it was last changed.
    """

    path: Path
    format: Format
    columns: tuple[str, ...]
    size_bytes: int
    modified_ns: int

    @classmethod
    def open(cls, path: Path) -> InputFile:
        """Look at ``path``.

        Raises:
            UsageError: It cannot be read, or is none of the formats.
        """
        file_format = find_format(path)
        try:
            with path.open("rb") as file:  # says what is wrong with a folder, too
                empty = not file.read(1)
            status = path.stat()
        except OSError as error:
            raise UsageError(f"cannot be read: {error.strerror}", where=str(path), todo="check the path") from error
        if empty:
            raise UsageError("the file is empty", where=str(path))
        columns = _module(file_format).read_columns(path)
        if len(set(columns)) < len(columns):
            raise UsageError("two columns have the same name", where=str(path), todo=f"they are {', '.join(columns)}")
        return cls(path, file_format, tuple(columns), status.st_size, status.st_mtime_ns)

    def spans(self, chunk_rows: int, tell: Callable[[int], None] = lambda done: None) -> Iterator[Span]:
        """Its chunks, in order.

        Args:
            chunk_rows: Rows of a chunk, at most.
            tell: Called with the bytes of text that have been looked through, now and then.

        Raises:
            UsageError: It is not what its name says.
        """
        spans: Iterator[Span] = _module(self.format).find_spans(self, chunk_rows, tell)
        return spans

    def reader(self, texts: Sequence[str], kept: Sequence[str]) -> Reader:
        """What reads its chunks.

        Args:
            texts: The columns whose values are wanted.
            kept: The columns to be kept.
        """
        reader: Reader = _module(self.format).open_reader(self, texts, kept)
        return reader

    def check(self) -> None:
        """Make sure that it is still the same file.

        Raises:
            UsageError: It is not.
        """
        try:
            status = self.path.stat()
        except OSError as error:
            raise UsageError(f"cannot be read: {error.strerror}", where=str(self.path)) from error
        if (status.st_size, status.st_mtime_ns) != (self.size_bytes, self.modified_ns):
            raise self.changed()

    def changed(self) -> UsageError:
        """The error of a file that is not what it was."""
        return UsageError(
            "the file was changed while it was read", where=str(self.path), todo="begin anew with --overwrite"
        )


def find_format(path: Path) -> Format:
    """The format that a name stands for, of an input or an output.

    Raises:
        UsageError: It stands for none.
    """
    found = _FORMATS.get(path.suffix.lower())
    if found is None:
        todo = "expected .parquet, .jsonl or .tsv"
        if path.suffix.lower() == ".json":
            todo = "expected JSON lines, one object a line, in a file called .jsonl"
        raise UsageError("its name does not say which format it has", where=str(path), todo=todo)
    return found


def _module(file_format: Format) -> Any:
    """What reads a format: ``read_columns``, ``find_spans`` and ``open_reader``."""
    if file_format == "parquet":
        from compactor.predicting import parquet

        return parquet
    from compactor.predicting import jsonl, tsv

    return tsv if file_format == "tsv" else jsonl
