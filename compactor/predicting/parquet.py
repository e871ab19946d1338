"""Parquet, read a batch of rows at a time and only the columns that are wanted."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from compactor.errors import UsageError
from compactor.predicting.inputs import LARGEST_CHUNK_BYTES, InputFile, Rows, Span

_BUFFER_BYTES = 2**20  # read of a column at a time
_BATCH_ROWS = 1024


def read_columns(path: Path) -> list[str]:
    """The names of its columns."""
    with _open(path) as file:
        if not file.metadata.num_rows:
            raise UsageError("there are no rows in it", where=str(path))
        return list(file.schema_arrow.names)


def find_spans(source: InputFile, chunk_rows: int, tell: Callable[[int], None]) -> Iterator[Span]:
    """The chunks of a file; smaller ones where its rows are large."""
    with _open(source.path) as file:
        metadata = file.metadata
        total = metadata.num_rows
        size = sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))
    rows = max(1, min(chunk_rows, LARGEST_CHUNK_BYTES * total // max(size, 1)))
    return (Span(number, first, min(rows, total - first)) for number, first in enumerate(range(0, total, rows)))


def open_reader(source: InputFile, texts: Sequence[str], kept: Sequence[str]) -> ParquetReader:
    """What reads its chunks."""
    return ParquetReader(source, texts, kept)


class ParquetReader:
    """Goes through a file once, as long as chunks are asked for in order; going back opens it again.

    Rows are skipped by whole row groups, and within one by reading them.
    """

    def __init__(self, source: InputFile, texts: Sequence[str], kept: Sequence[str]) -> None:
        self._source, self._texts, self._kept = source, texts, kept
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._batch: pa.RecordBatch | None = None
        self._at = 0  # the row that comes next
        with _open(source.path) as file:
            groups = range(file.metadata.num_row_groups)
            self._ends = list(itertools.accumulate(file.metadata.row_group(group).num_rows for group in groups))

    def read(self, span: Span) -> Rows:
        """The rows of a chunk."""
        self._source.check()
        self._go_to(span.first)
        pieces, missing = [], span.rows
        while missing:
            pieces.append(self._take(missing))
            missing -= pieces[-1].num_rows
        table = pa.Table.from_batches(pieces).combine_chunks()
        kept = table.select(self._kept)
        arrays = [column.combine_chunks() if column.num_chunks != 1 else column.chunk(0) for column in kept.columns]
        return Rows(
            [table.column(name).to_pylist() for name in self._texts],
            pa.RecordBatch.from_arrays(arrays, schema=kept.schema.remove_metadata()),
            {},
        )

    def _go_to(self, row: int) -> None:
        """Make ``row`` the one that comes next."""
        group = bisect.bisect_right(self._ends, row)
        begin = self._ends[group - 1] if group else 0
        if self._batch is None or row < self._at or begin > self._at:
            self._batches = self._iterate(range(group, len(self._ends)))
            self._batch, self._at = None, begin
        while self._at < row:
            self._take(row - self._at)

    def _take(self, rows: int) -> pa.RecordBatch:
        """Up to ``rows`` of the rows that come next."""
        while self._batch is None or not self._batch.num_rows:
            self._batch = next(self._batches, None)
            if self._batch is None:
                raise self._source.changed()
        taken = self._batch.slice(0, rows)
        self._batch = self._batch.slice(taken.num_rows)
        self._at += taken.num_rows
        return taken

    def _iterate(self, groups: range) -> Iterator[pa.RecordBatch]:
        columns = list(dict.fromkeys([*self._texts, *self._kept]))
        with _open(self._source.path) as file:
            try:
                yield from file.iter_batches(
                    batch_size=_BATCH_ROWS, row_groups=list(groups), columns=columns, use_threads=False
                )
            except (pa.ArrowException, OSError) as error:
                raise _unreadable(self._source.path, error) from error


def _open(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path, buffer_size=_BUFFER_BYTES, pre_buffer=False)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> UsageError:
    line = (str(error).strip().splitlines() or [repr(error)])[0]
    return UsageError(f"it cannot be read as Parquet: {line}", where=str(path), todo="write it again")
