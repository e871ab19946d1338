"""``compactor prune --speedup``: what it hands on, what it prints, and how it ends."""

from __future__ import annotations

import json
import types
from pathlib import Path
from typing import Any

import pytest

from compactor.errors import UsageError
from compactor.speedup.costs import Load
from compactor.speedup.settings import SpeedSettings
from compactor.trainer.config import PruneConfig
from tests.compactor.fakes import replace_module, run

METRIC = {"value": 0.91, "se": 0.01, "n": 872, "difference": {"value": -0.012, "se": 0.004}}


def record(*, kept: bool = True) -> dict[str, Any]:
    measured = {"speedup": 2.03 if kept else 1.7, "low": 1.6, "high": 2.1, "latency_ms": 3.0, "valid": True}
    return {
        "model": "teacher",
        "load_words": "1 x 128 tokens, int8",
        "machine": {"cpu_model": "a processor"},
        "metric": "accuracy",
        "tolerance": 0.05,
        "whole": {"metrics": {"accuracy": METRIC}, "fp32_metrics": {"accuracy": {**METRIC, "difference": None}}},
        "models": [
            {"name": "2.0x", "predicted": 2.01, "measured": measured, "kept": kept, "metrics": {"accuracy": METRIC}}
        ],
        "warnings": [] if kept else ["2.0x is 1.70 times as fast"],
    }


@pytest.fixture
def asked(monkeypatch, tmp_path, model):
    """What ``prune_to_speed`` was asked for, and what it answers."""
    found = types.SimpleNamespace(answer=record(), given=(), options={})

    def prune_to_speed(*given, **options):
        found.given, found.options = given, options
        if isinstance(found.answer, BaseException):
            raise found.answer
        missed = [item for item in found.answer["models"] if not item["kept"]]
        return types.SimpleNamespace(path=given[2], record=found.answer, missed=missed)

    replace_module(monkeypatch, "compactor.speedup.family", prune_to_speed=prune_to_speed)
    monkeypatch.chdir(tmp_path)
    return found


def test_the_defaults(asked):
    assert run("prune", "model", "--speedup", "2,1.5", "--data", "t.tsv", "-o", "out", "-q") == 0
    assert asked.given == (
        Path("model"),
        Path("t.tsv"),
        Path("out"),
        SpeedSettings((1.5, 2.0), Load(1, 128, None, "int8")),
    )
    assert asked.options["training"] is None and asked.options["evaluation"] is None


def test_all_options(asked):
    typed = "--speedup 2x --data t.tsv --eval d.tsv -o out --batch 8 --lengths l.txt --precision fp32 --costs c.json"
    training = "--trials 3 --seed 5 --steps 9 --batch-size 4 --teacher model --resume"
    assert run("prune", "model", *typed.split(), *training.split(), "-q") == 0
    load = Load(8, None, Path("l.txt"), "fp32")
    assert asked.given[3] == SpeedSettings((2.0,), load, costs=Path("c.json"), trials=3, seed=5)
    assert asked.options["training"] == PruneConfig(method="tuned", steps=9, batch_size=4, seed=5)
    assert asked.options["teacher"] == Path("model") and asked.options["resume"]


def test_a_method_of_the_paper(asked):
    typed = "--speedup 3 --method hybrid --data t.tsv --eval d.tsv -o out --lambda 30 --block 16x16"
    assert run("prune", "model", *typed.split(), "-q") == 0
    expected = PruneConfig(method="hybrid", strength=30.0, attention_block="16x16")
    assert asked.options["training"] == expected, "for three epochs, as without --speedup"


def test_what_it_prints(asked, capsys):
    assert run("prune", "model", "--speedup", "2", "--data", "t.tsv", "-o", "out") == 0
    printed = capsys.readouterr().out
    assert "teacher: 1 x 128 tokens, int8, a processor" in printed
    assert "2.0x" in printed and "2.03" in printed and "[1.60, 2.10]" in printed
    assert "91.00 %" in printed and "-1.20 ± 0.40" in printed
    assert "compactor export out/2.0x OUT_DIR" in printed


def test_json(asked, capsys):
    assert run("prune", "model", "--speedup", "2", "--data", "t.tsv", "-o", "out", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"path": "out", "speedup": record()}


def test_a_broken_promise_ends_with_6(asked, capsys):
    asked.answer = record(kept=False)
    assert run("prune", "model", "--speedup", "2", "--data", "t.tsv", "-o", "out") == 6
    captured = capsys.readouterr()
    assert "1.70 missed" in captured.out and "missed by more than 5 %: 2.0x" in captured.err


def test_an_error_ends_with_its_own_code(asked):
    asked.answer = UsageError("out of reach")
    assert run("prune", "model", "--speedup", "9", "--data", "t.tsv", "-o", "out") == 2
