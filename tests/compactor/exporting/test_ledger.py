"""Which layers stay in fp32, and why."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import numpy as np
import pytest

import compactor.passes.pipeline
from compactor.errors import UsageError, VerificationError
from compactor.exporting import ledger as module
from compactor.exporting.calibration import Calibration
from compactor.exporting.ledger import choose_int8
from compactor.manifest import load_manifest
from compactor.passes.canonical.label_layers import LabelLayersPass
from compactor.passes.lowering.pack_tokens import PackTokensPass
from tests.compactor.exporting.traces import quantize_small_weights
from tests.compactor.fakes import run
from tests.models import VOCAB, Architecture, build, random_weights

ARCH = Architecture(layers=2, width=16, neurons=32, dtype=np.float32, front="ids", head="classifier")
SILENT = lambda line: None  # noqa: E731


@pytest.fixture(autouse=True)
def small(monkeypatch):
    quantize_small_weights(monkeypatch)
    monkeypatch.setattr(module, "MIN_ELEMENTS", 0)


def lively(arch=ARCH):
    """Weights whose answers differ from text to text."""
    weights = random_weights(arch)
    weights["classifier"] *= 5
    weights["classifier.bias"][:] = (-7, 0, 0) if arch.head == "classifier" else 0  # which is usual for these
    return weights


def make(arch=ARCH, weights=None):
    model = build(arch, weights or lively(arch))
    LabelLayersPass()(model)
    PackTokensPass()(model)
    return model


def texts(count=160, length=7, seed=0):
    random = np.random.default_rng(seed)
    batches = []
    for _ in range(count // 16):
        mask = (np.arange(length) < random.integers(1, length + 1, 16)[:, None]).astype(np.int64)
        ids = random.integers(0, VOCAB, mask.shape)
        batches.append({"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)})
    return Calibration(batches, count, "texts.tsv")


def choose(model, calibration=None, *, scales="token", keep=95.0, scratch):
    options = {"target": "cpu", "scales": scales, "keep": keep, "scratch": scratch, "say": SILENT}
    return choose_int8(model, calibration or texts(), **options)


def outlier(unit="1.down"):
    """Weights of which one matrix has a column with a number that leaves the others no codes."""
    weights = lively()
    weights[unit][3] *= 3000
    weights["1.up"][:, 3] = 0
    weights["1.up.bias"][3] = 0  # a neuron of nothing, so that the number itself does not matter
    return weights


@pytest.mark.parametrize("scales", ["tensor", "token"])
def test_every_layer_is_measured_alone(scales, tmp_path):
    found = choose(make(), scales=scales, scratch=tmp_path)
    units = {unit["unit"]: unit for unit in found.record["units"]}
    names = [f"layers.{i}.{part}#{k}" for i in (0, 1) for part in ("attention", "feed_forward") for k in (0, 1)]
    assert set(names) < units.keys()
    assert units["layers.0.attention#0"]["shape"] == [16, 48]
    assert units["layers.1.feed_forward#1"]["shape"] == [32, 16]
    assert all(unit["error"] > 0 and unit["fp32_ms"] > 0 and unit["int8_ms"] > 0 for unit in units.values())
    assert min(found.record["kept"].values()) >= 95
    assert sum(found.record["counts"].values()) == 160
    assert found.record["measure"] == "answers" and found.record["file"] == "texts.tsv"


@pytest.mark.parametrize("scales", ["tensor", "token"])
def test_the_layer_that_int8_ruins_stays_in_fp32(scales, tmp_path):
    found = choose(make(weights=outlier()), scales=scales, scratch=tmp_path)
    units = {unit["unit"]: unit for unit in found.record["units"]}
    worst = max(units.values(), key=lambda unit: unit["error"])
    assert worst["unit"] == "layers.1.feed_forward#1" and worst["precision"] == "fp32"
    assert worst["unit"] in found.keep and len(found.keep) < len(units)
    assert min(found.record["kept"].values()) >= 95


def test_labels_give_the_accuracy_of_both(tmp_path):
    calibration = texts()
    labels = np.arange(160) % 3
    found = choose(make(), dataclasses.replace(calibration, labels=labels), scratch=tmp_path)
    assert found.record["accuracy"].keys() == {"fp32", "int8"}
    assert abs(found.record["accuracy"]["fp32"] - 1 / 3) < 0.15


@pytest.mark.parametrize(
    ("head", "measure", "count"), [("tokens", "tokens", None), ("span", "answers", 160), ("hidden", "answers", None)]
)
def test_what_an_answer_is(head, measure, count, tmp_path):
    model = make(dataclasses.replace(ARCH, head=head))
    if head == "hidden":  # vectors
        model.graph.outputs[0].name, measure, count = "last_hidden_state", "first hits", 160
    found = choose(model, keep=80.0, scratch=tmp_path)
    assert found.record["measure"] == measure
    total = sum(found.record["counts"].values())
    assert total == count if count else total == sum(int(b["attention_mask"].sum()) for b in texts().batches)


def test_a_single_output_is_above_or_below_the_usual(tmp_path):
    weights = lively()
    weights["classifier"], weights["classifier.bias"] = weights["classifier"][:, :1], weights["classifier.bias"][:1]
    found = choose(make(weights=weights), keep=90.0, scratch=tmp_path)
    assert found.record["measure"] == "answers" and sum(found.record["counts"].values()) == 160


def test_queries_search_documents(tmp_path):
    model = make(dataclasses.replace(ARCH, head="hidden"))
    model.graph.outputs[0].name = "last_hidden_state"
    places = {"queries": np.arange(100), "documents": np.arange(100, 160)}
    found = choose(model, dataclasses.replace(texts(), **places), keep=80.0, scratch=tmp_path)
    assert found.record["counts"] == {"chosen_by": 50, "held_out": 50}


def test_answers_that_are_all_the_same_show_nothing(tmp_path):
    weights = lively()
    weights["classifier.bias"][1] = 1000
    with pytest.raises(UsageError, match="all 160 examples have the same answer"):
        choose(make(weights=weights), scratch=tmp_path)


def test_where_nothing_can_be_int8_it_says_so(tmp_path, monkeypatch):
    """Every matrix is ruined: a single one changes more answers than may change."""
    ruined = lambda matrix: (np.zeros(matrix.shape, np.int8), np.ones(matrix.shape[1], np.float32))  # noqa: E731
    monkeypatch.setattr("compactor.passes.graph.int8_layers.quantize_weight", ruined)
    with pytest.raises(VerificationError, match=r"no layer can be int8 and keep 99\.9 %"):
        choose(make(), keep=99.9, scratch=tmp_path)


def test_tables_are_in_the_ledger(tmp_path, monkeypatch):
    tables = functools.partial(compactor.passes.pipeline.QuantizeEmbeddingsPass, min_elements=0)
    monkeypatch.setattr(compactor.passes.pipeline, "QuantizeEmbeddingsPass", tables)
    found = choose(make(), scratch=tmp_path)
    table = next(unit for unit in found.record["units"] if unit["layer"] == "embeddings")
    assert table["shape"] is None and (table["fp32_ms"], table["int8_ms"]) == (0, 0)


def test_an_export_by_data_keeps_answers_and_explains_itself(
    example_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = Path(__file__).parents[3] / "examples" / "sst2.tsv"
    assert run("export", example_checkpoint, tmp_path / "out", "-q", "--calibrate", data, "--keep", "98") == 0
    assert "held-out answers (98 % asked for)" in capsys.readouterr().out
    ledger = load_manifest(tmp_path / "out")["ledger"]
    assert ledger["file"] == "sst2.tsv" and ledger["kept"]["held_out"] >= 98
    assert ledger["accuracy"]["fp32"] == pytest.approx(0.87, abs=0.05)
    assert run("explain", tmp_path / "out") == 0
    shown = capsys.readouterr().out
    assert "Ledger of int8" in shown and "layers.0.feed_forward#1" in shown
    in_fp32 = sum(unit["precision"] == "fp32" for unit in ledger["units"] if unit["shape"])
    stage = load_manifest(tmp_path / "out")["stages"][-1]["operators"]
    assert stage.get("MatMul", 0) + stage.get("Gemm", 0) >= in_fp32


@pytest.mark.parametrize(
    ("rows", "words"),
    [("text\ngood\n", "too few"), ("text\tlabel\n" + "good\tmaybe\n" * 30, "none of the model's"), ("", "is empty")],
)
def test_a_file_that_is_no_use_leaves_nothing_behind(
    rows: str, words: str, example_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "texts.tsv"
    data.write_text(rows)
    assert run("export", example_checkpoint, tmp_path / "out", "-q", "--calibrate", data) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists() and sorted(path.name for path in tmp_path.iterdir()) == ["texts.tsv"]
