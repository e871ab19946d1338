"""``compactor predict``: what it says, and its exit codes."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from compactor.predicting import predict as module
from tests.compactor.fakes import run
from tests.compactor.predicting.conftest import CHUNK_ROWS, Scored
from tests.compactor.predicting.files import write


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.parquet"


def test_it_says_what_it_did(small: Path, tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path / "in.jsonl", {"text": ["dull", "", "bright", "warm"]})
    assert run("predict", small, source, "-o", out) == 0
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert lines[0] == "4 rows answered, from 'text', 1 of them refused: their column 'error' says why"
    assert " on " in lines[1]
    assert "rows/s" in lines[2]
    assert lines[3] == f"written: {out}"
    assert "4 of 4 rows (100 %)" in said.err


def test_it_says_it_as_json(small: Path, scored: Scored, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--keep", "id", "--keep", "id", "--chunk-rows", CHUNK_ROWS, "--threads", 1, "--json", "-q"]
    assert run("predict", small, scored.source, "-o", out, *options) == 0
    said = capsys.readouterr()
    assert said.err == ""
    result = json.loads(said.out)
    assert {name: result[name] for name in ("path", "rows", "refused", "resumed", "columns")} == {
        "path": str(out),
        "rows": 600,
        "refused": 0,
        "resumed": 0,
        "columns": ["sentence"],
    }
    assert result["rate"] > 0
    assert out.read_bytes() == scored.out.read_bytes()


@pytest.mark.parametrize(
    ("code", "options", "said"),
    [
        (2, ["--text", "nothing"], "no column 'nothing'"),
        (2, ["--workers", "2"], "--workers is for --ray"),
        (2, ["--ray-address", "here"], "--ray-address is for --ray"),
        (2, ["--ray", "--provider", "cuda"], "on no GPU"),
        (2, ["--chunk-rows", "0"], "--chunk-rows"),
        (2, ["-q", "-v"], "contradict"),
        (2, ["-o", "out.csv"], "does not say which format"),
        (3, ["--precision", "fp16"], "holds no fp16"),
    ],
)
def test_mistakes(
    small: Path, scored: Scored, out: Path, code: int, options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if "--ray" in options:
        pytest.importorskip("ray")
    assert run("predict", small, scored.source, "-o", out, *options) == code
    err = capsys.readouterr().err
    assert said in err
    assert not any(out.parent.iterdir())


def test_files_that_are_not_there(small: Path, scored: Scored, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("predict", small, out.parent / "in.tsv", "-o", out, "-q") == 2
    assert run("predict", out.parent / "nowhere", scored.source, "-o", out, "-q") == 3
    out.write_text("precious")
    assert run("predict", small, scored.source, "-o", out, "-q") == 5
    assert len(capsys.readouterr().err.splitlines()) == 9  # three lines each


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_interrupted_run_says_how_to_go_on(
    small: Path,
    scored: Scored,
    out: Path,
    overwrite: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def stops(self: module.Pace, rows: int) -> None:
        self.done += rows
        raise KeyboardInterrupt

    command = ["predict", small, scored.source, "-o", out, "--keep", "id", "--chunk-rows", CHUNK_ROWS, "-q"]
    with monkeypatch.context() as patch:
        patch.setattr(module.Pace, "add", stops)
        assert run(*command, *["--overwrite"] * overwrite) == 130
    without = ", without --overwrite," if overwrite else ""
    err = capsys.readouterr().err.splitlines()
    assert err[0] == f"kept: 16 of 600 rows; the same command{without} goes on from there"
    assert run(*command) == 0
    assert "16 of them had been answered by an earlier run" in capsys.readouterr().out
    assert out.read_bytes() == scored.out.read_bytes()


@pytest.mark.skipif(sys.platform == "win32", reason="limits of files are those of POSIX")
@pytest.mark.parametrize("limit", [100, 1_500, 8_000])  # full at its settings, at a chunk, when they are joined
def test_a_full_disk_keeps_what_is_answered(small: Path, scored: Scored, out: Path, limit: int) -> None:
    script = f"""
import resource, sys
from compactor.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
sys.exit(main(sys.argv[1:]))
"""
    options = ["-o", str(out), "--keep", "id", "--chunk-rows", str(CHUNK_ROWS)]
    command = [sys.executable, "-c", script, "predict", str(small), str(scored.source), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 5, done.stderr
    assert "error: the disk is full" in done.stderr
    assert "goes on" in done.stderr
    parts = list((out.parent / ".out.parquet.parts").glob("*.arrow"))
    assert len(parts) == (38 if limit == 8_000 else 0)
    assert not out.exists()
    assert run("predict", small, scored.source, *options, "-q") == 0
    assert out.read_bytes() == scored.out.read_bytes()


def test_missing_packages_are_named(
    small: Path, scored: Scored, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = importlib.util.find_spec

    def find_spec(name: str) -> object:
        return None if name in {"ray", "pyarrow"} else original(name)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    assert run("predict", small, scored.source, "-o", out) == 2
    assert "compactor[predict]" in capsys.readouterr().err
    assert run("predict", small, scored.source, "-o", out, "--ray") == 2
    assert "compactor[ray]" in capsys.readouterr().err
