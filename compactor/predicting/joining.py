"""From finished chunks to one file: streamed in their order, and renamed into place at the end."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from compactor.predicting.formats import find_format
from compactor.predicting.inputs import Format
from compactor.predicting.jsonl import KINDS
from compactor.predicting.parts import REFUSED

_GROUP_ROWS = 65_536
_GROUP_BYTES = 64 * 2**20
_TYPES = {"": pa.string(), "int": pa.int64(), "float": pa.float64(), "float,int": pa.float64(), "bool": pa.bool_()}


def join_parts(parts: Sequence[Path], out: Path, tell: Callable[[int], None] = lambda done: None) -> None:
    """Write ``out`` from its parts.

    Args:
        parts: The files, in order, at least one; in a folder beside ``out``.
        out: The file to write, in the format that its name says.
        tell: Called with how many parts are in it, now and then.
    """
    types = _kept_types(parts)
    whole = parts[0].with_name(f"whole{out.suffix}.partial")
    with whole.open("wb") as file:
        _WRITERS[find_format(out)](file, _tables(parts, types, tell))
        file.flush()
        os.fsync(file.fileno())
    whole.replace(out)


def _kept_types(parts: Sequence[Path]) -> Mapping[str, pa.DataType | None]:
    """The type of each column that was kept as JSON: the one that holds all its values; None for JSON itself."""
    kinds: dict[str, set[str]] = {}
    for path in parts:
        with pa.OSFile(str(path)) as file, pa.ipc.open_file(file) as part:
            for field in part.schema:
                said = (field.metadata or {}).get(KINDS)
                if said is not None:
                    kinds.setdefault(field.name, set()).update(filter(None, said.decode().split(",")))
    types = {**_TYPES, "str": pa.string()}
    return {name: types.get(",".join(sorted(found))) for name, found in kinds.items()}


def _tables(
    parts: Sequence[Path], types: Mapping[str, pa.DataType | None], tell: Callable[[int], None]
) -> Iterator[pa.Table]:
    """The content of each part."""
    for done, path in enumerate(parts):
        tell(done)
        with pa.OSFile(str(path)) as file, pa.ipc.open_file(file) as part:
            table = part.read_all()
        metadata = {key: value for key, value in (table.schema.metadata or {}).items() if key != REFUSED}
        table = table.replace_schema_metadata(metadata or None)
        for number, field in enumerate(table.schema):
            if field.name in types:
                array = _typed(table.column(number), types[field.name])
                table = table.set_column(number, pa.field(field.name, array.type), array)
        yield table


def _typed(column: pa.ChunkedArray, kind: pa.DataType | None) -> pa.Array:
    """Values that were kept as JSON, as what they are."""
    if kind is None:
        return pa.array(column.to_pylist(), pa.string())
    values = [None if text is None else json.loads(text) for text in column.to_pylist()]
    if kind == pa.string():  # JSON can hold halves of surrogate pairs, which no file in UTF-8 can
        values = [None if text is None else text.encode("utf-8", "replace").decode() for text in values]
    if kind == pa.float64():
        values = [None if value is None else float(value) for value in values]
    return pa.array(values, kind)


def _write_parquet(file: BinaryIO, tables: Iterator[pa.Table]) -> None:
    """Row groups of some ten thousand rows, whatever the chunks were."""
    waiting: list[pa.Table] = []
    writer: pq.ParquetWriter | None = None

    def write() -> None:
        nonlocal writer
        table = pa.concat_tables(waiting)
        writer = writer or pq.ParquetWriter(file, table.schema)
        writer.write_table(table, row_group_size=table.num_rows)
        waiting.clear()

    try:
        for table in tables:
            waiting.append(table)
            rows, size = sum(each.num_rows for each in waiting), sum(each.nbytes for each in waiting)
            if rows >= _GROUP_ROWS or size >= _GROUP_BYTES:
                write()
        if waiting:
            write()
    finally:
        if writer is not None:
            writer.close()


def _write_jsonl(file: BinaryIO, tables: Iterator[pa.Table]) -> None:
    for table in tables:
        for row in table.to_pylist():
            file.write(json.dumps(row, ensure_ascii=False, default=str).encode() + b"\n")


def _write_tsv(file: BinaryIO, tables: Iterator[pa.Table]) -> None:
    """A field cannot hold a tab or a line end: a space stands there instead."""
    for number, table in enumerate(tables):
        if number == 0:
            file.write("\t".join(_field(name) for name in table.column_names).encode() + b"\n")
        for row in table.to_pylist():
            file.write("\t".join(_field(value) for value in row.values()).encode() + b"\n")


def _field(value: Any) -> str:
    if value is None:
        return ""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text.translate(_SPACES)


_SPACES = str.maketrans("\t\n\r", "   ")
_WRITERS: Mapping[Format, Callable[[BinaryIO, Iterator[pa.Table]], None]] = {
    "parquet": _write_parquet,
    "jsonl": _write_jsonl,
    "tsv": _write_tsv,
}
