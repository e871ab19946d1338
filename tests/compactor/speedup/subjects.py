"""Small models in float64 with padded batches, as surgery sees them; and blocks that belong to no model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from compactor.speedup.subject import Subject
from compactor.speedup.surgeon import Surgeon
from compactor.speedup.units import Linears, Unit, find_units
from compactor.tasks import TASKS
from compactor.trainer.following import Part
from compactor.trainer.structure import AttentionMatrices, FeedForwardMatrices
from tests.compactor.trainer.tiny import bert_config

LENGTHS = ((9, 6, 4, 9), (12, 5, 8), (3, 2))


def bert(*, seed: int = 0, **changes: Any) -> Any:
    """A random BERT classifier in float64 whose biases are not zero."""
    from transformers import BertForSequenceClassification

    torch.manual_seed(seed)
    model = BertForSequenceClassification(bert_config(**changes)).eval().double().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.normal_(0, 0.1)
        elif "LayerNorm" not in name:
            parameter.normal_(0, 0.3)
    return model


def batches(
    lengths: Sequence[Sequence[int]] = LENGTHS, *, vocabulary: int = 16, left: bool = False, seed: int = 0
) -> list[dict[str, Tensor]]:
    """Random tokens, padded on one side."""
    random = torch.Generator().manual_seed(seed)
    found = []
    for sizes in lengths:
        places = torch.arange(max(sizes)).expand(len(sizes), -1)
        count = torch.tensor(sizes)[:, None]
        mask = (places >= max(sizes) - count if left else places < count).long()
        ids = torch.randint(4, vocabulary, mask.shape, generator=random) * mask
        found.append({"input_ids": ids, "attention_mask": mask})
    return found


def subject(model: Any, texts: Sequence[dict[str, Tensor]] | None = None, *, task: str = "text-classification") -> Any:
    """``model`` with the same batches for all purposes."""
    texts = batches() if texts is None else texts
    count = sum(len(batch["input_ids"]) for batch in texts)
    here = Path("model")
    return Subject(here, here, TASKS[task], cast(Any, None), model, texts, texts, texts, (), count)


def surgery_on(one: Any) -> tuple[tuple[Unit, ...], Linears, Surgeon]:
    """The blocks of a subject, their weights, and the surgeon."""
    units = find_units(one.model, {name: tensor[:1] for name, tensor in one.search[0].items()})
    linears = Linears(one.model, units)
    return units, linears, Surgeon(one, units, linears, lambda text: None)


def block(kind: str, layer: int, count: int, *, width: int = 1, outputs: int = 8) -> Unit:
    """A block of ``count`` heads or neurons, of which only the last layer is there."""
    inputs = [Part(f"{layer}.{kind}.{name}", 0, count * width, True) for name in "abc"]
    output = Part(f"{layer}.{kind}.d", 0, outputs, True)
    made: Any
    if kind == "attention":
        made = AttentionMatrices(
            *inputs, output, heads=count, kv_heads=count, stack="encoder", kind="attention", index=layer
        )
    else:
        made = FeedForwardMatrices((inputs[0],), output, stack="encoder", index=layer)
    return Unit(made, nn.Linear(count * width, outputs), count, width)
