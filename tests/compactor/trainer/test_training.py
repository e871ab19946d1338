"""Whole runs on a tiny model: each preset, resuming, and what is written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import onnx
import pytest
import torch
from safetensors.torch import load_file

import compactor
from compactor.checkpoint.pruning_record import read_record_file
from compactor.errors import OutputError, TrainingError, UsageError
from compactor.trainer.config import PruneConfig
from compactor.trainer.methods import METHODS
from compactor.trainer.pruning import prune
from tests.compactor.trainer.tiny import write_model, write_sentences
from tests.slow import slow_after_first

# Scores that move fast enough for a run of seconds; the paper's 1e-2 needs hundreds of steps.
FAST = {
    "steps": 24,
    "batch_size": 16,
    "learning_rate": 1e-2,
    "score_learning_rate": 0.4,
    "attention_block": "8x8",
    "eval_steps": 12,
    "logging_steps": 2,
    "cool_down": 0.25,
}
SPECIAL = {
    "block": {"feed_forward_block": "8x8"},
    "movement": {"attention_block": "1x1", "feed_forward_block": "1x1"},
    "struct": {"attention_block": None, "attention_lambda": 1.0},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("training")
    write_model(folder / "model")
    write_sentences(folder / "train.tsv", 200, seed=1)
    write_sentences(folder / "dev.tsv", 60, seed=2)
    return folder


def run(place: Path, out: Path, method: str = "hybrid", **settings: object):
    changes = {"target_density": 0.4, **FAST, **SPECIAL.get(method, {}), **settings}
    options = {name: changes.pop(name) for name in ("teacher", "first_run", "resume", "overwrite") if name in changes}
    config = PruneConfig(method=method, **changes)
    return prune(place / "model", place / "train.tsv", place / "dev.tsv", out, config=config, **options)


def test_tuned_trains_what_another_run_left(place, tmp_path):
    first = run(place, tmp_path / "first", "struct")
    config = PruneConfig(method="tuned", **FAST)
    options = {"config": config, "teacher": place / "model"}
    second = prune(first.path, place / "train.tsv", place / "dev.tsv", tmp_path / "second", **options)
    for name in ("heads", "neurons"):
        assert second.record["final"][name] == first.record["final"][name]
    before, after = (load_file(result.path / "model.safetensors") for result in (first, second))
    weights = [name for name in before if name.endswith("output.dense.weight") and "attention" not in name]
    for name in weights:
        assert torch.equal(before[name].any(0), after[name].any(0)), "whole neurons stay zero"
        assert not torch.equal(before[name], after[name])


def test_states_are_learned_where_asked_for_and_by_tuned(place, tmp_path):
    plain = run(place, tmp_path / "plain", steps=4, warm_up=0, cool_down=0)
    assert all(row["hidden_loss"] is None for row in plain.record["log"])
    asked = run(place, tmp_path / "asked", steps=4, warm_up=0, cool_down=0, alpha_hidden=2.0)
    assert asked.record["log"][-1]["hidden_loss"] > 0
    config = PruneConfig(method="tuned", **FAST)
    tuned = prune(asked.path, place / "train.tsv", place / "dev.tsv", tmp_path / "tuned", config=config)
    assert tuned.record["log"][-1]["hidden_loss"] > 0, "MODEL is its own teacher, and has its states"


def test_a_teacher_of_another_shape_has_no_states_to_learn(place, tmp_path):
    write_model(tmp_path / "deeper", num_hidden_layers=3)
    with pytest.raises(UsageError, match="3 layers of 32 channels, the model 2 of 32"):
        run(place, tmp_path / "out", teacher=tmp_path / "deeper", steps=2, alpha_hidden=1.0, warm_up=0, cool_down=0)
    config = PruneConfig(method="tuned", **{**FAST, "steps": 2})
    options = {"config": config, "teacher": tmp_path / "deeper"}
    tuned = prune(place / "model", place / "train.tsv", place / "dev.tsv", tmp_path / "tuned", **options)
    assert tuned.record["log"][-1]["hidden_loss"] is None, "not asked for, it is left out"
    with pytest.raises(UsageError, match="there is none"):
        run(place, tmp_path / "alone", "hybrid-nt", alpha_hidden=1.0)


def test_tuned_has_no_density_to_reach():
    with pytest.raises(UsageError, match="'tuned' prunes nothing"):
        PruneConfig(method="tuned", target_density=0.3)


@pytest.mark.parametrize("method", slow_after_first(name for name in METHODS if name not in ("dense", "tuned")))
def test_each_method_learns_prunes_and_exports_exactly(place, tmp_path, method):
    result = run(place, tmp_path / "out", method)
    record = result.record

    log = record["log"]
    # MODEL knows nothing, and what it learns of itself is to be itself again, after the first steps led away from it.
    learned = "distillation_loss" if METHODS[method].teacher else "task_loss"
    losses = [row[learned] for row in log]
    assert sum(losses[-3:]) < (sum(losses[1:4]) if METHODS[method].teacher else sum(losses[:3]))
    final = record["final"]
    assert 0.05 < final["density"] < 0.95
    if METHODS[method].second.value != "fill":
        assert log[0]["density"] > log[-1]["density"]
        assert final["density"] == pytest.approx(log[-1]["density"])

    # Saved zeros are the masks, in a folder that stock transformers open.
    tensors = load_file(result.path / "model.safetensors")
    masks = read_record_file(result.path)
    assert masks.facts["method"] == method and masks.facts["settled"]
    zeros = 0
    for matrix in masks.matrices:
        weight = tensors[f"{matrix.module}.weight"]
        assert torch.equal(weight != 0, matrix.expand(masks.live[matrix.group], tuple(weight.shape)))
        zeros += int((weight == 0).sum())
    assert zeros == final["weights"][1] - final["weights"][0] > 0
    assert not any("compactor" in name or "original" in name for name in tensors)

    exported = compactor.export(result.path, tmp_path / "artefact", precision=("fp32",))
    assert exported.manifest["verification"]["passed"]
    left = [layer["heads"] for layer in exported.manifest["layers"] if layer["kind"] == "attention"]
    assert [after for _, after in left] == [sum(layer["heads"]) for layer in final["layers"] if layer["heads"]]
    assert any("pruned by compactor" in note for note in exported.manifest["source"]["notes"])


def test_dense_fine_tunes_and_prunes_nothing(place, tmp_path):
    result = run(
        place, tmp_path / "teacher", "dense", attention_block=None, steps=60, eval_steps=60, target_density=None
    )
    assert result.record["final"]["metrics"]["accuracy"]["value"] > 0.9
    assert result.record["final"]["density"] == 1 and not (result.path / "pruning.json").exists()


@pytest.mark.parametrize("method", ["hybrid", "hybrid-opt"])
def test_a_resumed_run_gives_the_same_bits(place, tmp_path, method):
    """Stopped half-way and resumed, masks, weights and scores are those of a run without a stop."""
    straight = run(place, tmp_path / "straight", method, fade_steps=20)

    class Stop(Exception):
        pass

    def stop(message: str) -> None:
        if message.startswith("step 18 "):
            raise Stop

    config = PruneConfig(method=method, target_density=0.4, fade_steps=20, **FAST)
    where = (place / "model", place / "train.tsv", place / "dev.tsv", tmp_path / "stopped")
    with pytest.raises(Stop):
        prune(*where, config=config, progress=stop)
    resumed = prune(*where, config=config, resume=True)

    first, second = read_record_file(straight.path), read_record_file(resumed.path)
    assert first.live.keys() == second.live.keys()
    assert all(torch.equal(first.live[name], second.live[name]) for name in first.live)
    assert all(torch.equal(first.scores[name], second.scores[name]) for name in first.scores)
    ours, theirs = load_file(straight.path / "model.safetensors"), load_file(resumed.path / "model.safetensors")
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    steps = [row["step"] for row in resumed.record["log"]]
    assert steps == [row["step"] for row in straight.record["log"]]  # the page shows the whole run
    assert [row["density"] for row in resumed.record["log"]] == [row["density"] for row in straight.record["log"]]


def test_a_run_resumed_in_a_later_epoch_gives_the_same_bits(place, tmp_path):
    """The order of an epoch is that of its number, and not of a random state that no checkpoint holds."""
    write_sentences(tmp_path / "few.tsv", 24, seed=1)
    settings = {**FAST, "steps": 9, "batch_size": 8, "warm_up": 1, "cool_down": 3, "eval_steps": 5}
    config = PruneConfig(method="hybrid", target_density=0.5, **settings)
    where = (place / "model", tmp_path / "few.tsv", place / "dev.tsv")
    straight = prune(*where, tmp_path / "straight", config=config)
    shutil.copytree(tmp_path / "straight", tmp_path / "resumed")
    for path in (tmp_path / "resumed" / "checkpoints").glob("checkpoint-*"):
        if path.name != "checkpoint-5":
            shutil.rmtree(path)
    resumed = prune(*where, tmp_path / "resumed", config=config, resume=True)
    ours, theirs = load_file(straight.path / "model.safetensors"), load_file(resumed.path / "model.safetensors")
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("method", ["hybrid-opt", "hybrid-filled-opt"])
def test_a_model_without_norms_is_written_as_one_and_exports_as_one(place, tmp_path, method):
    result = run(place, tmp_path / "out", method)
    stated = json.loads((result.path / "config.json").read_text())
    assert (stated["layer_norm_type"], stated["hidden_act"]) == ("no_norm", "relu")
    assert not any(name.endswith("sums") for name in load_file(result.path / "model.safetensors"))

    artefact = compactor.export(result.path, tmp_path / "artefact", precision=("fp32",))
    operators = {node.op_type for node in onnx.load(artefact.path / "onnx" / "model.onnx").graph.node}
    assert not operators & {"LayerNormalization", "Gelu", "Mul"}
    final, last = result.record["final"]["metrics"], result.record["evaluations"][-1]["metrics"]
    assert final["accuracy"]["value"] == pytest.approx(last["accuracy"]), "what is written is what was evaluated"


def test_a_checkpoint_opens_in_stock_transformers_with_its_zeros(place, tmp_path):
    from transformers import AutoModelForSequenceClassification

    run(place, tmp_path / "out")
    checkpoint = tmp_path / "out" / "checkpoints" / "checkpoint-24"
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint)
    masks = read_record_file(checkpoint)
    weights = dict(model.named_parameters())
    for matrix in masks.matrices:
        weight = weights[f"{matrix.module}.weight"]
        assert torch.equal(weight != 0, matrix.expand(masks.live[matrix.group], tuple(weight.shape)))


def test_filled_goes_on_from_a_given_run(place, tmp_path):
    first = run(place, tmp_path / "first")
    filled = run(place, tmp_path / "filled", "hybrid-filled", first_run=first.path)
    heads = [layer["heads"] for layer in first.record["final"]["layers"]]
    assert [layer["heads"] for layer in filled.record["final"]["layers"]] == [
        None if each is None else tuple(each) for each in heads
    ]
    assert filled.record["final"]["density_attention"] >= first.record["final"]["density_attention"]
    assert not (tmp_path / "filled" / "first").exists()


def test_the_record_and_its_page(place, tmp_path):
    pytest.importorskip("matplotlib")
    result = run(place, tmp_path / "out")
    record = json.loads((result.path / "training.json").read_text())
    assert record == json.loads(json.dumps(result.record))
    page = (result.path / "training.html").read_text()
    assert "hybrid" in page and "<svg" in page
    assert [phase["name"] for phase in record["phases"]] == ["warm-up", "pruning", "cool-down"]
    assert record["evaluations"][-1]["step"] == 24


def test_a_loss_that_is_no_number_ends_the_run(place, tmp_path):
    with pytest.raises(TrainingError, match="the loss is nan"):
        run(place, tmp_path / "out", learning_rate=1e18, max_grad_norm=1e30)
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_nothing_pruned_is_a_warning(place, tmp_path):
    result = run(place, tmp_path / "out", target_density=None, strength=0.0, score_learning_rate=0.0)
    assert result.record["final"]["density"] == 1
    assert any("nothing was pruned" in warning for warning in result.record["warnings"])


def test_folders_that_hold_something_are_kept(place, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("precious")
    with pytest.raises(OutputError, match="no run"):
        run(place, tmp_path / "full", overwrite=True)
    assert (tmp_path / "full" / "thesis.txt").read_text() == "precious"

    run(place, tmp_path / "out", steps=2, cool_down=0, warm_up=0)
    with pytest.raises(OutputError, match="--resume"):
        run(place, tmp_path / "out", steps=2, cool_down=0, warm_up=0)
    with pytest.raises(UsageError, match="seed was 17"):
        run(place, tmp_path / "out", steps=2, cool_down=0, warm_up=0, seed=3, resume=True)


def test_teachers_are_checked(place, tmp_path):
    write_model(tmp_path / "three", num_labels=3)
    with pytest.raises(UsageError, match="teacher's labels"):
        run(place, tmp_path / "out", teacher=tmp_path / "three")
    write_model(tmp_path / "other", vocab_size=99)
    with pytest.raises(UsageError, match="99 tokens"):
        run(place, tmp_path / "out2", teacher=tmp_path / "other")
