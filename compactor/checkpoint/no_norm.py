"""NoNorm, which nn_pruning's fastest models have in place of every LayerNorm: an affine map without statistics.

    y = x * weight + bias

Its folders say so in ``config.json`` (``"layer_norm_type": "no_norm"``) and keep the two tensors under the LayerNorm's
names. No stock class knows the key: it builds LayerNorms, whose weights then fit, so they are replaced afterwards.

A raw folder (``layer_norm_patch``) holds the LayerNorm's own weights still, and beside them decayed sums a (3,) of the
mean, of the variance and of 1, over the tokens that were met in training. In evaluation they stand for statistics:

    w' = weight / sqrt(a1 / a2 + e),    b' = bias - a0 / a2 * w'

Source: nn_pruning, ``modules/nonorm.py``; NoNorm itself: Sun et al., "MobileBERT", 2020, section 3.3.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping

import torch

from compactor.checkpoint.config import NO_NORM, NORM_TYPE
from compactor.errors import ModelDirectoryError

_STATISTICS = ".accumulator"


class NoNorm(torch.nn.Module):
    """``x * weight + bias``.

    Attributes:
        weight: ``(D,)``.
        bias: ``(D,)``.
    """

    def __init__(self, weight: torch.nn.Parameter, bias: torch.nn.Parameter) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scale and shift the channels of ``x`` (..., D)."""
        return x * self.weight + self.bias


def replace_norms(model: torch.nn.Module, where: str) -> None:
    """Put a NoNorm in the place of every LayerNorm of a model, with its weights.

    Raises:
        ModelDirectoryError: The model has no LayerNorm, or one without a weight or a bias.
    """
    count = 0
    for module in tuple(model.modules()):
        for name, child in tuple(module.named_children()):
            if not isinstance(child, torch.nn.LayerNorm):
                continue
            if child.weight is None or child.bias is None:
                raise ModelDirectoryError(f"'{name}' has no weight and bias for a NoNorm", where=where)
            setattr(module, name, NoNorm(child.weight, child.bias))
            count += 1
    if not count:
        raise ModelDirectoryError(
            f"'{NORM_TYPE}' is '{NO_NORM}', but '{type(model).__name__}' has no LayerNorm to replace", where=where
        )


def has_statistics(names: Iterable[str]) -> bool:
    """Whether any tensor holds the running statistics of a norm."""
    return any(name.endswith(_STATISTICS) for name in names)


def fold_statistics(tensors: MutableMapping[str, torch.Tensor], epsilon: float | None, where: str) -> str:
    """Turn the norms of a raw folder into NoNorms, in place, and take the statistics out of ``tensors``.

    Args:
        tensors: The checkpoint's tensors; weights and biases of norms are changed in place.
        epsilon: The norms' own, ``layer_norm_eps`` of the config.
        where: The folder, for messages.

    Returns:
        A note for the user.

    Raises:
        ModelDirectoryError: Statistics are missing, damaged, or belong to no norm, or epsilon is not stated.
    """
    if not isinstance(epsilon, float | int) or not 0 <= epsilon < 1:
        raise ModelDirectoryError(
            "config.json states no 'layer_norm_eps', which the statistics of the norms are read with", where=where
        )
    found = {name.removesuffix(_STATISTICS): tensors[name] for name in tensors if name.endswith(_STATISTICS)}
    norms = {name.rpartition(".")[0] for name in tensors if name.endswith("LayerNorm.weight")}
    if found.keys() != norms or not found:
        odd = min(found.keys() ^ norms, default="LayerNorm")
        raise ModelDirectoryError(
            f"'{odd}' should be a norm with running statistics ('{odd}{_STATISTICS}') and its weights",
            where=where,
            todo="the checkpoint is incomplete, or 'layer_norm_patch' in sparse_args.json belongs to another one",
        )
    folded = {name: _folded(name, sums, tensors, epsilon, where) for name, sums in found.items()}
    for name, (weight, bias) in folded.items():  # every refusal is behind us
        tensors[f"{name}.weight"].copy_(weight)
        tensors[f"{name}.bias"].copy_(bias)
        del tensors[f"{name}{_STATISTICS}"]
    return f"running statistics of {len(folded)} norms folded into their weights: each is a NoNorm"


def _folded(
    name: str, sums: torch.Tensor, tensors: Mapping[str, torch.Tensor], epsilon: float, where: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias (D,) of the NoNorm, computed in float64. Raises ModelDirectoryError."""
    mean, variance, count = sums.double().flatten().tolist() if sums.numel() == 3 else (0.0, 0.0, 0.0)
    bias = tensors.get(f"{name}.bias")
    if not count > 0 or not variance / count + epsilon > 0 or bias is None:
        raise ModelDirectoryError(
            f"the running statistics of '{name}' are no mean, variance and count of a norm that was trained",
            where=where,
            todo="the checkpoint is damaged, or from before the first step",
        )
    weight = tensors[f"{name}.weight"].double() / (variance / count + epsilon) ** 0.5
    return weight, bias.double() - mean / count * weight
