"""One model in every form a checkpoint comes in: the same compact layers, and the same numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from compactor.exporting.export import ExportResult, export
from compactor.exporting.inspecting import inspect
from tests.compactor import checkpoints, families
from tests.compactor.checkpoints import HEAD_DIM, HEADS, LAYERS, NEURONS, VOCABULARY, WIDTH
from tests.slow import slow_after_first

DEAD_HEADS = {0: [1], 1: [0, 3]}
DEAD_NEURONS = {0: [0, 5, 23], 1: list(range(20))}


def _channels(layer: int) -> list[int]:
    return [channel for head in DEAD_HEADS[layer] for channel in families.channels(head)]


def _raw(folder: Path) -> Path:
    """Dense weights, and scores that say which blocks live."""
    scores = {}
    for layer in range(LAYERS):
        *attention, first, second = checkpoints.modules("bert", layer)
        for name in attention:
            blocks = torch.full((HEADS, WIDTH // HEAD_DIM), 5.0)
            axis = 1 if name == attention[-1] else 0
            blocks.index_fill_(axis, torch.tensor(DEAD_HEADS[layer]), -5.0)
            scores[checkpoints.scores_name(name)] = blocks
        neurons = torch.full((NEURONS,), 5.0).index_fill_(0, torch.tensor(DEAD_NEURONS[layer]), -5.0)
        scores[checkpoints.scores_name(first, 0)] = neurons
        scores[checkpoints.scores_name(second, 1)] = neurons.clone()
    return checkpoints.write(folder, checkpoints.tensors() | scores, masks=checkpoints.sparse_args())


def _zeroed() -> dict[str, torch.Tensor]:
    tensors = checkpoints.tensors()
    for layer in range(LAYERS):
        *inputs, output, first, second = checkpoints.modules("bert", layer)
        for name in inputs:
            for part in ("weight", "bias"):
                tensors[f"{name}.{part}"][_channels(layer)] = 0
        tensors[f"{output}.weight"][:, _channels(layer)] = 0
        for part in ("weight", "bias"):
            tensors[f"{first}.{part}"][DEAD_NEURONS[layer]] = 0
        tensors[f"{second}.weight"][:, DEAD_NEURONS[layer]] = 0
    return tensors


def _zeros(folder: Path) -> Path:
    return checkpoints.write(folder, _zeroed())


def _head_pruned(folder: Path) -> Path:
    tensors = _zeroed()
    for layer in range(LAYERS):
        *inputs, output, _, _ = checkpoints.modules("bert", layer)
        kept = [channel for channel in range(WIDTH) if channel not in _channels(layer)]
        for name in inputs:
            for part in ("weight", "bias"):
                tensors[f"{name}.{part}"] = tensors[f"{name}.{part}"][kept]
        tensors[f"{output}.weight"] = tensors[f"{output}.weight"][:, kept]
    pruned = {str(layer): heads for layer, heads in DEAD_HEADS.items()}
    return checkpoints.write(folder, tensors, checkpoints.config(pruned_heads=pruned))


FORMS: dict[str, Callable[[Path], Path]] = {"plain": _zeros, "nn_pruning": _raw, "head_pruned": _head_pruned}


def test_zeros_masks_and_pruned_heads_are_the_same_model(tmp_path: Path) -> None:
    results: dict[str, ExportResult] = {}
    outputs = {}
    for form, write in FORMS.items():
        results[form] = export(write(tmp_path / form), tmp_path / f"{form}-out", precision=["fp32"])
        assert results[form].manifest["source"]["format"] == form
        session = onnxruntime.InferenceSession(results[form].path / "onnx" / "model.onnx")
        ids = np.random.default_rng(3).integers(1, VOCABULARY, (3, 9))
        feeds = {"input_ids": ids, "attention_mask": np.tri(3, 9, 5, dtype=np.int64), "token_type_ids": ids % 2}
        outputs[form] = session.run(None, feeds)[0]

    layers = results["plain"].manifest["layers"]
    assert [layer["heads"] for layer in layers if layer["kind"] == "attention"] == [[4, 3], [4, 2]]
    assert [layer["width"] for layer in layers if layer["kind"] == "feed_forward"] == [[24, 21], [24, 4]]
    for form in FORMS:
        assert results[form].manifest["layers"] == layers
        np.testing.assert_array_equal(outputs[form], outputs["plain"])
        config = json.loads((results[form].path / "config.json").read_text())
        assert "pruned_heads" not in config
        assert config["num_attention_heads"] == HEADS


@pytest.mark.parametrize("dtype", slow_after_first([torch.float16, torch.bfloat16]))
def test_weights_stored_in_half(dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = families.build("bert").to(dtype)
    model.save_pretrained(tmp_path / "model", max_shard_size="6KB")
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 1
    result = export(tmp_path / "model", tmp_path / "out", precision=["fp32"])
    assert result.manifest["layers"] == families.PLANTED
    assert result.manifest["verification"]["passed"]
    stored = str(dtype).removeprefix("torch.")
    assert any(stored in note and "computed in float32" in note for note in result.manifest["source"]["notes"])
    shards = [file for file in result.manifest["source"]["files"] if file["name"].endswith(".safetensors")]
    assert len(shards) > 1


@pytest.mark.parametrize("family", ["bert", "distilbert", "mpnet", "vit"])
def test_inspect_says_what_planting_left(family: str, tmp_path: Path) -> None:
    """With the families' tests, which hold an export to the same table: a dry run and an export agree."""
    head = "ForImageClassification" if family == "vit" else "ForSequenceClassification"
    found = inspect(families.save(tmp_path / "model", family, head)).to_json()
    assert [{key: layer[key] for key in planted} for layer, planted in _pairs(found["layers"])] == families.PLANTED
    assert not found["skipped"]


@pytest.mark.parametrize("family", families.ENCODER_DECODERS)
def test_inspect_says_what_planting_left_of_an_encoder_decoder(family: str, tmp_path: Path) -> None:
    """As above, with the tests of their export."""
    found = inspect(families.save_encoder_decoder(tmp_path / "model", family)).to_json()
    pairs = zip(found["layers"], families.PLANTED_HALVES, strict=True)
    assert [{key: layer[key] for key in planted} for layer, planted in pairs] == families.PLANTED_HALVES
    assert not found["skipped"]


def _pairs(layers: list[dict[str, Any]]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    return list(zip(layers, families.PLANTED, strict=True))


def test_inspect_and_export_count_the_same_multiply_adds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = families.save(tmp_path / "model", "bert")
    masked, compact = export(model, tmp_path / "out", precision=["fp32"]).manifest["stages"]
    assert inspect(model).macs_per_token == (masked["macs_per_token"], compact["macs_per_token"])
