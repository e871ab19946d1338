"""The file whose rows are answered, and its chunks: what the readers of all formats have in common.

A chunk is some thousand rows that follow one another. It is what one call answers, what one part of the output holds,
and what is lost, and done again, when a process dies. Where the chunks begin depends on the file and the number of
rows alone: an answer may depend on the texts beside it in its batch, and a batch is made within one chunk.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from compactor.errors import UsageError

if TYPE_CHECKING:
    import pyarrow as pa

Format = Literal["tsv", "jsonl", "parquet"]

LARGEST_CHUNK_BYTES = 64 * 2**20  # what a chunk's rows may fill before they are fewer than asked for


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
