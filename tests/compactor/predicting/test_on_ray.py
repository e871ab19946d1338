"""Ray Data: the same bytes as one process gives, whoever dies on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray")

import ray

from compactor.errors import OutputError, UsageError
from compactor.predicting import on_ray
from compactor.predicting import predict as module
from compactor.predicting.on_ray import RayOptions
from compactor.predicting.predict import Prediction, PredictionInterrupted, predict
from tests.compactor.predicting import workers
from tests.compactor.predicting.conftest import CHUNK_ROWS, Scored

WORKERS = 2

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.*")  # of its own settings


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    """One Ray for all tests here: it takes seconds to start. Started as the command starts it."""
    with on_ray.running(None, cpus=WORKERS):
        yield


@pytest.fixture
def mine(scored: Scored, tmp_path: Path) -> Scored:
    """The same file in a folder of its own, where workers can leave notes."""
    source = tmp_path / "in.tsv"
    source.write_bytes(scored.source.read_bytes())
    return Scored(source, scored.out)


def on_two(small: Path, scored: Scored, out: Path, **options: Any) -> Prediction:
    return predict(
        small,
        scored.source,
        out,
        **{"keep": ["id"], "chunk_rows": CHUNK_ROWS, "ray": RayOptions(workers=WORKERS), **options},
    )


def test_ray_gives_what_one_process_gives(small: Path, scored: Scored, tmp_path: Path) -> None:
    said: list[str] = []
    result = on_two(small, scored, tmp_path / "out.parquet", progress=said.append)
    assert (tmp_path / "out.parquet").read_bytes() == scored.out.read_bytes()
    assert (result.rows, result.refused, result.resumed) == (600, 0, 0)
    assert "starting 2 workers" in said
    assert "connecting to Ray at this process" in said
    assert said[-2].startswith("600 of 600 rows (100 %)")
    assert ray.is_initialized()  # it was not ours to stop


def test_a_worker_that_dies_with_its_answer_loses_and_doubles_nothing(
    small: Path, mine: Scored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_ray, "Worker", workers.DiesOnce)
    on_two(small, mine, tmp_path / "out.parquet")
    assert int((tmp_path / "died").read_text()) > 0
    assert (tmp_path / "out.parquet").read_bytes() == mine.out.read_bytes()


@pytest.mark.slow
def test_workers_that_are_killed_half_way_lose_and_double_nothing(
    small: Path, mine: Scored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_ray, "Worker", workers.Mortal)
    notes = tmp_path / "notes"
    killed: list[int] = []

    def kill() -> None:
        while not notes.exists() or len(notes.read_text().splitlines()) < 4:
            time.sleep(0.005)
        for process in {int(line.split()[0]) for line in notes.read_text().splitlines()}:
            os.kill(process, signal.SIGKILL)
            killed.append(process)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    on_two(small, mine, tmp_path / "out.parquet")
    killer.join(timeout=10)
    assert killed
    said = [tuple(map(int, line.split())) for line in notes.read_text().splitlines()]
    assert {process for process, _ in said} > set(killed)  # others took their place
    assert {number for _, number in said} == set(range(38))
    assert (tmp_path / "out.parquet").read_bytes() == mine.out.read_bytes()


@pytest.mark.slow
def test_a_chunk_that_kills_every_worker_ends_the_run_and_the_rest_is_kept(
    small: Path, mine: Scored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(on_ray, "Worker", workers.AlwaysDies)
        with pytest.raises(OutputError, match="workers died 2 times over rows"):
            on_two(small, mine, tmp_path / "out.parquet")
    assert not (tmp_path / "out.parquet").exists()
    result = predict(small, mine.source, tmp_path / "out.parquet", keep=["id"], chunk_rows=CHUNK_ROWS)
    assert result.resumed > 0
    assert (tmp_path / "out.parquet").read_bytes() == mine.out.read_bytes()


def test_ray_goes_on_from_what_one_process_left(
    small: Path, scored: Scored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.parquet"
    with monkeypatch.context() as patch:
        calls: list[int] = []

        def stops(self: module.Pace, rows: int) -> None:
            calls.append(rows)
            if len(calls) == 30:
                raise KeyboardInterrupt

        patch.setattr(module.Pace, "add", stops)
        with pytest.raises(PredictionInterrupted):
            predict(small, scored.source, out, keep=["id"], chunk_rows=CHUNK_ROWS)
    assert on_two(small, scored, out).resumed == 30 * CHUNK_ROWS
    assert out.read_bytes() == scored.out.read_bytes()


def test_what_a_user_can_mend_comes_back_from_a_worker(
    small: Path, mine: Scored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = on_ray.score_on_ray

    def changed(*arguments: Any, **options: Any) -> Any:
        with mine.source.open("a") as file:
            file.write("r600\tone more\n")
        return original(*arguments, **options)

    monkeypatch.setattr(module, "score_on_ray", changed)
    with pytest.raises(UsageError, match="changed while it was read"):
        on_two(small, mine, tmp_path / "out.parquet")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.tsv"]


@pytest.mark.slow
def test_a_cluster_is_joined_and_left_running(small: Path, scored: Scored, tmp_path: Path) -> None:
    address = ray.get_runtime_context().gcs_address
    out = tmp_path / "out.parquet"
    command = [sys.executable, "-m", "compactor", "predict", str(small), str(scored.source), "-o", str(out)]
    command += ["--keep", "id", "--chunk-rows", str(CHUNK_ROWS), "--ray", "--ray-address", address]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert f"connecting to Ray at {address}" in done.stderr
    assert "Traceback" not in done.stderr
    assert out.read_bytes() == scored.out.read_bytes()
    assert ray.cluster_resources()["CPU"] == WORKERS


@pytest.mark.slow
def test_one_worker_gets_all_cores(small: Path, scored: Scored, tmp_path: Path) -> None:
    """A Ray of its own, started and stopped by the command."""
    out = tmp_path / "out.parquet"
    command = [sys.executable, "-m", "compactor", "predict", str(small), str(scored.source), "-o", str(out)]
    command += ["--keep", "id", "--chunk-rows", str(CHUNK_ROWS), "--ray", "--workers", "1", "--json", "-q"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["rows"] == 600
    assert out.read_bytes() == scored.out.read_bytes()
