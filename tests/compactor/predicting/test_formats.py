"""Input files: three formats with the same rows, read a chunk at a time; a bad row is an error of that row."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from compactor.errors import UsageError
from compactor.predicting import lines, parquet
from compactor.predicting.formats import find_spans, open_input, open_reader
from compactor.predicting.predict import plan
from tests.compactor.predicting.files import write

FORMATS = ["tsv", "jsonl", "parquet"]
TEXTS = [f"text {number}, “quoted” \u2028 and on" for number in range(250)]


def read_all(path: Path, chunk_rows: int, kept: tuple[str, ...] = ()) -> tuple[list[Any], list[Any], dict[int, str]]:
    """The texts, the first kept column, and the errors by row."""
    source = open_input(path)
    reader = open_reader(source, ["text"], kept)
    texts: list[Any] = []
    values: list[Any] = []
    errors = {}
    for span in find_spans(source, chunk_rows):
        rows = reader.read(span)
        assert len(rows.texts[0]) == span.rows <= chunk_rows
        assert len(texts) == span.first
        errors.update({span.first + place: error for place, error in rows.errors.items()})
        texts += rows.texts[0]
        values += rows.kept.column(0).to_pylist() if kept else []
    return texts, values, errors


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("chunk_rows", [1, 7, 100, 250, 10_000])
def test_chunks_together_are_the_file(tmp_path: Path, suffix: str, chunk_rows: int) -> None:
    identities = [f"r{number}" for number in range(len(TEXTS))]
    path = write(tmp_path / f"in.{suffix}", {"id": identities, "text": TEXTS})
    assert open_input(path).columns == ("id", "text")
    texts, kept, errors = read_all(path, chunk_rows, ("id",))
    assert texts == TEXTS
    assert [value.strip('"') for value in kept] == identities  # of JSON lines as JSON
    assert errors == {}


@pytest.mark.parametrize("suffix", FORMATS)
def test_chunks_can_be_read_in_any_order(tmp_path: Path, suffix: str) -> None:
    source = open_input(write(tmp_path / f"in.{suffix}", {"text": TEXTS}))
    spans = list(find_spans(source, 30))
    reader = open_reader(source, ["text"], [])
    for number in [4, 1, 8, 0, 0, 2, 7]:
        first = spans[number].first
        assert list(reader.read(spans[number]).texts[0]) == TEXTS[first : first + 30]


def test_lines_end_as_on_any_system_and_empty_ones_are_no_rows(tmp_path: Path) -> None:
    (tmp_path / "in.tsv").write_bytes(b"\xef\xbb\xbf\r\ntext\tid\r\na\t1\r\n\r\nb\t2\n\n\nc\t3")
    assert read_all(tmp_path / "in.tsv", 2)[0] == ["a", "b", "c"]
    (tmp_path / "in.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n \r\n\n{"text": "b"}\n\t\n')
    assert read_all(tmp_path / "in.jsonl", 1)[0] == ["a", "b"]


def test_a_bad_line_is_an_error_of_its_row(tmp_path: Path) -> None:
    (tmp_path / "in.tsv").write_bytes(b"text\tid\na\t1\nb\nc\t3\t4\n\xff\t5\nd\t6\n")
    texts, kept, errors = read_all(tmp_path / "in.tsv", 2, ("id",))
    assert texts == ["a", None, None, None, "d"]
    assert kept == ["1", None, None, None, "6"]
    assert errors == {
        1: "the line has 1 fields and the header 2",
        2: "the line has 3 fields and the header 2",
        3: "the line is not UTF-8 text",
    }
    bad = ["{", "[1]", '{"other": 1}', '{"text": 3}', "[" * 100_000, '{"text": ' + "9" * 5000 + "}"]
    (tmp_path / "in.jsonl").write_text("\n".join(['{"text": "a"}', *bad]) + "\n")
    texts, _, errors = read_all(tmp_path / "in.jsonl", 3)
    assert texts == ["a", None, None, None, 3, None, None]  # that 3 is no text, the model says
    no_object = "the line is not a JSON object"
    assert errors == {1: no_object, 2: no_object, 3: "there is no 'text' in the line", 5: no_object, 6: no_object}


@pytest.mark.parametrize("suffix", ["tsv", "jsonl"])
def test_a_chunk_of_long_lines_has_fewer_rows(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "LARGEST_CHUNK_BYTES", 1000)
    source = open_input(write(tmp_path / f"in.{suffix}", {"text": ["x" * 400] * 10}))
    assert max(span.rows for span in find_spans(source, 100)) == 3


def test_a_chunk_of_large_rows_has_fewer_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "LARGEST_CHUNK_BYTES", 1000)
    texts = [f"{number:400}" for number in range(10)]
    source = open_input(write(tmp_path / "in.parquet", {"text": texts}))
    assert [span.rows for span in find_spans(source, 100)] == [2, 2, 2, 2, 2]


# Memory


@pytest.mark.parametrize("suffix", ["tsv", "jsonl"])
def test_a_large_file_of_lines_is_never_in_memory(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"in.{suffix}"
    line = "x" * 1000 if suffix == "tsv" else json.dumps({"text": "x" * 1000})
    with path.open("w") as file:
        file.write("text\n" if suffix == "tsv" else "")
        for _ in range(20):
            file.write(f"{line}\n" * 1000)
    tracemalloc.start()
    source = open_input(path)
    spans = list(find_spans(source, 100))
    reader = open_reader(source, ["text"], [])
    for span in spans:
        reader.read(span)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sum(span.rows for span in spans) == 20_000
    assert path.stat().st_size > 20e6
    assert peak < 2e6


def test_parquet_is_read_a_batch_at_a_time_and_without_its_other_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "in.parquet"
    rows = 20_000
    pq.write_table(pa.table({"text": TEXTS * (rows // 250), "other": ["y"] * rows}), path, row_group_size=5_000)
    pulled = []
    original = pq.ParquetFile.iter_batches

    def counting(self: pq.ParquetFile, **options: Any) -> Any:
        assert options["columns"] == ["text"]
        for batch in original(self, **options):
            pulled.append(batch.num_rows)
            yield batch

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", counting)
    source = open_input(path)
    spans = list(find_spans(source, 50))
    assert pulled == []  # how many rows there are, its footer says
    reader = open_reader(source, ["text"], [])
    for read, span in enumerate(spans[:30], 1):
        reader.read(span)
        assert sum(pulled) < read * 50 + 1024
    assert pulled
    del pulled[:]
    reader.read(spans[-1])  # whole row groups are skipped
    assert sum(pulled) <= 5_000
    del pulled[:]
    reader.read(spans[2])
    assert sum(pulled) <= 1024


# What is refused


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("in.csv", b"text\na\n", "does not say which format"),
        ("in.json", b"[]", "does not say which format"),
        ("in.tsv", b"", "is empty"),
        ("in.tsv", b"text\n", "no rows"),
        ("in.tsv", b"\n\n", "no rows"),
        ("in.tsv", b"\x1f\x8b\x08\0\0", "not text"),
        ("in.tsv", b"t\xffxt\na\n", "not UTF-8"),
        ("in.tsv", b"a\ta\n1\t2\n", "the same name"),
        ("in.jsonl", b"[1]\n", "not a JSON object"),
        ("in.jsonl", b"hello\n", "not a JSON object"),
        ("in.parquet", b"hello there", "cannot be read as Parquet"),
    ],
)
def test_a_file_that_is_no_table(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=said):
        plan(open_input(tmp_path / name), 10)


def test_a_parquet_file_without_rows(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no rows"):
        open_input(write(tmp_path / "in.parquet", {"text": pa.array([], pa.string())}))


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        open_input(tmp_path / "in.tsv")
    (tmp_path / "in.tsv").mkdir()
    with pytest.raises(UsageError, match="cannot be read"):
        open_input(tmp_path / "in.tsv")


def test_a_line_without_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "_LONGEST_LINE", 100)
    (tmp_path / "in.tsv").write_text("text\n" + "x" * 200)
    with pytest.raises(UsageError, match="row 0 is longer"):
        list(find_spans(open_input(tmp_path / "in.tsv"), 10))


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_file_that_changes_while_it_is_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"in.{suffix}"
    source = open_input(write(path, {"text": TEXTS}))
    spans = list(find_spans(source, 100))
    reader = open_reader(source, ["text"], [])
    reader.read(spans[0])
    write(path, {"text": TEXTS[:-1]})
    with pytest.raises(UsageError, match="changed while it was read"):
        reader.read(spans[1])
