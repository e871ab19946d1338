"""Encoders whose logits depend on distances, or whose query heads share keys: as compact and as exact as BERT."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import transformers

from compactor.exporting.export import export
from compactor.runtime.verification import Case, text_cases
from tests.compactor.exporting.traces import quantize_small_weights, save_once
from tests.independence import assert_independent_of_mates
from tests.slow import slow_after_first, slow_unless

WIDTH, HEADS, SIZE, NEURONS, POSITIONS = 32, 4, 8, 48, 40
DEAD_HEAD, DEAD_NEURONS = 1, 10
SIZES = {
    "vocab_size": 60,
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "intermediate_size": NEURONS,
    "max_position_embeddings": POSITIONS,
    "pad_token_id": 0,
}
DISENTANGLED = {**SIZES, "type_vocab_size": 0, "relative_attention": True, "position_biased_input": False}
BOTH = ["c2p", "p2c"]
BUCKETS = {"position_buckets": 6, "max_relative_positions": POSITIONS}
SHARED = {**DISENTANGLED, **BUCKETS, "pos_att_type": BOTH, "share_att_key": True, "norm_rel_ebd": "layer_norm"}

# Class, settings, and how many tables of distances a layer reads.
FAMILIES: dict[str, tuple[str, dict[str, Any], int]] = {
    "deberta": ("DebertaForSequenceClassification", {**DISENTANGLED, "pos_att_type": BOTH}, 2),
    "deberta-near": ("DebertaModel", {**DISENTANGLED, "pos_att_type": BOTH, "max_relative_positions": 9}, 2),
    "deberta-c2p": ("DebertaModel", {**DISENTANGLED, "pos_att_type": ["c2p"]}, 1),
    "deberta-p2c": ("DebertaModel", {**DISENTANGLED, "pos_att_type": ["p2c"]}, 1),
    "deberta-types": (
        "DebertaForTokenClassification",
        {**DISENTANGLED, "pos_att_type": BOTH, "type_vocab_size": 2, "position_biased_input": True},
        2,
    ),
    "deberta-v3": ("DebertaV2ForSequenceClassification", SHARED, 2),
    "deberta-v3-tokens": ("DebertaV2ForTokenClassification", SHARED, 2),
    "deberta-v2-own": ("DebertaV2Model", {**SHARED, "share_att_key": False, "norm_rel_ebd": "none"}, 2),
    "deberta-v2-c2p": ("DebertaV2Model", {**SHARED, "pos_att_type": ["c2p"]}, 1),
    "deberta-v2-p2c": ("DebertaV2Model", {**SHARED, "pos_att_type": ["p2c"]}, 1),
    "deberta-v2-far": ("DebertaV2Model", {**DISENTANGLED, "pos_att_type": BOTH, "share_att_key": True}, 2),
    "deberta-v2-absolute": (
        "DebertaV2Model",
        {**DISENTANGLED, "relative_attention": False, "position_biased_input": True},
        0,
    ),
    "eurobert-grouped": ("EuroBertForSequenceClassification", {**SIZES, "num_key_value_heads": 2}, 0),
}

QUICK = {"deberta", "deberta-v3", "eurobert-grouped"}


def make(family: str) -> Any:
    """A random model in which head 1 and ten neurons of every layer are dead, and attention is far from uniform."""
    name, settings, _ = FAMILIES[family]
    model_class = getattr(transformers, name, None)
    if model_class is None:
        pytest.skip("this transformers lacks the family")
    torch.manual_seed(0)
    model = model_class(model_class.config_class(**settings)).eval().requires_grad_(False)
    for key, tensor in model.named_parameters():
        leaf = key.rpartition(".")[2]
        if leaf in ("bias", "q_bias", "v_bias"):
            tensor.normal_(0, 0.1)
        elif tensor.ndim == 2:
            tensor.normal_(0, 0.3)
    head = slice(DEAD_HEAD * SIZE, (DEAD_HEAD + 1) * SIZE)
    for key, module in model.named_modules():
        match key.rpartition(".")[2]:
            case "in_proj":  # queries, keys and values of a head stand together
                module.weight.view(HEADS, 3, SIZE, WIDTH)[DEAD_HEAD, 2] = 0
            case "value_proj":
                module.weight[head] = 0
            case "o_proj":
                module.weight[:, head] = 0
            case "dense" | "down_proj" if getattr(module, "in_features", 0) == NEURONS:
                module.weight[:, :DEAD_NEURONS] = 0
    return model


def cases(names: list[str]) -> Iterator[Case]:
    """Texts of every padding, of batches of 1 to 8, of lengths from 1 to the limit."""
    for lengths in ((1,), (2,), (5,), (24,), (POSITIONS,)):
        options = {"vocab_size": 60, "max_length": POSITIONS, "pad_token_id": 0, "type_vocab_size": 2}
        yield from text_cases(tuple(names), lengths=lengths, **options)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Any, Path]]:
    return save_once(make, tmp_path_factory)


def largest_difference(model: Any, graph: Path) -> float:
    """Between a graph's answers and PyTorch's, over all ``cases``; hidden states count where tokens are real."""
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    found = 0.0
    for case in cases([entry.name for entry in session.get_inputs()]):
        with torch.no_grad():
            expected = model(**{name: torch.from_numpy(array) for name, array in case.feeds.items()})
        for output, array in zip(session.get_outputs(), session.run(None, case.feeds), strict=True):
            wanted = expected[output.name].numpy()
            assert array.shape == wanted.shape and np.isfinite(array).all(), case.name
            if wanted.shape[:2] == case.valid.shape and wanted.ndim == 3:
                array, wanted = array[case.valid], wanted[case.valid]
            found = max(found, float(np.abs(array - wanted).max()))
    return found


@pytest.mark.parametrize("target", slow_after_first(["cpu", "portable", "cuda"]))
@pytest.mark.parametrize("family", slow_unless(QUICK.__contains__, FAMILIES))
def test_is_compacted_and_exact(
    family: str,
    target: str,
    saved: Callable[[str], tuple[Any, Path]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, folder = saved(family)

    result = export(folder, tmp_path / "out", target=target, precision=["fp32"])

    layers = [layer for layer in result.manifest["layers"] if layer["path"] != "layers.1.feed_forward_2"]
    assert [layer["kind"] for layer in layers] == ["attention", "feed_forward"] * 2
    for attention in layers[::2]:
        assert (attention["heads"], attention["qk_width"], attention["v_width"]) == ([4, 3], [8, 8], [8, 8])
    assert [layer["width"] for layer in layers[1::2]] == [[NEURONS, NEURONS - DEAD_NEURONS]] * 2
    assert result.manifest["recipe"]["pack"] == (target == "cpu")
    written = onnx.load(result.path / "onnx" / "model.onnx")
    graph = written.graph
    assert sum(node.op_type == "GatherElements" for node in graph.node) == 2 * FAMILIES[family][2]
    assert "compactor" not in {node.domain for node in graph.node} | {entry.domain for entry in written.opset_import}
    if family.startswith("deberta"):
        norms = sum("LayerNormalization" in node.op_type for node in graph.node)
        assert norms == 1 + 2 * 2
    assert largest_difference(model, result.path / "onnx" / "model.onnx") < 5e-5


@pytest.mark.parametrize("target", slow_after_first(["cpu", "portable"]))
@pytest.mark.parametrize("family", ["deberta", "deberta-v3", "eurobert-grouped"])
def test_int8_takes_every_linear_layer(
    family: str,
    target: str,
    saved: Callable[[str], tuple[Any, Path]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, folder = saved(family)
    quantize_small_weights(monkeypatch)

    by_token = {"int8": "token"} if target == "cpu" else {}
    result = export(folder, tmp_path / "out", target=target, precision=["int8"], **by_token)

    counts = result.manifest["stages"][-1]["operators"]
    quantized = ("com.microsoft::DynamicQuantizeMatMul", "com.microsoft::MatMulIntegerToFloat", "MatMulInteger")
    assert sum(counts.get(name, 0) for name in quantized) >= 2 * (2 + 2)  # projections that were merged count as one
    path = result.path / "onnx" / "model_quantized.onnx"
    assert largest_difference(model, path) < 1
    if by_token:
        assert_independent_of_mates(path, vocabulary=60)
