"""Windows of attention beside padding: exact at every position, also where a query sees no key at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import transformers

from compactor.exporting.export import export

LENGTH = 20
PADDED = {"left": (slice(0, 12), slice(0, 17)), "right": (slice(8, LENGTH), slice(3, LENGTH))}


@pytest.mark.parametrize("padding", PADDED)
def test_padded_tokens_far_from_all_real_ones_are_what_the_model_makes_of_them(padding: str, tmp_path: Path) -> None:
    """ModernBERT: transformers 4 hides by the lowest float, so that such a query weighs all keys alike; 5 does not."""
    torch.manual_seed(0)
    config = transformers.ModernBertConfig(
        vocab_size=60,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=40,
        local_attention=4,
        global_attn_every_n_layers=2,
        attention_bias=True,
        mlp_bias=True,
        **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 0),
    )
    model = transformers.ModernBertModel(config).eval().requires_grad_(False)
    for tensor in model.parameters():
        tensor.normal_(0.1, 0.3)
    model.save_pretrained(tmp_path / "model")
    result = export(tmp_path / "model", tmp_path / "out", precision=["fp32"], pack=False)
    assert result.manifest["unrecognised"] == []

    ids = np.random.default_rng(0).integers(3, 60, (3, LENGTH))
    mask = np.ones_like(ids)
    for row, hidden in enumerate(PADDED[padding], start=1):
        mask[row, hidden] = 0
    ids[mask == 0] = 0
    with torch.no_grad():
        wanted = model(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask)).last_hidden_state.numpy()
    session = onnxruntime.InferenceSession(tmp_path / "out" / "onnx" / "model.onnx", providers=["CPUExecutionProvider"])
    [hidden_states] = session.run(None, {"input_ids": ids, "attention_mask": mask})
    assert np.abs(hidden_states - wanted).max() <= 1e-4 * np.abs(wanted).max()
