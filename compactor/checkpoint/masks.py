"""Fold the masks of a raw nn_pruning checkpoint into its weights.

nn_pruning keeps full weights W beside scores S and multiplies by a mask in every forward pass. Folding makes that
product the weight, once. With n scores in S and threshold t:

* ``threshold``: a score lives where ``S > t``; ``sigmoied_threshold``: where ``sigmoid(S) > t``. Where fewer than
  ``int(f n) + 1`` live (f is ``linear_min_parameters``, 0 for no floor), those strictly above the
  ``(n - that)``-th smallest live instead: on ties that can be none.
* ``topK``: the ``int(t n)`` highest scores live; on ties, the first ones of the matrix.
* ``magnitude``: the same with ``abs(W)`` for S, element by element; scores are stored, and nobody reads them.
* ``l0``: W is multiplied by ``sigmoid(S) * 1.2 - 0.1``, cut to 0 to 1, which lives where that is above 0.
* sub-method ``joint``: the matrices of an attention share one grid of scores.
* sub-method ``1d_alt``: one score a row (or a column), which stands for each of its elements, so n counts elements.
* sub-method ``1d``: a score for each row and one for each column; an element's is their product. The rows of a
  matrix share theirs with the columns of the one that reads it, where that is of the feed-forward's kind, too.
* with a bias mask, a row of W without a live element loses its bias.

Symbols: the stored weight is ``(out, in)``; a score covers ``block_rows x block_cols`` of it.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Iterable, Mapping, MutableMapping

import torch

from compactor.checkpoint.naming import LayerNames, find_layers
from compactor.checkpoint.sparse_args import MaskSettings, Method, SparseArgs, Submethod
from compactor.errors import ModelDirectoryError

_SCORES = re.compile(r"(?P<module>.+)\.mask_module\.context_modules\.(?P<axis>[01])\.mask_scores")
_ROWS, _COLS = 0, 1
_L0_STRETCH = (-0.1, 1.1)  # what the sigmoid is stretched to, before it is cut to 0 and 1


@dataclasses.dataclass(frozen=True)
class _Masked:
    """One masked matrix: its module, its settings and its scores by position (0: block or rows, 1: columns)."""

    module: str
    settings: MaskSettings
    scores: Mapping[int, torch.Tensor]


def has_scores(names: Iterable[str]) -> bool:
    """Whether any tensor belongs to nn_pruning's masks."""
    return any(is_mask_tensor(name) for name in names)


def fold_masks(tensors: MutableMapping[str, torch.Tensor], sparse_args: SparseArgs) -> tuple[str, ...]:
    """Zero what the masks hide, in place, and take the scores out of ``tensors``.

    Args:
        tensors: The checkpoint's tensors; weights and biases are changed in place.
        sparse_args: How scores become masks.

    Returns:
        Notes for the user.

    Raises:
        ModelDirectoryError: Scores are missing, do not tile their matrix, or sit on an unknown module.
    """
    scores = _take_scores(tensors)
    masked = _match(find_layers(tensors.keys()), scores, sparse_args)
    for item in masked:
        _check(item, tensors)  # every refusal comes before the first edit
    for item in masked:
        _fold(item, tensors, sparse_args)
    folded = {item.module for item in masked}
    notes = [f"masks of {len(folded)} matrices folded into their weights"]
    if ignored := sum(module not in folded for module in scores):
        notes.append(f"scores of {ignored} matrices ignored: their pruning method is disabled")
    if unread := sum(item.settings.method is Method.MAGNITUDE and item.module in scores for item in masked):
        notes.append(f"scores of {unread} matrices ignored: magnitude looks at the weights alone")
    return tuple(notes)


def is_mask_tensor(name: str) -> bool:
    """Whether a tensor belongs to nn_pruning's masks."""
    return name.endswith(".mask_scores") or ".mask_module." in name or ".ampere_module." in name


