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
    """Narrow every layer of a stock BERT in place, and return it."""
    for module in model.modules():
        attention = getattr(module, "attention", None)
        if attention is not None and hasattr(module, "intermediate"):
            _narrow_attention(attention.self, attention.output)
            _narrow_feed_forward(module.intermediate, module.output)
    return model


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


def _narrow_attention(inner: Any, output: Any) -> None:
    import torch

    size = inner.attention_head_size
    heads = kept_heads(inner.query.weight, inner.key.weight, inner.value.weight, size)
    channels = (heads[:, None] * size + torch.arange(size)).flatten()
    for linear in (inner.query, inner.key, inner.value):
        _keep_rows(linear, channels)
    _keep_columns(output.dense, channels)
    inner.num_attention_heads = len(heads)
    inner.all_head_size = len(channels)


def _narrow_feed_forward(intermediate: Any, output: Any) -> None:
    neurons = kept_neurons(intermediate.dense.weight, output.dense.weight)
    _keep_rows(intermediate.dense, neurons)
    _keep_columns(output.dense, neurons)


def _keep_rows(linear: Any, rows: torch.Tensor) -> None:
    import torch

    linear.weight = torch.nn.Parameter(linear.weight.detach()[rows].contiguous(), requires_grad=False)
    linear.bias = torch.nn.Parameter(linear.bias.detach()[rows].contiguous(), requires_grad=False)
    linear.out_features = len(rows)


def _keep_columns(linear: Any, columns: torch.Tensor) -> None:
    import torch

    linear.weight = torch.nn.Parameter(linear.weight.detach()[:, columns].contiguous(), requires_grad=False)
    linear.in_features = len(columns)
