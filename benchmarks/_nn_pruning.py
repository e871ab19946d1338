"""Compaction as nn_pruning does it, in PyTorch: our own words for its rule, to measure what it gains and what it loses.

The rule, of Lagunas et al.'s code: a head goes when the rows of *any one* of Q, K and V are all zero, a neuron when its
row of the first matrix *or* its column of the second is; biases of what went go too; where nothing would be left, the
first stays. It is approximate on checkpoints with biases: a head with a dead K still averages V, and a neuron with a
zero row is the constant φ(b). Layers keep sizes of their own, and zeros inside what stays are multiplied as before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def compact(model: Any) -> Any:
    """Narrow every layer of a stock BERT in place, and return it; its weights are not to be trained."""
    import torch
    from transformers.pytorch_utils import prune_linear_layer

    for layer in model.modules():
        if not (hasattr(layer, "attention") and hasattr(layer, "intermediate")):
            continue
        inner, size = layer.attention.self, layer.attention.self.attention_head_size
        heads = kept_heads(inner.query.weight, inner.key.weight, inner.value.weight, size)
        channels = (heads[:, None] * size + torch.arange(size)).flatten()
        for name in ("query", "key", "value"):
            setattr(inner, name, prune_linear_layer(getattr(inner, name), channels))
        layer.attention.output.dense = prune_linear_layer(layer.attention.output.dense, channels, dim=1)
        inner.num_attention_heads, inner.all_head_size = len(heads), len(channels)

        up, down = layer.intermediate, layer.output
        neurons = kept_neurons(up.dense.weight, down.dense.weight)
        up.dense, down.dense = prune_linear_layer(up.dense, neurons), prune_linear_layer(down.dense, neurons, dim=1)
    return model.requires_grad_(False)


def kept_heads(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, head_size: int) -> torch.Tensor:
    """Indices of the heads that stay; ``q``, ``k`` and ``v`` are (heads * head_size, width)."""
    alive = [matrix.view(-1, head_size * matrix.shape[1]).any(dim=1) for matrix in (q, k, v)]
    return _at_least_one(alive[0] & alive[1] & alive[2])


def kept_neurons(up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    """Indices of the neurons that stay; ``up`` is (neurons, width), ``down`` (width, neurons)."""
    return _at_least_one(up.any(dim=1) & down.any(dim=0))


def _at_least_one(alive: torch.Tensor) -> torch.Tensor:
    kept = alive.nonzero().flatten()
    return kept if len(kept) else kept.new_zeros(1)
