"""Encoders with rotary embeddings, fused projections, gates and shared key heads, from training to the artefact."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

import compactor
from compactor.checkpoint.pruning_record import read_record_file
from compactor.trainer.config import PruneConfig
from compactor.trainer.pruning import PruneResult, prune
from compactor.trainer.structure import AttentionMatrices, find_blocks
from compactor.trainer.survivors import find_survivors
from tests.compactor import encoders
from tests.compactor.trainer.tiny import write_sentences, write_tokenizer
from tests.slow import slow_after_first

FAST: dict[str, Any] = {
    "steps": 8,
    "batch_size": 16,
    "learning_rate": 1e-2,
    "score_learning_rate": 0.5,
    "eval_steps": 8,
    "cool_down": 0.25,
    "target_density": 0.4,
}
KINDS = ("attention", "feed_forward")
BLOCKS = {"attention_block": "8x8", "feed_forward_block": "8x8"}
STRUCT = {"method": "struct", "attention_lambda": 1.0}
# What the masked matrices of a layer are called in the file: GTE's are one there.
FILES = {
    "modernbert": ("attn.Wqkv", "attn.Wqkv", "attn.Wqkv", "attn.Wo", "mlp.Wi", "mlp.Wi", "mlp.Wo"),
    "gte": (
        *("attention.qkv_proj", "attention.qkv_proj", "attention.qkv_proj", "attention.o_proj"),
        *("mlp.up_gate_proj", "mlp.up_gate_proj", "mlp.down_proj"),
    ),
    "esm": (
        *("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"),
        *("intermediate.dense", "output.dense"),
    ),
    "deberta": (
        *("attention.self.query_proj", "attention.self.key_proj", "attention.self.value_proj"),
        *("attention.output.dense", "intermediate.dense", "output.dense"),
    ),
    "eurobert-grouped": (
        *("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
        *("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
    ),
}


def run(folder: Path, family: str, **settings: Any) -> PruneResult:
    encoders.build(family).save_pretrained(folder / "model")
    write_tokenizer(folder / "model")
    data = [write_sentences(folder / f"{name}.tsv", 60, seed=seed) for seed, name in enumerate(("train", "dev"))]
    return prune(folder / "model", *data, folder / "out", config=PruneConfig(**{**FAST, **settings}))


def check_masks(folder: Path, family: str) -> None:
    """Each matrix lies in the file where the record says, with zeros where its mask has them, and nowhere else."""
    tensors = load_file(folder / "model.safetensors")
    record = read_record_file(folder)
    names = [matrix.module.split(".0.")[1] for matrix in record.matrices if ".0." in matrix.module]
    assert sorted(names) == sorted(FILES[family.removesuffix("-biases")])
    covered = {name: torch.zeros(len(tensors[f"{name}.weight"])) for name in {each.module for each in record.matrices}}
    for matrix in record.matrices:
        part = matrix.part(tensors[f"{matrix.module}.weight"])
        assert torch.equal(part != 0, matrix.expand(record.live[matrix.group], tuple(part.shape)))
        matrix.part(covered[matrix.module]).add_(1)
        bias = tensors.get(f"{matrix.module}.bias")
        if bias is not None:
            live = (part != 0).any(1)
            assert torch.equal(matrix.part(bias) == 0, ~live | (matrix.part(bias) == 0))
            assert not matrix.part(bias)[~live].any()
    assert all(bool((rows == 1).all()) for rows in covered.values())  # every row in one matrix


@pytest.mark.parametrize(
    ("family", "settings"),
    slow_after_first(
        [
            pytest.param("modernbert-biases", {"attention_block": "4x4"}, id="modernbert-hybrid"),
            pytest.param("modernbert", {"method": "block", **BLOCKS}, id="modernbert-block"),
            pytest.param("gte", STRUCT, id="gte"),
            pytest.param("esm", STRUCT, id="esm"),
            pytest.param("deberta", STRUCT, id="deberta"),
            pytest.param("eurobert-grouped", STRUCT, id="eurobert-grouped"),
        ]
    ),
)
def test_a_pruned_model_is_a_stock_model_and_is_exported_exactly(family, settings, tmp_path):
    result = run(tmp_path, family, **settings)

    final = result.record["final"]
    assert final["density"] == pytest.approx(0.4, abs=0.07)
    assert result.record["teacher"] == "model"  # MODEL taught itself
    check_masks(result.path, family)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(result.path)
    assert type(model).__module__.startswith("transformers.models.")
    if not encoders.is_exported(family):
        return
    exported = compactor.export(result.path, tmp_path / "artefact", precision=("fp32",))
    assert exported.manifest["verification"]["passed"]
    notes = [note for note in exported.manifest["source"]["notes"] if note.startswith("pruned by compactor")]
    modules = 2 * len(set(FILES[family.removesuffix("-biases")]))
    assert [note.endswith(f"its zeros are where the masks of {modules} matrices put them") for note in notes] == [True]
    by_kind = {kind: [layer for layer in final["layers"] if layer["kind"] == kind] for kind in KINDS}
    exported_layers = {kind: [each for each in exported.manifest["layers"] if each["kind"] == kind] for kind in KINDS}
    for told, layer in zip(by_kind["feed_forward"], exported_layers["feed_forward"], strict=False):  # heads may be such
        alive, everything = told["neurons"]
        exact = settings.get("method") != "block"  # of a gated neuron one matrix may have lost its row, and it goes
        assert layer["width"] == [everything, alive] if exact else layer["width"][1] <= alive
    left = [layer["heads"][1] for layer in exported_layers["attention"]]
    alive = [sum(told["heads"]) for told in by_kind["attention"]]
    if family == "eurobert-grouped":  # uneven groups may be filled up with heads of zeros
        assert all(few <= kept for few, kept in zip(alive, left, strict=True))
    else:
        assert left == alive


def test_filling_and_rewinding_reach_the_heads_that_others_share(tmp_path):
    result = run(tmp_path, "eurobert-grouped", method="hybrid-filled", attention_block="4x4", second_steps=4)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(result.path)
    ids = torch.arange(5, 15).reshape(1, 10)
    blocks = find_blocks(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    survivors = find_survivors(model, blocks)
    modules = dict(model.named_modules())
    for block in blocks:
        if isinstance(block, AttentionMatrices):
            alive = survivors.heads[block.output.name]
            for part in block.inputs:  # heads are whole again, or gone
                rows = modules[part.module].weight.reshape(block.heads_of(part), -1)
                expected = alive.reshape(block.heads_of(part), -1).any(1)
                assert torch.equal((rows != 0).all(1), expected) and torch.equal((rows != 0).any(1), expected)
        else:
            alive = survivors.neurons[block.output.name]
            assert torch.equal((modules[block.output.module].weight != 0).all(0), alive)


def test_a_fused_matrix_is_resumed_with_the_same_bits(tmp_path):
    straight = run(tmp_path, "modernbert-biases", attention_block="4x4", eval_steps=4, steps=12)

    class Stop(Exception):
        pass

    def stop(message: str) -> None:
        if message.startswith("step 8 "):
            raise Stop

    config = PruneConfig(**{**FAST, "attention_block": "4x4", "eval_steps": 4, "steps": 12})
    where = (tmp_path / "model", tmp_path / "train.tsv", tmp_path / "dev.tsv", tmp_path / "stopped")
    with pytest.raises(Stop):
        prune(*where, config=config, progress=stop)
    resumed = prune(*where, config=config, resume=True)

    for name in ("model.safetensors", "pruning.safetensors"):
        first, second = (load_file(each.path / name) for each in (straight, resumed))
        assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_a_record_speaks_of_parts_where_there_are_some(tmp_path):
    result = run(tmp_path, "modernbert-biases", **STRUCT, steps=2, eval_steps=2, warm_up=0, cool_down=0)
    entries = json.loads((result.path / "pruning.json").read_text())["matrices"]
    query, key, value, output, *feed_forward = [each for each in entries if ".layers.0." in each["module"]]
    wide = {"rows": 8, "cols": 32, "transposed": False}
    name = "model.layers.0.attn.Wqkv"
    assert query == {"module": name, "group": f"{name}[0:32]", **wide, "stop": 32}
    assert key == {"module": name, "group": f"{name}[32:64]", **wide, "start": 32, "stop": 64}
    assert value == {"module": name, "group": f"{name}[64:96]", **wide, "start": 64, "stop": 96}
    assert output["module"] == output["group"] and not {"start", "stop"} & output.keys()
    assert {each["group"] for each in feed_forward} == {"model.layers.0.mlp.Wi[0:48]"}