def _take_scores(tensors: MutableMapping[str, torch.Tensor]) -> dict[str, dict[int, torch.Tensor]]:
    """Remove all mask tensors; return the scores by module and position."""
    scores: dict[str, dict[int, torch.Tensor]] = collections.defaultdict(dict)
    for name in [name for name in tensors if is_mask_tensor(name)]:
        match = _SCORES.fullmatch(name)
        if not match:
            raise ModelDirectoryError(f"mask tensor '{name}' is not of a supported kind")
        scores[match["module"]][int(match["axis"])] = tensors.pop(name)
    return dict(scores)


def _match(
    layers: tuple[LayerNames, ...], scores: Mapping[str, dict[int, torch.Tensor]], sparse_args: SparseArgs
) -> list[_Masked]:
    """Every matrix that has a mask, with its scores."""
    unknown = dict(scores)
    masked = []
    for layer in layers:
        members: list[tuple[str, MaskSettings]] = []
        for attention in layer.attentions:
            members += [(name, sparse_args.attention) for name in attention.inputs]
            members.append((attention.output, sparse_args.attention_output))
        if layer.feed_forward:
            members += [(name, sparse_args.dense) for name in (*layer.feed_forward.inputs, layer.feed_forward.output)]
        found = {module: dict(scores.get(module, {})) for module, _ in members}
        for group in _shared(layer, sparse_args):
            _share(found, group)
        for module, settings in members:
            unknown.pop(module, None)
            if settings.method is not Method.DISABLED:
                masked.append(_Masked(module, settings, found[module]))
    if unknown:
        raise ModelDirectoryError(f"'{min(unknown)}' has mask scores, but is no matrix of a known layer")
    return masked


def _shared(layer: LayerNames, sparse_args: SparseArgs) -> list[tuple[tuple[str, int], ...]]:
    """Which scores of a layer are one tensor: its places as module and position."""
    groups: list[tuple[tuple[str, int], ...]] = []
    for attention in layer.attentions:
        if sparse_args.attention.submethod is Submethod.JOINT:
            own = sparse_args.attention_output.submethod is Submethod.JOINT and not sparse_args.output_with_dense
            members = (*attention.inputs, attention.output) if own else attention.inputs
            groups.append(tuple((module, _ROWS) for module in members))
    pair = layer.feed_forward
    if pair is None or len(pair.inputs) != 1:
        return groups
    if sparse_args.dense.submethod.by_lines:
        groups.append(((pair.inputs[0], _ROWS), (pair.output, _COLS)))
    if sparse_args.dense.submethod is Submethod.CROSSED and sparse_args.output_with_dense and layer.attention:
        groups.append(((layer.attention.output, _ROWS), (pair.inputs[0], _COLS)))
    return groups


def _share(found: Mapping[str, dict[int, torch.Tensor]], places: tuple[tuple[str, int], ...]) -> None:
    """Let every place of a shared tensor have it: writers of safetensors may keep one copy alone."""
    copies = [(module, axis) for module, axis in places if axis in found[module]]
    for module, axis in copies[1:]:
        first, position = copies[0]
        if not torch.equal(found[module][axis], found[first][position]):
            raise ModelDirectoryError(f"'{first}' and '{module}' should share their scores, but theirs differ")
    for module, axis in places if copies else ():
        first, position = copies[0]
        found[module].setdefault(axis, found[first][position])


