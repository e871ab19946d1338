"""Tiny pruned model folders as transformers itself saves them: random weights, non-zero biases, planted zeros."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
import transformers

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
HEAD_DIM = 8


def save_text_model(folder: Path, class_name: str, tokenizer: Path) -> Path:
    """A two-layer BERT of ``class_name`` with dead heads and neurons, and the tokenizer of another folder."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=13458,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=128,
        num_labels=2,
    )
    model = getattr(transformers, class_name)(config).eval()
    _prune(model)
    model.save_pretrained(folder)
    for name in TOKENIZER_FILES:
        shutil.copy(tokenizer / name, folder / name)
    return folder


def save_image_model(folder: Path) -> Path:
    """A two-layer ViT with dead heads and neurons."""
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        image_size=32,
        patch_size=8,
        num_labels=2,
    )
    model = transformers.ViTForImageClassification(config).eval()
    _prune(model)
    model.save_pretrained(folder)
    return folder


@torch.no_grad()
def _prune(model: torch.nn.Module) -> None:
    """Give every bias a value, then kill heads 1 and 3 and the second half of the neurons of every layer."""
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.normal_(std=0.2)
        elif parameter.dim() == 2:
            parameter.mul_(4.0)
    for name, module in model.named_modules():
        if name.endswith("attention.output.dense"):
            for head in (1, 3):
                module.weight[:, head * HEAD_DIM : (head + 1) * HEAD_DIM] = 0
        elif name.endswith("output.dense"):
            module.weight[:, module.in_features // 2 :] = 0
