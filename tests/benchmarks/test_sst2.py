"""Pruned MiniLM on SST-2: which runs there are, and what is kept of them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks import _graphs, _run, sst2
from compactor.trainer.methods import METHODS
from tests.benchmarks.made_up import SETTINGS, in_this_process
from tests.benchmarks.made_up_sst2 import SENTENCES, made, options
from tests.compactor.trainer.tiny import write_model, write_sentences


def bench_in(folder: Path, **changes: Any) -> sst2.Bench:
    """Of runs in ``folder``, where nothing is yet."""
    common = sst2.common_settings(options())
    values = {"given": {}, "dense_steps": 1250, "threads": 1} | changes
    return sst2.Bench(work=folder, data=folder / "data", common=common, **values)


def test_every_question_of_the_paper_has_its_runs() -> None:
    ids = [run.id for run in sst2.RUNS]
    assert len(set(ids)) == len(ids)
    assert ids[0] == "dense", "all others start from it"
    families = {family: sum(run.family == family for run in sst2.RUNS) for family in {run.family for run in sst2.RUNS}}
    assert families == {
        "dense": 1,
        "hybrid": 3,
        "hybrid, longer": 1,
        "hybrid, by λ": 3,
        "hybrid, no teacher": 2,
        "hybrid, filled": 2,
        "struct": 2,
        "magnitude": 2,
        "attention only": 3,
        "block": 4,
    }


@pytest.mark.parametrize("run", sst2.RUNS, ids=lambda run: run.id)
def test_every_run_is_of_one_budget_and_steered_to_what_its_name_says(run: sst2.Run, tmp_path: Path) -> None:
    config = bench_in(tmp_path).config(run)
    assert config.method in METHODS
    assert config.steps == (1250 if run.id == "dense" else 600 * run.budget)
    assert config.freeze_embeddings
    named = re.search(r"0\.\d\d$", run.id)
    if named is not None and run.first is None:
        assert config.target_density == float(named[0])
    if run.id.startswith("hybrid-lambda-"):
        assert (config.strength, config.target_density) == (float(run.id.rpartition("-")[2]), None)


def test_a_filled_run_comes_after_the_one_that_it_goes_on_from() -> None:
    ids = [run.id for run in sst2.RUNS]
    firsts = {run.id: run.first for run in sst2.RUNS if run.first is not None}
    assert firsts == {"hybrid-filled-0.30": "hybrid-0.30", "hybrid-filled-0.15": "hybrid-0.15"}
    assert all(ids.index(first) < ids.index(name) for name, first in firsts.items())


def test_attention_alone_is_pruned_to_30_percent_of_its_weights() -> None:
    width, inner = 384, 1536
    attention, feed_forward = 4 * width * width, 2 * width * inner
    settings = next(run for run in sst2.RUNS if run.id == "attention-head").settings
    left = settings["target_density"] * (attention + feed_forward) - feed_forward
    assert left / attention == pytest.approx(0.30)
    assert settings["feed_forward_block"] == "none"


def test_only_what_is_named_is_trained_and_the_dense_model_it_needs() -> None:
    assert [run.id for run in sst2.chosen_runs("hybrid-0, struct-0.30")] == [
        "dense",
        "hybrid-0.45",
        "hybrid-0.30",
        "hybrid-0.15",
        "struct-0.30",
    ]
    assert sst2.chosen_runs(None) == list(sst2.RUNS)
    with pytest.raises(SystemExit, match="no run is called 'hybird'"):
        sst2.chosen_runs("struct,hybird")


# What is kept


def test_a_run_is_finished_when_its_record_is_there(tmp_path: Path) -> None:
    bench, run = bench_in(tmp_path), sst2.RUNS[1]
    folder = bench.folder(run)
    folder.mkdir(parents=True)
    (folder / "model.safetensors").touch()
    assert not bench.is_finished(run)
    (folder / "training.json").touch()
    assert bench.is_finished(run)


def test_a_dense_model_that_was_given_needs_no_record(tmp_path: Path) -> None:
    given = tmp_path / "elsewhere"
    bench = bench_in(tmp_path / "work", given={"dense": given})
    assert not bench.is_finished(sst2.RUNS[0])
    given.mkdir()
    (given / "model.safetensors").touch()
    assert bench.is_finished(sst2.RUNS[0])


def test_a_dense_model_that_is_not_there_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        sst2.main(["--data", str(tmp_path), "--dense", str(tmp_path)])
    assert "--dense: there is no finished model in" in capsys.readouterr().err


def test_a_run_that_fails_is_a_reason_and_the_next_one_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = bench_in(tmp_path)
    dense, hybrid = sst2.RUNS[0], sst2.RUNS[1]
    assert sst2.train_or_say_why(bench, hybrid) == {hybrid.id: "not run: there is no dense model to start from"}
    _finish(bench, dense)
    filled = next(run for run in sst2.RUNS if run.first is not None)
    assert sst2.train_or_say_why(bench, filled) == {
        filled.id: "not run: it goes on from hybrid-0.30, which was not run"
    }

    def killed(*_: Any) -> None:
        raise OSError("killed")

    monkeypatch.setattr(_graphs, "in_fresh_process", killed)
    assert sst2.train_or_say_why(bench, hybrid) == {hybrid.id: "OSError: killed"}
    assert "killed" in capsys.readouterr().err

    (bench.folder(hybrid) / "checkpoints" / "checkpoint-1").mkdir(parents=True)
    monkeypatch.setattr(_graphs, "in_fresh_process", lambda *_: None)
    assert sst2.train_or_say_why(bench, hybrid) == {}
    assert not (bench.folder(hybrid) / "checkpoints").exists(), "those of a finished run fill the disk"


def _finish(bench: sst2.Bench, run: sst2.Run) -> None:
    bench.folder(run).mkdir(parents=True, exist_ok=True)
    (bench.folder(run) / "training.json").touch()


def test_without_a_dense_model_every_row_says_that_it_was_not_run(tmp_path: Path) -> None:
    found = sst2.collect(bench_in(tmp_path), SETTINGS, {"hybrid-0.45": "the loss is no number"})
    rows = {row["id"]: (row["status"], row["why"]) for row in found["rows"]}
    assert rows["hybrid-0.45"] == ("failed", "the loss is no number")
    assert rows["hybrid-0.30"] == ("not run", "it was not trained")
    assert rows["nn-pruning"] == ("not run", "no checkpoint given: --peer")


def test_what_was_trained_with_other_settings_says_which(tmp_path: Path) -> None:
    bench, run = bench_in(tmp_path), sst2.RUNS[1]
    settings = bench.config(run).to_json() | {"steps": 400}
    final = {
        "metrics": {},
        "lambda": 20.0,
        "seconds": 1.0,
        "density": 0.45,
        "density_attention": 0.4,
        "density_feed_forward": 0.5,
        "weights": [45, 100],
        "heads": [3, 4],
        "neurons": [5, 8],
        "layers": [{"heads": [True, False]}, {"heads": None}, {"heads": [True, True]}],
    }
    _finish(bench, run)
    record = {"steps": 400, "settings": settings, "final": final, "warnings": []}
    (bench.folder(run) / "training.json").write_text(json.dumps(record), encoding="utf-8")
    facts = sst2.describe_training(bench, run)
    assert facts["other_settings"] == ["steps"]
    assert facts["settings"]["steps"] == 400
    assert "seed" not in facts["settings"], "it has its default"
    assert facts["heads_by_layer"] == [1, 2]


def test_a_row_counts_right_answers_and_pairs_them_with_the_dense_model() -> None:
    row = made(sst2.RUNS[1])
    masked, int8 = row["quality"]["masked"], row["quality"]["int8"]
    assert (masked["correct"], masked["n"], masked["changed"]) == (358, SENTENCES, 0)
    assert masked["difference"]["value"] == pytest.approx(-2 / SENTENCES)
    assert masked["difference"]["changed"] == 2
    assert (int8["correct"], int8["changed"]) == (356, 2)


def test_an_earlier_measurement_stays_until_there_is_a_new_one(tmp_path: Path) -> None:
    nothing = {"latency": None, "relative_error": {}}
    out = tmp_path / "out.json"
    assert sst2.kept_measurement(None) == sst2.kept_measurement(out) == nothing
    out.write_text('{"kind": "something else", "latency": 1}', encoding="utf-8")
    assert sst2.kept_measurement(out) == nothing
    out.write_text('{"kind": "compactor-sst2", "latency": 1, "relative_error": {"a": 2}}', encoding="utf-8")
    assert sst2.kept_measurement(out) == {"latency": 1, "relative_error": {"a": 2}}


def test_the_command_names_no_place_of_this_machine(tmp_path: Path) -> None:
    typed = ["--data", str(tmp_path), "--dense", str(tmp_path), "--peer", str(tmp_path), "--steps", "600"]
    command = _run.command("sst2.py", typed)
    assert command == "python benchmarks/sst2.py --data DATA --dense DENSE --peer PEER --steps 600"


@pytest.mark.slow
def test_a_tiny_study_from_data_to_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    data, out = tmp_path / "data", tmp_path / "out.json"
    data.mkdir()
    for seed, (name, count) in enumerate({"train": 40, "dev": 40, "test": 40}.items()):
        write_sentences(data / f"{name}.tsv", count, seed=seed)
    write_model(tmp_path / "model")
    monkeypatch.setattr(_graphs, "in_fresh_process", in_this_process)
    monkeypatch.setattr(sst2, "DEV_HEAD", 30)
    asked = ["--data", str(data), "--model", str(tmp_path / "model"), "--work", str(tmp_path / "work")]
    asked += ["--out", str(out), "--build-only", "--threads", str(torch.get_num_threads())]
    asked += ["--steps", "10", "--dense-steps", "10", "--batch", "8", "--only", "magnitude-0.30"]
    assert sst2.main(asked) == 0

    result = json.loads(out.read_text(encoding="utf-8"))
    rows = {row["id"]: row for row in result["rows"]}
    assert [name for name, row in rows.items() if row["status"] == "measured"] == ["dense", "magnitude-0.30"]
    assert result["data"]["test.tsv"]["sentences"] == len(result["references"]) == 40
    dense, pruned = rows["dense"], rows["magnitude-0.30"]
    assert dense["dev"]["accuracy"]["n"] == 30
    assert (dense["density"], dense["heads"], dense["neurons"]) == (pytest.approx(1.0), [8, 8], [96, 96])
    assert pruned["density"] < 0.9
    for row in (dense, pruned):
        assert row["other_settings"] == []
        assert row["answers"]["fp32"] == row["answers"]["masked"], "an export is exact"
        right = sum(a == b for a, b in zip(row["answers"]["masked"], result["references"], strict=True))
        assert row["quality"]["masked"]["correct"] == right
        assert row["bytes"]["int8"] > 0
    assert result["latency"] is None
    assert out.with_suffix(".svg").exists()
    assert "| magnitude-0.30 | - |" in capsys.readouterr().out

    weights = tmp_path / "work" / "runs" / "magnitude-0.30" / "model.safetensors"
    trained = weights.stat().st_mtime_ns
    assert sst2.main([*asked, "--no-train"]) == 0
    assert weights.stat().st_mtime_ns == trained
    again = json.loads(out.read_text(encoding="utf-8"))
    assert again["rows"] == result["rows"]
