"""The whole way: three formats, bad rows, and a run that was killed and goes on as if nothing had happened."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from compactor.errors import OutputError, UsageError
from compactor.predicting import predict as module
from compactor.predicting.formats import find_spans, open_input
from compactor.predicting.inputs import Span
from compactor.predicting.predict import Prediction, PredictionInterrupted, predict
from compactor.predicting.scoring import Job, Reading, Scorer
from compactor.runtime.answers import Answered, Classified, Refused
from compactor.runtime.errors import ArtefactError
from compactor.runtime.model import load
from compactor.runtime.reading import ReadingOptions
from tests.compactor.predicting.conftest import CHUNK_ROWS, Scored, sentences
from tests.compactor.predicting.files import read, write


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.parquet"


def again(small: Path, scored: Scored, out: Path, **options: Any) -> Prediction:
    """The run that ``scored`` is of."""
    return predict(small, scored.source, out, **{"keep": ["id"], "chunk_rows": CHUNK_ROWS, **options})


def test_every_row_has_the_models_answer(small: Path, scored: Scored) -> None:
    rows = read(scored.out)
    assert [row["row"] for row in rows] == list(range(600))
    assert [row["id"] for row in rows] == [f"r{number}" for number in range(600)]
    assert list(rows[0]) == ["row", "id", "label", "score", "scores", "error"]
    model = load(small)
    texts = sentences(600)
    for first in range(0, 600, CHUNK_ROWS):
        for row, answer in zip(rows[first:], model(texts[first : first + CHUNK_ROWS]), strict=False):
            assert isinstance(answer, Classified)
            assert (row["label"], row["score"], row["error"]) == (answer.label, pytest.approx(answer.score), None)
            assert row["scores"] == answer.scores.tolist()
    assert {row["label"] for row in rows} == {"negative", "positive"}


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_the_format_of_the_input_changes_nothing(small: Path, scored: Scored, tmp_path: Path, suffix: str) -> None:
    columns = {"id": [f"r{number}" for number in range(600)], "sentence": sentences(600)}
    result = again(small, Scored(write(tmp_path / f"in.{suffix}", columns), scored.out), tmp_path / "out.parquet")
    assert (tmp_path / "out.parquet").read_bytes() == scored.out.read_bytes()
    assert result.rows == 600
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"in.{suffix}", "out.parquet"]


def test_threads_change_nothing(small: Path, scored: Scored, out: Path) -> None:
    again(small, scored, out, threads=2)
    assert out.read_bytes() == scored.out.read_bytes()


def test_int8_by_token_answers_a_row_as_among_63_others(
    token_artefact: Path, film_texts: list[str], tmp_path: Path
) -> None:
    def answers(name: str, texts: list[str]) -> list[dict[str, Any]]:
        source = write(tmp_path / f"{name}.tsv", {"text": texts})
        out = tmp_path / f"{name}.parquet"
        assert predict(token_artefact, source, out, precision="int8", threads=1).rows == len(texts)
        return read(out)

    together = answers("together", film_texts)
    for place in (0, 20, 41, 63):
        (alone,) = answers(f"alone-{place}", film_texts[place : place + 1])
        assert alone["label"] == together[place]["label"]
        assert together[place]["scores"] == pytest.approx(alone["scores"], rel=0, abs=1e-6)


def test_bad_rows_have_an_error_and_the_rest_its_answers(small: Path, out: Path, tmp_path: Path) -> None:
    texts: list[Any] = sentences(20)
    alone = tmp_path / "alone.parquet"
    predict(small, write(tmp_path / "good.parquet", {"text": texts}), alone, precision="fp32")
    bad = {3: "", 7: None, 11: "film " * 5000, 19: "   "}
    for place, text in bad.items():
        texts[place] = text
    result = predict(small, write(tmp_path / "in.parquet", {"text": texts}), out, precision="fp32")
    assert (result.rows, result.refused) == (20, 4)
    rows = read(out)
    assert [row["row"] for row in rows if row["error"]] == list(bad)
    assert ["too long" in rows[11]["error"], "empty" in rows[3]["error"]] == [True, True]
    for row, good in zip(rows, read(alone), strict=True):
        if row["row"] in bad:
            assert [row["label"], row["score"], row["scores"]] == [None, None, None]
        else:
            assert row["label"] == good["label"]
            assert row["score"] == pytest.approx(good["score"], abs=1e-5)
    predict(small, tmp_path / "in.parquet", out, precision="fp32", truncate=True, overwrite=True)
    assert [row["row"] for row in read(out) if row["error"]] == [3, 7, 19]


def test_rows_of_json_lines_may_hold_anything(small: Path, out: Path, tmp_path: Path) -> None:
    lines = ['{"text": "dull"}', '{"text": 3}', '{"text": ["a"]}', "{", '{"txt": "a"}', '{"text": "\\ud800"}']
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    assert predict(small, tmp_path / "in.jsonl", out).refused == 5
    assert [bool(row["error"]) for row in read(out)] == [False, *[True] * 5]


def test_all_rows_may_be_refused(small: Path, out: Path, tmp_path: Path) -> None:
    assert predict(small, write(tmp_path / "in.jsonl", {"text": [""] * 3}), out).refused == 3
    assert pq.read_schema(out).names == ["row", "label", "score", "scores", "error"]


@pytest.mark.parametrize("suffix", ["jsonl", "tsv"])
def test_other_outputs_have_the_same_rows(small: Path, scored: Scored, tmp_path: Path, suffix: str) -> None:
    again(small, scored, tmp_path / f"out.{suffix}")
    lines = (tmp_path / f"out.{suffix}").read_text("utf-8").splitlines()
    assert len(lines) == 600 + (suffix == "tsv")
    assert all(str(row["label"]) in line for row, line in zip(read(scored.out), lines[-600:], strict=True))


# Questions and pairs, by a model that only says what it got


class Echo:
    """Says of each item what it is."""

    def __call__(self, items: Sequence[Any], *, role: str | None, prompt_name: str | None) -> list[Any]:
        assert (role, prompt_name) == ("query", None)
        return [Refused("no") if "bad" in item else Answered("|".join(item), 0.5, 0, 1) for item in items]


def test_a_question_goes_with_its_context(tmp_path: Path) -> None:
    path = write(tmp_path / "in.tsv", {"context": ["c1", "c2", "c3"], "question": ["q1", "bad", "q3"]})
    with path.open("a") as file:
        file.write("no tab\nc5\tq5\n")
    source = open_input(path)
    columns = module.choose_columns(source, "question-answering", (), text=None, pair=None, keep=[])
    job = Job(tmp_path, Answered, (), "fp32", "cpu", False, Reading(role="query"), source, columns)
    (span,) = find_spans(source, 10)
    (tmp_path / "part.arrow").write_bytes(Scorer(job, Echo())(span))  # type: ignore[arg-type]
    module.join_parts([tmp_path / "part.arrow"], tmp_path / "out.parquet")
    rows = read(tmp_path / "out.parquet")
    assert [row["answer"] for row in rows] == ["q1|c1", None, "q3|c3", None, "q5|c5"]
    assert [row["error"] for row in rows] == [None, "no", None, "the line has 1 fields and the header 2", None]


def test_settings_of_reading_make_another_run(small: Path, scored: Scored, tmp_path: Path) -> None:
    """Those of vectors and prompts are checked before anything is answered."""
    with pytest.raises(UsageError, match="no prompt 'ask'"):
        predict(small, scored.source, tmp_path / "out.parquet", prompt_name="ask")
    assert Reading().identity() == {}
    assert Reading(ReadingOptions("max", no_answer=True), role="query").identity() == {
        "aggregation": "max",
        "no answer": True,
        "role": "query",
    }


# Interrupted


def stopped_after(monkeypatch: pytest.MonkeyPatch, chunks: int, error: BaseException) -> list[int]:
    """Let a run answer so many chunks, and then end by ``error``; the numbers of those that it answered."""
    answered: list[int] = []
    original = module.Scorer.__call__

    def stops(self: Scorer, span: Span) -> bytes:
        if len(answered) == chunks:
            raise error
        answered.append(span.number)
        return original(self, span)

    monkeypatch.setattr(module.Scorer, "__call__", stops)
    return answered


def test_an_interrupted_run_goes_on(small: Path, scored: Scored, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        stopped_after(patch, 5, KeyboardInterrupt())
        with pytest.raises(PredictionInterrupted) as found:
            again(small, scored, out)
        assert (found.value.done, found.value.total) == (5 * CHUNK_ROWS, 600)
        assert not out.exists()
    with monkeypatch.context() as patch:
        answered = stopped_after(patch, 100, KeyboardInterrupt())
        said: list[str] = []
        result = again(small, scored, out, progress=said.append)
        assert answered == list(range(5, 38))
    assert result.resumed == 80
    assert "going on: 80 of 600 rows are answered" in said
    assert out.read_bytes() == scored.out.read_bytes()
    assert list(out.parent.iterdir()) == [out]


def test_a_chunk_that_was_lost_is_answered_again(
    small: Path, scored: Scored, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stopped_after(patch, 20, KeyboardInterrupt())
        with pytest.raises(PredictionInterrupted):
            again(small, scored, out)
    folder = out.parent / ".out.parquet.parts"
    (folder / "000003.arrow").unlink()
    (folder / "000011.arrow").write_bytes(b"half")
    again(small, scored, out)
    assert out.read_bytes() == scored.out.read_bytes()


def test_a_run_that_was_interrupted_at_its_end_only_joins(
    small: Path, scored: Scored, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "join_parts", interrupted)
        with pytest.raises(PredictionInterrupted):
            again(small, scored, out)
    with monkeypatch.context() as patch:
        patch.setattr(Job, "load", interrupted)  # no model is needed
        result = again(small, scored, out)
    assert (result.resumed, result.rate) == (600, 0)
    assert out.read_bytes() == scored.out.read_bytes()


def _wait_for(folder: Path, chunks: int, process: subprocess.Popen[bytes]) -> None:
    while len(list(folder.glob("*.arrow"))) < chunks:
        assert process.poll() is None, "it ended before it was killed"
        time.sleep(0.005)


def test_a_killed_process_loses_nothing(small: Path, scored: Scored, out: Path) -> None:
    command = [sys.executable, "-m", "compactor", "predict", str(small), str(scored.source), "-o", str(out)]
    command += ["--keep", "id", "--chunk-rows", str(CHUNK_ROWS), "-q"]
    with subprocess.Popen(command) as process:
        _wait_for(out.parent / ".out.parquet.parts", 3, process)
        os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not out.exists()
    result = again(small, scored, out)
    assert 3 * CHUNK_ROWS <= result.resumed < 600
    assert out.read_bytes() == scored.out.read_bytes()
    assert list(out.parent.iterdir()) == [out]


# What is refused


def test_only_the_same_run_goes_on(
    small: Path, scored: Scored, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "in.tsv"
    source.write_bytes(scored.source.read_bytes())
    mine = Scored(source, scored.out)
    with monkeypatch.context() as patch:
        stopped_after(patch, 3, KeyboardInterrupt())
        with pytest.raises(PredictionInterrupted):
            again(small, mine, out, precision="int8")
    for said, options in [
        ("settings precision was int8, now fp32", {"precision": "fp32"}),
        ("settings kept columns was id, now", {"keep": []}),
        ("settings truncation was False, now True", {"truncate": True}),
        ("settings chunk rows was 16, now 32", {"chunk_rows": 32}),
        ("settings text columns was sentence, now id", {"text": "id"}),
    ]:
        with pytest.raises(UsageError, match=said):
            again(small, mine, out, **{"precision": "int8", **options})
    with source.open("a") as file:
        file.write("r600\tone more\n")
    with pytest.raises(UsageError, match="its input size in bytes was"):
        again(small, mine, out, precision="int8")
    assert again(small, mine, out, overwrite=True).rows == 601


def test_a_text_that_was_changed_in_place_is_another_input(
    small: Path, scored: Scored, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "in.tsv"
    source.write_bytes(scored.source.read_bytes())
    with monkeypatch.context() as patch:
        stopped_after(patch, 3, KeyboardInterrupt())
        with pytest.raises(PredictionInterrupted):
            again(small, Scored(source, out), out)
    os.utime(source, ns=(0, source.stat().st_mtime_ns + 1))
    with pytest.raises(UsageError, match="its input time of change was"):
        again(small, Scored(source, out), out)


def test_an_output_is_replaced_only_when_it_is_said(small: Path, scored: Scored, out: Path) -> None:
    out.write_text("precious")
    with pytest.raises(OutputError, match="already exists"):
        again(small, scored, out)
    assert out.read_text() == "precious"
    again(small, scored, out, overwrite=True)
    assert out.read_bytes() == scored.out.read_bytes()


def test_what_cannot_be_is_refused_before_anything_is_written(small: Path, scored: Scored, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the output is the input"):
        predict(small, scored.source, scored.source, overwrite=True)
    with pytest.raises(UsageError, match="which format"):
        predict(small, scored.source, tmp_path / "out.csv")
    with pytest.raises(UsageError, match="no column 'nothing'"):
        predict(small, scored.source, tmp_path / "out.parquet", keep=["nothing"])
    with pytest.raises(UsageError, match="chunk_rows"):
        predict(small, scored.source, tmp_path / "out.parquet", chunk_rows=0)
    with pytest.raises(ArtefactError, match="no such folder"):
        predict(tmp_path / "nowhere", scored.source, tmp_path / "out.parquet")
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_cannot_be_loaded_leaves_nothing(
    small: Path, scored: Scored, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: Job, threads: int | None) -> None:
        raise ArtefactError("its graph is missing")

    monkeypatch.setattr(Job, "load", fails)
    with pytest.raises(ArtefactError):
        again(small, scored, out)
    assert list(out.parent.iterdir()) == []
