"""Small random models of the encoders with rotary embeddings, fused projections, gates and shared key heads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

WIDTH, HEADS, SIZE, NEURONS, LAYERS, POSITIONS, VOCABULARY, IMAGE = 32, 4, 8, 48, 2, 40, 60, 16
SIZES = {
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": NEURONS,
}
TEXT = {**SIZES, "vocab_size": VOCABULARY, "max_position_embeddings": POSITIONS, "pad_token_id": 0}
MODERN = {**TEXT, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3, "local_attention": 8}
ESM = {**TEXT, "position_embedding_type": "rotary", "mask_token_id": 50, "token_dropout": True}
DEBERTA = {
    **TEXT,
    "relative_attention": True,
    "position_buckets": 8,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
    "type_vocab_size": 0,
}
TOWER = {**SIZES, "image_size": IMAGE, "patch_size": 4}

# The start of the class names in transformers, and settings.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "modernbert": ("ModernBert", {**MODERN, "global_attn_every_n_layers": 2}),
    "modernbert-biases": ("ModernBert", {**MODERN, "attention_bias": True, "mlp_bias": True, "norm_bias": True}),
    "gte": ("Gte", TEXT),
    "nomic": ("NomicBert", TEXT),
    "jina": ("JinaEmbeddingsV3", TEXT),
    "eurobert": ("EuroBert", {**TEXT, "bos_token_id": 2, "eos_token_id": 3, "mask_token_id": 50}),
    "eurobert-grouped": (
        "EuroBert",
        {**TEXT, "num_key_value_heads": 2, "bos_token_id": 2, "eos_token_id": 3, "mask_token_id": 50},
    ),
    "esm": ("Esm", ESM),
    "deberta": ("DebertaV2", DEBERTA),
    "deberta-unshared": ("DebertaV2", {**DEBERTA, "share_att_key": False}),
    "vit": ("ViT", TOWER),
    "clip-vision": ("CLIPVision", TOWER),
    "siglip-vision": ("SiglipVision", TOWER),
}


def build(family: str, head: str = "ForSequenceClassification", **changes: Any) -> Any:
    """A random model of the family whose biases are not zero; skips where this transformers lacks it."""
    name, settings = FAMILIES[family]
    if not hasattr(transformers, f"{name}{head}"):
        pytest.skip(f"this transformers has no {name}{head}")
    torch.manual_seed(0)
    model_class = getattr(transformers, f"{name}{head}")
    model = model_class(model_class.config_class(**{**settings, **changes})).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "norm" not in key.lower():
                parameter.normal_(0, 0.2)
            elif key.endswith("bias"):
                parameter.normal_(0, 0.05)
    return model


def is_exported(family: str) -> bool:
    """Whether an export takes it: docs/checkpoints.md says what becomes of some families with transformers 4."""
    return hasattr(transformers, "NomicBertModel") or not family.startswith(("modernbert", "esm", "CLIP", "Siglip"))
