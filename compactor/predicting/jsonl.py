"""JSON lines, an object each.

What is kept of them has no type that holds for all lines. A chunk keeps the values as JSON, and says in its schema of
which kinds they are; a type is chosen once all kinds of all chunks are known, see ``joining.py``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from compactor.errors import UsageError
from compactor.evaluation.datafiles import shown
from compactor.predicting import lines
from compactor.predicting.inputs import InputFile, Rows, Span

KINDS = b"compactor.kinds"  # in the metadata of a kept column: of which kinds its values are, separated by commas

_INT64 = range(-(2**63), 2**63)


def read_columns(path: Path) -> list[str]:
    """The names in the first object.

    Raises:
        UsageError: The first line is no object.
    """
    line, _ = lines.first_line(path)
    value = _parse(line)
    if not isinstance(value, Mapping):
        raise UsageError(
            f"its first line is not a JSON object: {shown(line)}", where=str(path), todo="expected an object a line"
        )
    return list(value)


def find_spans(source: InputFile, chunk_rows: int, tell: Callable[[int], None]) -> Iterator[Span]:
    """The chunks of a file."""
    return lines.find_spans(source, chunk_rows, tell, is_row=_is_row)


def open_reader(source: InputFile, texts: Sequence[str], kept: Sequence[str]) -> JsonLinesReader:
    """What reads its chunks."""
    return JsonLinesReader(source, texts, kept)


class JsonLinesReader:
    """Parses lines."""

    def __init__(self, source: InputFile, texts: Sequence[str], kept: Sequence[str]) -> None:
        self._source, self._texts, self._kept = source, texts, kept

    def read(self, span: Span) -> Rows:
        """The rows of a chunk; one that is no object, or lacks a text, is an error of that row."""
        rows: list[Mapping[str, Any]] = []
        errors = {}
        for place, line in enumerate(lines.read_lines(self._source, span, _is_row)):
            value: Any = None
            try:
                value = _parse(lines.text_of(line))
            except UnicodeDecodeError:
                errors[place] = "the line is not UTF-8 text"
            if place not in errors and not isinstance(value, Mapping):
                errors[place] = "the line is not a JSON object"
            rows.append(value if isinstance(value, Mapping) else {})
            missing = next((name for name in self._texts if name not in rows[-1]), None)
            if place not in errors and missing is not None:
                errors[place] = f"there is no '{missing}' in the line"
        kept = {name: _keep([row.get(name) for row in rows], name) for name in self._kept}
        return Rows(
            [[row.get(name) for row in rows] for name in self._texts],
            pa.RecordBatch.from_arrays(
                [array for _, array in kept.values()], schema=pa.schema([field for field, _ in kept.values()])
            ),
            errors,
        )


def _is_row(line: bytes) -> bool:
    return bool(line.strip())


def _parse(line: str) -> Any:
    """The value of a line; None where it is no JSON."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _keep(values: Sequence[Any], name: str) -> tuple[pa.Field, pa.Array]:
    """Values as JSON, and the kinds of them."""
    kinds = sorted({_kind(value) for value in values if value is not None})
    texts = [None if value is None else json.dumps(value, ensure_ascii=True) for value in values]
    return pa.field(name, pa.string(), metadata={KINDS: ",".join(kinds).encode()}), pa.array(texts, pa.string())


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "int" if value in _INT64 else "json"
    return {str: "str", float: "float"}.get(type(value), "json")
