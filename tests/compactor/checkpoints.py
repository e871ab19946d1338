"""Small checkpoints for tests, written without any model library; every bias is non-zero."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

LAYERS, HEADS, HEAD_DIM, WIDTH, NEURONS, VOCABULARY, POSITIONS = 2, 4, 4, 16, 24, 30, 20

# Local names of query, key, value, attention output, first and second feed-forward matrix; stem; config names.
FAMILIES: dict[str, tuple[str, str, str, str, str, str, str]] = {
    "bert": (
        "bert.encoder.layer",
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
        "attention.output.dense",
        "intermediate.dense",
        "output.dense",
    ),
    "vit": (
        "vit.encoder.layer",
        "attention.attention.query",
        "attention.attention.key",
        "attention.attention.value",
        "attention.output.dense",
        "intermediate.dense",
        "output.dense",
    ),
    "vit5": (
        "vit.layers",
        "attention.q_proj",
        "attention.k_proj",
        "attention.v_proj",
        "attention.o_proj",
        "mlp.fc1",
        "mlp.fc2",
    ),
    "distilbert": (
        "distilbert.transformer.layer",
        "attention.q_lin",
        "attention.k_lin",
        "attention.v_lin",
        "attention.out_lin",
        "ffn.lin1",
        "ffn.lin2",
    ),
    "mpnet": (
        "mpnet.encoder.layer",
        "attention.attn.q",
        "attention.attn.k",
        "attention.attn.v",
        "attention.attn.o",
        "intermediate.dense",
        "output.dense",
    ),
    "other": (
        "model.layers",
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.out_proj",
        "fc1",
        "fc2",
    ),
}


def config(family: str = "bert", **changes: Any) -> dict[str, Any]:
    """A ``config.json``; a change to None drops the key."""
    sizes = {
        "hidden_size": WIDTH,
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "intermediate_size": NEURONS,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": POSITIONS,
        "type_vocab_size": 2,
    }
    if family == "distilbert":
        sizes = {"dim": WIDTH, "n_heads": HEADS, "n_layers": LAYERS, "hidden_dim": NEURONS, "vocab_size": VOCABULARY}
    values = {"model_type": family, "architectures": ["BertForSequenceClassification"], **sizes, **changes}
    return {key: value for key, value in values.items() if value is not None}


def modules(family: str = "bert", layer: int = 0) -> tuple[str, ...]:
    """Full names of a layer's six linear modules: query, key, value, output, first, second."""
    stem, *local = FAMILIES[family]
    return tuple(f"{stem}.{layer}.{name}" for name in local)


def tensors(family: str = "bert", *, seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """All tensors of a small dense model that the stock class loads (for BERT)."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return (torch.rand(shape, generator=generator) * 0.5 + 0.1).to(dtype)  # never zero

    result: dict[str, torch.Tensor] = {}

    def linear(name: str, rows: int, cols: int) -> None:
        result[f"{name}.weight"] = random(rows, cols) * torch.where(random(rows, cols) > 0.35, 1, -1).to(dtype)
        result[f"{name}.bias"] = random(rows)

    base = FAMILIES[family][0].partition(".")[0]
    result[f"{base}.embeddings.word_embeddings.weight"] = random(VOCABULARY, WIDTH)
    if family == "bert":
        result[f"{base}.embeddings.position_embeddings.weight"] = random(POSITIONS, WIDTH)
        result[f"{base}.embeddings.token_type_embeddings.weight"] = random(2, WIDTH)
        result |= {f"{base}.embeddings.LayerNorm.{part}": random(WIDTH) for part in ("weight", "bias")}
        linear(f"{base}.pooler.dense", WIDTH, WIDTH)
        linear("classifier", 2, WIDTH)
    for layer in range(LAYERS):
        *attention, first, second = modules(family, layer)
        for name in attention:
            linear(name, WIDTH, WIDTH)
        linear(first, NEURONS, WIDTH)
        linear(second, WIDTH, NEURONS)
        if family == "bert":
            for norm in ("attention.output.LayerNorm", "output.LayerNorm"):
                name = f"{FAMILIES[family][0]}.{layer}.{norm}"
                result |= {f"{name}.{part}": random(WIDTH) for part in ("weight", "bias")}
    return result


def sparse_args(**changes: Any) -> dict[str, Any]:
    """nn_pruning's arguments for hybrid pruning: 4 x 4 blocks in attention, whole neurons in the feed-forward."""
    values = {
        "attention_pruning_method": "sigmoied_threshold",
        "dense_pruning_method": "sigmoied_threshold:1d_alt",
        "ampere_pruning_method": "disabled",
        "attention_output_with_dense": False,
        "bias_mask": True,
        "attention_block_rows": 4,
        "attention_block_cols": 4,
        "dense_block_rows": 1,
        "dense_block_cols": 1,
        "final_threshold": 0.1,
        "linear_min_parameters": 0.005,
    }
    values |= changes
    return {key: value for key, value in values.items() if value is not None}


def scores_name(module: str, axis: int = 0) -> str:
    """Name under which nn_pruning stores a matrix's scores."""
    return f"{module}.mask_module.context_modules.{axis}.mask_scores"


def hybrid_scores(*, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random scores that fit ``sparse_args()``; some live and some do not at the threshold of 0.1."""
    generator = torch.Generator().manual_seed(seed)
    scores = {}
    for layer in range(LAYERS):
        *attention, first, second = modules("bert", layer)
        for name in attention:
            scores[scores_name(name)] = torch.randn(WIDTH // 4, WIDTH // 4, generator=generator) * 3 - 2
        neurons = torch.randn(NEURONS, generator=generator) * 3 - 2
        scores[scores_name(first, 0)] = neurons
        scores[scores_name(second, 1)] = neurons.clone()
    return scores


def write(
    folder: Path,
    weights: Mapping[str, torch.Tensor] | None = None,
    model_config: dict[str, Any] | None = None,
    *,
    masks: dict[str, Any] | None = None,
) -> Path:
    """Write a model folder with safetensors; ``masks`` becomes ``sparse_args.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config() if model_config is None else model_config))
    if masks is not None:
        (folder / "sparse_args.json").write_text(json.dumps(masks))
    weights = tensors() if weights is None else weights
    save_file({name: tensor.clone().contiguous() for name, tensor in weights.items()}, folder / "model.safetensors")
    return folder
