"""Give back to a head-pruned checkpoint the heads that its config says were taken, as zeros.

transformers 4 removes a head by deleting its rows of the query, key and value projections (and their biases) and its
columns of the output projection; ``config.pruned_heads`` lists them by layer. transformers 5 can no longer load such
a file. A head whose V and O are zero adds exactly nothing, so the full shapes with zeros are the same function.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any

import torch

from compactor.checkpoint.config import Sizes
from compactor.checkpoint.naming import AttentionNames, find_layers
from compactor.errors import ModelDirectoryError

PrunedHeads = Mapping[int, frozenset[int]]


def read_pruned_heads(config: Mapping[str, Any], sizes: Sizes, where: str) -> PrunedHeads:
    """The heads that were removed, by layer; empty where none were.

    Raises:
        ModelDirectoryError: ``pruned_heads`` is malformed or names a layer or head that does not exist.
    """
    stated = config.get("pruned_heads")
    if not stated:
        return {}
    if not isinstance(stated, dict) or not sizes.heads or not sizes.layers:
        raise ModelDirectoryError(
            "'pruned_heads' must map layers to heads, beside the numbers of layers and heads", where=where
        )
    pruned: dict[int, frozenset[int]] = {}
    for layer, heads in stated.items():
        if not _is_index(layer, sizes.layers):
            raise ModelDirectoryError(f"'pruned_heads' names layer {layer[:40]!r} of {sizes.layers}", where=where)
        if not isinstance(heads, list) or not all(_is_index(str(head), sizes.heads) for head in heads):
            raise ModelDirectoryError(
                f"'pruned_heads' of layer {layer} must list heads from 0 to {sizes.heads - 1}", where=where
            )
        if heads:
            pruned[int(layer)] = frozenset(int(head) for head in heads)
    return pruned


def restore_heads(tensors: MutableMapping[str, torch.Tensor], pruned: PrunedHeads, sizes: Sizes) -> str:
    """Put the removed heads back as zeros; replaces tensors, changes none in place.

    Returns:
        A note for the user.

    Raises:
        ModelDirectoryError: A pruned layer has no attention with known names, or its shapes contradict the config.
    """
    layers = {layer.index: layer.attention for layer in find_layers(tensors.keys()) if layer.attention}
    plans = []
    for index, heads in sorted(pruned.items()):
        names = layers.get(index)
        if names is None:
            raise ModelDirectoryError(f"layer {index} has pruned heads, but no attention with known names")
        plans.append((names, _kept_channels(names, tensors, heads, sizes)))
    for names, kept in plans:
        full = kept.numel()
        for module in names.inputs:
            for name in (f"{module}.weight", f"{module}.bias"):
                if name in tensors:
                    tensors[name] = _spread(tensors[name], kept, full, dim=0)
        output = f"{names.output}.weight"
        tensors[output] = _spread(tensors[output], kept, full, dim=1)
    count = sum(len(heads) for heads in pruned.values())
    return f"{count} heads that were pruned from {len(pruned)} layers put back as zeros"


def _kept_channels(
    names: AttentionNames, tensors: Mapping[str, torch.Tensor], heads: frozenset[int], sizes: Sizes
) -> torch.Tensor:
    """``(H*d,)`` bool: the channels the checkpoint still holds. Raises where the shapes disagree."""
    assert sizes.heads  # read_pruned_heads checked
    remaining = sizes.heads - len(heads)
    query, key, value = (tensors[f"{name}.weight"] for name in names.inputs)
    output = tensors[f"{names.output}.weight"]
    width = sizes.hidden or output.shape[0]
    if width % sizes.heads:
        raise ModelDirectoryError(f"width {width} is not divisible by {sizes.heads} heads", where=names.query)
    head_width = width // sizes.heads
    expected = remaining * head_width
    for module, got in (
        (names.query, query.shape[0]),
        (names.key, key.shape[0]),
        (names.value, value.shape[0]),
        (names.output, output.shape[1]),
    ):
        if got != expected:
            raise ModelDirectoryError(
                f"'{module}' is {got} wide; {remaining} of {sizes.heads} heads of {head_width} make {expected}",
                todo="'pruned_heads' and the weights do not belong together",
            )
    kept = torch.ones(sizes.heads, dtype=torch.bool)
    kept[sorted(heads)] = False
    return kept.repeat_interleave(head_width)


def _spread(tensor: torch.Tensor, kept: torch.Tensor, full: int, *, dim: int) -> torch.Tensor:
    """``tensor`` with its ``dim`` widened to ``full``: its slices where ``kept``, zeros elsewhere."""
    shape = list(tensor.shape)
    shape[dim] = full
    wide = torch.zeros(shape, dtype=tensor.dtype)
    wide.index_copy_(dim, kept.nonzero().squeeze(1), tensor)
    return wide


def _is_index(text: str, count: int) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 9 and int(text) < count