def _check(item: _Masked, tensors: Mapping[str, torch.Tensor]) -> None:
    """Check that the scores exist and tile the matrix."""
    settings, (rows, cols) = item.settings, tensors[f"{item.module}.weight"].shape
    if settings.method is Method.MAGNITUDE:
        return
    where = f"{item.module}: weight {rows} x {cols}, blocks {settings.block_rows} x {settings.block_cols}"
    if rows % settings.block_rows or cols % settings.block_cols:
        raise ModelDirectoryError("the blocks do not tile the matrix", where=where, todo="check sparse_args.json")
    if not item.scores:
        raise ModelDirectoryError(
            f"'{item.module}' has no mask scores, though its pruning method is '{settings.method.value}'",
            todo="the checkpoint is incomplete, or sparse_args.json belongs to another one",
        )
    grid = (rows // settings.block_rows, cols // settings.block_cols)
    if not settings.submethod.by_lines:
        expected: dict[int, tuple[int, ...]] = {_ROWS: grid}
    elif settings.submethod is Submethod.CROSSED:
        expected = {axis: (grid[axis],) for axis in (_ROWS, _COLS)}
    else:
        expected = {axis: (grid[axis],) for axis in tuple(item.scores)[:1]}
    shapes = {axis: tuple(scores.shape) for axis, scores in item.scores.items()}
    if shapes != expected:
        raise ModelDirectoryError(
            f"mask scores {_join(shapes.values())} do not tile the matrix: expected {_join(expected.values())}",
            where=where,
            todo="check sparse_args.json",
        )


def _fold(item: _Masked, tensors: Mapping[str, torch.Tensor], sparse_args: SparseArgs) -> None:
    weight = tensors[f"{item.module}.weight"]
    mask = _mask(item, weight, sparse_args)
    bias = tensors.get(f"{item.module}.bias")
    if bias is not None and sparse_args.bias_mask:
        bias.masked_fill_(~mask.any(dim=1), 0)
    if mask.is_floating_point():
        weight.mul_(mask)
    weight.masked_fill_(mask == 0, 0)


def _mask(item: _Masked, weight: torch.Tensor, sparse_args: SparseArgs) -> torch.Tensor:
    """The mask of a weight (out, in), bool, or for ``l0`` numbers from 0 to 1."""
    settings = item.settings
    if settings.method is Method.MAGNITUDE:
        return _highest(weight.float().abs(), sparse_args.threshold)
    mask = _block_mask(item, weight.shape, sparse_args)
    return mask.repeat_interleave(settings.block_rows, dim=0).repeat_interleave(settings.block_cols, dim=1)


def _block_mask(item: _Masked, shape: torch.Size, sparse_args: SparseArgs) -> torch.Tensor:
    """The mask over blocks, ``(rows / block_rows, cols / block_cols)``."""
    settings = item.settings
    grid = (shape[0] // settings.block_rows, shape[1] // settings.block_cols)
    lines = {axis: scores.float() for axis, scores in item.scores.items()}
    if settings.submethod is Submethod.CROSSED:
        scores = lines[_ROWS].unsqueeze(1) * lines[_COLS].unsqueeze(0)
    elif settings.submethod is Submethod.ALTERNATING:
        ((axis, line),) = lines.items()
        scores = line.unsqueeze(1 - axis).expand(grid)
    else:
        scores = lines[_ROWS]
    if settings.method is Method.TOP_K:
        return _highest(scores, sparse_args.threshold)
    if settings.method is Method.L0:
        low, high = _L0_STRETCH
        return (scores.sigmoid() * (high - low) + low).clamp(0, 1)
    return _above(scores, settings.method, sparse_args)


def _above(scores: torch.Tensor, method: Method, sparse_args: SparseArgs) -> torch.Tensor:
    values = scores.sigmoid() if method is Method.SIGMOID_THRESHOLD else scores
    live = values > sparse_args.threshold
    count = scores.numel()
    floor = int(sparse_args.min_fraction * count) + 1 if sparse_args.min_fraction else 0
    if int(live.sum()) < floor:
        live = scores > scores.flatten().kthvalue(max(count - floor, 1)).values
    return live


def _highest(scores: torch.Tensor, fraction: float) -> torch.Tensor:
    if not 0 <= fraction <= 1:
        raise ModelDirectoryError(f"'final_threshold' is {fraction:g}, which is no fraction to keep, from 0 to 1")
    order = scores.flatten().sort(descending=True, stable=True).indices
    live = torch.zeros(scores.numel(), dtype=torch.bool)
    live[order[: int(fraction * scores.numel())]] = True
    return live.reshape(scores.shape)


def _join(shapes: Iterable[tuple[int, ...]]) -> str:
    return " and ".join(str(shape) for shape in shapes)
