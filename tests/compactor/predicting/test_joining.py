"""Joining: row groups of a good size whatever the chunks were, and types for what JSON lines held."""

from __future__ import annotations

import datetime
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from compactor.predicting import joining
from compactor.predicting.joining import join_parts
from compactor.predicting.jsonl import JsonLinesReader
from compactor.predicting.parts import REFUSED


def save(path: Path, batch: pa.RecordBatch) -> Path:
    batch = batch.replace_schema_metadata({REFUSED: b"0"})
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, batch.schema) as writer:
        writer.write_batch(batch)
    return path


def parts_of(folder: Path, *columns: dict[str, Any]) -> list[Path]:
    batches = [pa.RecordBatch.from_pydict(each) for each in columns]
    return [save(folder / f"{number:06}.arrow", batch) for number, batch in enumerate(batches)]


def test_rows_are_in_order_and_groups_are_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "_GROUP_ROWS", 10)
    parts = parts_of(tmp_path, *({"row": list(range(first, first + 4))} for first in range(0, 40, 4)))
    seen: list[int] = []
    join_parts(parts, tmp_path / "out.parquet", seen.append)
    file = pq.ParquetFile(tmp_path / "out.parquet")
    assert file.read().column("row").to_pylist() == list(range(40))
    groups = [file.metadata.row_group(number).num_rows for number in range(file.metadata.num_row_groups)]
    assert groups == [12, 12, 12, 4]
    assert file.schema_arrow.metadata is None
    assert seen == list(range(10))


def test_groups_are_bounded_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "_GROUP_BYTES", 1000)
    join_parts(parts_of(tmp_path, *[{"text": ["x" * 600]}] * 6), tmp_path / "out.parquet")
    assert pq.ParquetFile(tmp_path / "out.parquet").metadata.num_row_groups == 3


def test_json_lines_have_one_object_a_row(tmp_path: Path) -> None:
    day = datetime.date(2024, 2, 29)
    parts = parts_of(tmp_path, {"row": [0], "day": [day], "text": ["“a”\n"]}, {"row": [1], "day": [day], "text": ["b"]})
    join_parts(parts, tmp_path / "out.jsonl")
    lines = (tmp_path / "out.jsonl").read_text("utf-8").split("\n")
    assert [json.loads(line) for line in lines[:-1]] == [
        {"row": 0, "day": "2024-02-29", "text": "“a”\n"},
        {"row": 1, "day": "2024-02-29", "text": "b"},
    ]


def test_fields_of_a_tsv_hold_no_tabs(tmp_path: Path) -> None:
    parts = parts_of(tmp_path, {"row": [0, 1], "text": ["a\tb\r\nc", None], "scores": [[0.5, 1], None]})
    join_parts(parts, tmp_path / "out.tsv")
    assert (tmp_path / "out.tsv").read_text() == "row\ttext\tscores\n0\ta b  c\t[0.5, 1.0]\n1\t\t\n"


@pytest.mark.parametrize(
    ("first", "second", "kind", "expected"),
    [
        ([1, None], [2], pa.int64(), [1, None, 2]),
        ([1, None], [2.5], pa.float64(), [1.0, None, 2.5]),
        ([None], [True, False], pa.bool_(), [None, True, False]),
        (["a", "\ud800"], ["ä"], pa.string(), ["a", "?", "ä"]),
        ([None], [None], pa.string(), [None, None]),
        (["a"], [1], pa.string(), ['"a"', "1"]),
        ([True], [1], pa.string(), ["true", "1"]),
        ([2**70], [1], pa.string(), [str(2**70), "1"]),
        ([{"b": [1]}], [[2]], pa.string(), ['{"b": [1]}', "[2]"]),
    ],
)
def test_a_kept_column_of_json_lines_gets_the_type_that_holds_all_of_it(
    tmp_path: Path, first: Sequence[Any], second: Sequence[Any], kind: pa.DataType, expected: list[Any]
) -> None:
    from compactor.predicting.formats import find_spans, open_input

    parts = []
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps({"text": "x", "kept": value}) + "\n" for value in (*first, *second)))
    source = open_input(path)
    reader = JsonLinesReader(source, ["text"], ["kept"])
    for span in find_spans(source, len(first)):
        parts.append(save(tmp_path / f"{span.number}.arrow", reader.read(span).kept))
    join_parts(parts, tmp_path / "out.parquet")
    column = pq.read_table(tmp_path / "out.parquet").column("kept")
    assert (column.type, column.to_pylist()) == (kind, expected)


def test_an_output_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(file: io.BufferedWriter, tables: Any) -> None:
        file.write(b"half")
        raise ZeroDivisionError

    monkeypatch.setattr(joining, "_WRITERS", {"parquet": fails})
    (tmp_path / "parts").mkdir()
    with pytest.raises(ZeroDivisionError):
        join_parts(parts_of(tmp_path / "parts", {"row": [0]}), tmp_path / "out.parquet")
    assert not (tmp_path / "out.parquet").exists()
