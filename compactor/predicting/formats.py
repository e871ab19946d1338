"""The formats of a file of rows: which one its name stands for, and what reads it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from compactor.errors import UsageError
from compactor.predicting import jsonl, parquet, tsv
from compactor.predicting.inputs import Format, InputFile, Reader, Span

_FORMATS: Mapping[str, Format] = {
    ".tsv": "tsv",
    ".tab": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
}
_READERS: Mapping[Format, Any] = {"tsv": tsv, "jsonl": jsonl, "parquet": parquet}


def open_input(path: Path) -> InputFile:
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
    columns = _READERS[file_format].read_columns(path)
    if len(set(columns)) < len(columns):
        raise UsageError("two columns have the same name", where=str(path), todo=f"they are {', '.join(columns)}")
    return InputFile(path, file_format, tuple(columns), status.st_size, status.st_mtime_ns)


def find_spans(source: InputFile, chunk_rows: int, tell: Callable[[int], None] = lambda done: None) -> Iterator[Span]:
    """The chunks of a file, in order.

    Args:
        source: The file.
        chunk_rows: Rows of a chunk, at most.
        tell: Called with the bytes of text that have been looked through, now and then.

    Raises:
        UsageError: It is not what its name says.
    """
    spans: Iterator[Span] = _READERS[source.format].find_spans(source, chunk_rows, tell)
    return spans


def open_reader(source: InputFile, texts: Sequence[str], kept: Sequence[str]) -> Reader:
    """What reads the chunks of a file.

    Args:
        source: The file.
        texts: The columns whose values are wanted.
        kept: The columns to be kept.
    """
    reader: Reader = _READERS[source.format].open_reader(source, texts, kept)
    return reader


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
