"""TSV with a header. Fields are taken as they are, quotes and all, as in GLUE."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from compactor.predicting import lines
from compactor.predicting.inputs import InputFile, Rows, Span


def read_columns(path: Path) -> list[str]:
    """The names in the header."""
    header, _ = lines.first_line(path)
    return [name.strip() for name in header.split("\t")]


def find_spans(source: InputFile, chunk_rows: int, tell: Callable[[int], None]) -> Iterator[Span]:
    """The chunks of a file."""
    _, start = lines.first_line(source.path)
    return lines.find_spans(source, chunk_rows, tell, start=start, is_row=_is_row)


def open_reader(source: InputFile, texts: Sequence[str], kept: Sequence[str]) -> TsvReader:
    """What reads its chunks."""
    return TsvReader(source, texts, kept)


class TsvReader:
    """Splits lines at their tabs."""

    def __init__(self, source: InputFile, texts: Sequence[str], kept: Sequence[str]) -> None:
        self._source = source
        self._texts = [source.columns.index(name) for name in texts]
        self._kept = [source.columns.index(name) for name in kept]
        self._schema = pa.schema([pa.field(name, pa.string()) for name in kept])

    def read(self, span: Span) -> Rows:
        """The rows of a chunk; one with more or fewer fields than the header is an error of that row."""
        count = len(self._source.columns)
        nothing: list[str | None] = [None] * count
        table: list[Sequence[str | None]] = []
        errors = {}
        for place, line in enumerate(lines.read_lines(self._source, span, _is_row)):
            fields: Sequence[str | None] = nothing
            try:
                fields = lines.text_of(line).split("\t")
            except UnicodeDecodeError:
                errors[place] = "the line is not UTF-8 text"
            if place not in errors and len(fields) != count:
                errors[place] = f"the line has {len(fields)} fields and the header {count}"
                fields = nothing
            table.append(fields)
        kept = [pa.array([fields[column] for fields in table], pa.string()) for column in self._kept]
        return Rows(
            [[fields[column] for fields in table] for column in self._texts],
            pa.RecordBatch.from_arrays(kept, schema=self._schema),
            errors,
        )


def _is_row(line: bytes) -> bool:
    return line not in (b"", b"\n", b"\r\n", b"\r")
