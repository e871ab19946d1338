"""The folder of finished chunks: who may go on from it, and what counts as finished."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pyarrow as pa
import pytest

from compactor.errors import OutputError, UsageError
from compactor.predicting.inputs import Span
from compactor.predicting.parts import REFUSED, Parts, check_output

SPANS = [Span(0, 0, 4), Span(1, 4, 4), Span(2, 8, 1)]
IDENTITY = {"input": {"format": "tsv"}, "settings": {"precision": "int8", "text columns": ["a", "b"]}}


def part(rows: int, refused: int = 0) -> bytes:
    sink = pa.BufferOutputStream()
    schema = pa.schema([("row", pa.int64())], metadata={REFUSED: str(refused).encode()})
    with pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(pa.RecordBatch.from_arrays([pa.array(range(rows))], schema=schema))
    content: bytes = sink.getvalue().to_pybytes()
    return content


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.parquet"


def begin(out: Path, *, overwrite: bool = False) -> None:
    """A run that finishes one chunk."""
    with Parts(out, IDENTITY, overwrite=overwrite) as parts:
        parts.write(1, part(4, refused=3))


def test_a_run_goes_on(out: Path) -> None:
    begin(out)
    with Parts(out, IDENTITY, overwrite=False) as parts:
        assert parts.folder == out.parent / ".out.parquet.parts"
        assert parts.finished(SPANS) == {1: 3}
        parts.write(1, part(4, refused=2))  # again
        parts.write(2, part(1))
        assert parts.finished(SPANS) == {1: 2, 2: 0}
        parts.remove()
    assert list(out.parent.iterdir()) == []


@pytest.mark.parametrize("content", [b"", part(4)[:-20], part(3), part(5), b"x" * 1000])
def test_half_a_chunk_is_not_finished(out: Path, content: bytes) -> None:
    begin(out)
    with Parts(out, IDENTITY, overwrite=False) as parts:
        parts.path(1).write_bytes(content)
        assert parts.finished(SPANS) == {}


def test_another_run_is_refused_with_what_differs(out: Path) -> None:
    begin(out)
    other = {"input": {"format": "jsonl"}, "settings": {"precision": "fp32", "text columns": ["a"]}}
    with pytest.raises(UsageError) as found, Parts(out, other, overwrite=False):
        pass
    assert found.value.what == (
        "another run was interrupted here: its input format was tsv, now jsonl; "
        "its settings precision was int8, now fp32; its settings text columns was a, b, now a"
    )
    assert "--overwrite" in str(found.value.todo)
    begin(out)  # it has not been touched
    with Parts(out, other, overwrite=True) as parts:
        assert parts.finished(SPANS) == {}


def test_a_run_without_a_finished_chunk_binds_nobody(out: Path) -> None:
    with pytest.raises(ZeroDivisionError), Parts(out, {"other": 1}, overwrite=False):
        raise ZeroDivisionError
    assert list(out.parent.iterdir()) == []
    with Parts(out, {"other": 1}, overwrite=False):
        pass
    begin(out)


@pytest.mark.parametrize("state", ["", "[]", "{", "x" * 2_000_000])
def test_chunks_of_nobody_knows_which_run_are_not_taken(out: Path, state: str) -> None:
    begin(out)
    (out.parent / ".out.parquet.parts" / "run.json").write_text(state)
    with Parts(out, IDENTITY, overwrite=False) as parts:
        assert parts.finished(SPANS) == {}


def test_an_output_is_replaced_only_by_who_may(out: Path) -> None:
    out.write_text("precious")
    with pytest.raises(OutputError, match="already exists"), Parts(out, IDENTITY, overwrite=False):
        pass
    begin(out, overwrite=True)
    check_output(out, overwrite=False)  # the run that was told to replace it goes on without being told again
    with Parts(out, IDENTITY, overwrite=False) as parts:
        assert parts.finished(SPANS) == {1: 3}
    begin(out, overwrite=True)  # told again, it begins anew
    with Parts(out, IDENTITY, overwrite=True) as parts:
        assert parts.finished(SPANS) == {}
    assert out.read_text() == "precious"


def test_an_output_that_is_a_folder(out: Path) -> None:
    out.mkdir()
    with pytest.raises(OutputError, match="is a folder"):
        check_output(out, overwrite=True)


@pytest.mark.parametrize("overwrite", [False, True])
def test_two_processes_do_not_write_one_output(out: Path, overwrite: bool) -> None:
    with Parts(out, IDENTITY, overwrite=False) as parts:
        parts.write(0, part(4))
        with pytest.raises(OutputError, match="another process"), Parts(out, IDENTITY, overwrite=overwrite):
            pass
        assert parts.finished(SPANS) == {0: 0}
    begin(out)


def test_a_chunk_that_could_not_be_written_is_not_there(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with Parts(out, IDENTITY, overwrite=False) as parts:
        parts.write(0, part(4))
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(OSError, match="No space"):
                parts.write(1, part(4))
        assert parts.finished(SPANS) == {0: 0}
