"""Encoders with rotary embeddings, fused projections, gates, windows and RMS norms: as compact and as exact as BERT."""

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
from torch import nn

from compactor.exporting.export import export
from compactor.runtime.verification import Case, text_cases
from tests.compactor.exporting.traces import quantize_small_weights, save_once
from tests.independence import assert_independent_of_mates
from tests.slow import slow_after_first, slow_unless

WIDTH, HEADS, SIZE, NEURONS, POSITIONS = 32, 4, 8, 48, 40
SIZES = {
    "vocab_size": 60,
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "intermediate_size": NEURONS,
    "max_position_embeddings": POSITIONS,
    "pad_token_id": 0,
}
MODERN = {**SIZES, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2, "local_attention": 8}
ESM = {**SIZES, "pad_token_id": 1, "position_embedding_type": "rotary", "mask_token_id": 32, "token_dropout": True}

OLD = not hasattr(transformers, "NomicBertModel")  # transformers 4

# Class and settings of each. What transformers 4 makes of the three that it has is told in docs/checkpoints.md.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "modernbert": ("ModernBertForSequenceClassification", {**MODERN, "global_attn_every_n_layers": 2}),
    "modernbert-biases": (
        "ModernBertForTokenClassification",
        {**MODERN, "attention_bias": True, "mlp_bias": True, "norm_bias": True},
    ),
    "gte": ("GteModel", SIZES),
    "nomic": ("NomicBertModel", SIZES),
    "jina": ("JinaEmbeddingsV3Model", SIZES),
    "eurobert": ("EuroBertForSequenceClassification", SIZES),
    "esm": ("EsmForTokenClassification", ESM),
}

QUICK = set(FAMILIES) - {"modernbert-biases", "eurobert"}  # eurobert: test_export_disentangled.py


def make(family: str) -> Any:
    """A random model in which head 1, a rotated pair of channels and ten neurons of every layer are dead."""
    name, settings = FAMILIES[family]
    if not hasattr(transformers, name) or (family == "esm" and OLD):
        pytest.skip("this transformers lacks the family, or writes the length of a text into it")
    torch.manual_seed(0)
    model_class = getattr(transformers, name)
    model = model_class(model_class.config_class(**settings)).eval().requires_grad_(False)
    for key, tensor in model.named_parameters():
        if key.endswith("bias"):
            tensor.normal_(0, 0.05)
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        leaf = name.rpartition(".")[2]
        if leaf in ("Wqkv", "qkv_proj"):
            query, _, value = (_part(module, i) for i in range(3))
        elif leaf in ("q_proj", "query"):
            query, value = _part(module, 0), []
        elif leaf in ("v_proj", "value"):
            query, value = [], _part(module, 0)
        else:
            query = value = []
            if module.in_features == NEURONS and module.out_features == WIDTH:
                module.weight[:, :10] = 0
        for tensor in query:
            for channel in (1, 1 + SIZE // 2):
                tensor[channel::SIZE] = 0
        for tensor in value:
            tensor[SIZE : 2 * SIZE] = 0
    return model


def _part(module: nn.Linear, index: int) -> list[torch.Tensor]:
    rows = slice(index * WIDTH, (index + 1) * WIDTH)
    return [tensor[rows] for tensor in (module.weight, module.bias) if tensor is not None]


def cases(names: list[str]) -> Iterator[Case]:
    for lengths in ((1,), (5,), (24,), (POSITIONS,)):
        options = {"vocab_size": 60, "max_length": POSITIONS, "pad_token_id": 0, "type_vocab_size": 1}
        yield from text_cases(tuple(names), lengths=lengths, **options)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Any, Path]]:
    return save_once(make, tmp_path_factory)


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
    quantize_small_weights(monkeypatch)

    result = export(folder, tmp_path / "out", target=target, int8="token" if target == "cpu" else None)

    layers = result.manifest["layers"]
    layers = [layer for layer in layers if layer["path"] != "layers.1.feed_forward_2"]  # EuroBERT's head is one as well
    assert [layer["kind"] for layer in layers] == ["attention", "feed_forward"] * 2
    for attention in layers[::2]:
        assert (attention["heads"], attention["qk_width"], attention["v_width"]) == ([4, 3], [8, 6], [8, 8])
    assert [layer["width"] for layer in layers[1::2]] == [[48, 38]] * 2
    assert result.manifest["recipe"]["pack"] == (target == "cpu" and not OLD)  # a padded query weighs all alike there
    assert result.manifest["verification"]["max_abs_diff"] < 1e-5
    session = onnxruntime.InferenceSession(result.path / "onnx" / "model.onnx", providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    for case in cases(names):
        with torch.no_grad():
            expected = model(**{name: torch.from_numpy(array) for name, array in case.feeds.items()})
        for output in session.get_outputs():
            found = session.run([output.name], case.feeds)[0]
            wanted = expected[output.name].numpy()
            if wanted.shape[:2] == case.valid.shape and wanted.ndim == 3:
                found, wanted = found[case.valid], wanted[case.valid]
            np.testing.assert_allclose(found, wanted, atol=1e-5, rtol=1e-4, err_msg=case.name)
    if target != "cuda":
        counts = result.manifest["stages"][-1]["operators"]
        quantized = sum(
            counts.get(f"com.microsoft::{name}", 0) for name in ("DynamicQuantizeMatMul", "MatMulIntegerToFloat")
        )
        assert quantized + counts.get("MatMulInteger", 0) >= 2 * (2 + 2)  # projections that were merged count as one
    if target == "cpu":
        assert_independent_of_mates(result.path / "onnx" / "model_quantized.onnx", vocabulary=60)


def test_tables_are_kept_once_for_all_layers(saved: Callable[[str], tuple[Any, Path]], tmp_path: Path) -> None:
    _, folder = saved("modernbert")
    path = export(folder, tmp_path / "out", precision=["fp32"]).path
    graph = onnx.load(path / "onnx" / "model.onnx").graph
    tables = [tuple(tensor.dims) for tensor in graph.initializer if tuple(tensor.dims) == (POSITIONS, SIZE // 2 - 1)]
    assert len(tables) == 4  # cosines and sines, of the local and of the global layers
    nodes = [node.op_type for node in graph.node]
    assert nodes.count("RotaryEmbedding") == 4 and not {"Cos", "Sin"} & set(nodes)
