"""Fold the masks of a raw nn_pruning checkpoint into its weights.

nn_pruning keeps full weights W beside scores S and multiplies by a mask in every forward pass. Folding makes that
product the weight, once. With n scores in S and threshold t:

* ``threshold``: a score lives where ``S > t``; ``sigmoied_threshold``: where ``sigmoid(S) > t``. Where fewer than
  ``int(f n) + 1`` live (f is ``linear_min_parameters``, 0 for no floor), those strictly above the
  ``(n - that)``-th smallest live instead: on ties that can be none.
* ``topK``: the ``int(t n)`` highest scores live; on ties, the first ones of the matrix.
* sub-method ``1d_alt``: one score a row (or a column), which stands for each of its elements, so n counts elements.
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
        members: list[tuple[str, MaskSettings, Mapping[int, torch.Tensor]]] = []
        for attention in layer.attentions:
            members += [(name, sparse_args.attention, scores.get(name, {})) for name in attention.inputs]
            output = attention.output
            members.append((output, sparse_args.attention_output, scores.get(output, {})))
        if layer.feed_forward:
            members += _feed_forward(layer.feed_forward.inputs, layer.feed_forward.output, scores, sparse_args.dense)
        for module, settings, found in members:
            unknown.pop(module, None)
            if settings.method is not Method.DISABLED:
                masked.append(_Masked(module, settings, found))
    if unknown:
        raise ModelDirectoryError(f"'{min(unknown)}' has mask scores, but is no matrix of a known layer")
    return masked


def _feed_forward(
    inputs: tuple[str, ...], output: str, scores: Mapping[str, dict[int, torch.Tensor]], settings: MaskSettings
) -> list[tuple[str, MaskSettings, Mapping[int, torch.Tensor]]]:
    """The feed-forward pair; with ``1d_alt`` one score vector serves the rows of one and the columns of the other.

    Writers of safetensors may drop the second copy of that vector, so either stands in for the other.
    """
    found = {module: dict(scores.get(module, {})) for module in (*inputs, output)}
    if settings.submethod is Submethod.ALTERNATING and len(inputs) == 1:
        rows, cols = found[inputs[0]].get(_ROWS), found[output].get(_COLS)
        if rows is not None and cols is not None and not torch.equal(rows, cols):
            raise ModelDirectoryError(f"'{inputs[0]}' and '{output}' should share one score vector, but theirs differ")
        if rows is None and cols is not None:
            found[inputs[0]][_ROWS] = cols
        if cols is None and rows is not None:
            found[output][_COLS] = rows
    return [(module, settings, found[module]) for module in (*inputs, output)]


def _check(item: _Masked, tensors: Mapping[str, torch.Tensor]) -> None:
    """Check that the scores exist and tile the matrix."""
    settings, (rows, cols) = item.settings, tensors[f"{item.module}.weight"].shape
    where = f"{item.module}: weight {rows} x {cols}, blocks {settings.block_rows} x {settings.block_cols}"
    if rows % settings.block_rows or cols % settings.block_cols:
        raise ModelDirectoryError("the blocks do not tile the matrix", where=where, todo="check sparse_args.json")
    if not item.scores:
        raise ModelDirectoryError(
            f"'{item.module}' has no mask scores, though its pruning method is '{settings.method.value}'",
            todo="the checkpoint is incomplete, or sparse_args.json belongs to another one",
        )
    grid = (rows // settings.block_rows, cols // settings.block_cols)
    if settings.submethod is Submethod.BLOCK:
        expected: dict[int, tuple[int, ...]] = {_ROWS: grid}
    else:
        expected = {axis: (grid[axis],) for axis in item.scores}
    shapes = {axis: tuple(scores.shape) for axis, scores in item.scores.items()}
    if shapes != expected or len(shapes) != 1:
        raise ModelDirectoryError(
            f"mask scores {_join(shapes.values())} do not tile the matrix: expected {_join(expected.values())}",
            where=where,
            todo="check sparse_args.json",
        )


def _fold(item: _Masked, tensors: Mapping[str, torch.Tensor], sparse_args: SparseArgs) -> None:
    weight = tensors[f"{item.module}.weight"]
    live = _live_blocks(item, weight.shape, sparse_args)
    live = live.repeat_interleave(item.settings.block_rows, dim=0)
    bias = tensors.get(f"{item.module}.bias")
    if bias is not None and sparse_args.bias_mask:
        bias.masked_fill_(~live.any(dim=1), 0)
    weight.masked_fill_(~live.repeat_interleave(item.settings.block_cols, dim=1), 0)


def _live_blocks(item: _Masked, shape: torch.Size, sparse_args: SparseArgs) -> torch.Tensor:
    """The mask over blocks, ``(rows / block_rows, cols / block_cols)`` bool."""
    settings = item.settings
    ((axis, scores),) = item.scores.items()
    scores = scores.float()
    if settings.submethod is Submethod.ALTERNATING:
        grid = (shape[0] // settings.block_rows, shape[1] // settings.block_cols)
        scores = scores.unsqueeze(1 - axis).expand(grid)
    if settings.method is Method.TOP_K:
        return _highest(scores, sparse_args.threshold)
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
        raise ModelDirectoryError(f"'final_threshold' is {fraction:g}, but topK keeps a fraction between 0 and 1")
    order = scores.flatten().sort(descending=True, stable=True).indices
    live = torch.zeros(scores.numel(), dtype=torch.bool)
    live[order[: int(fraction * scores.numel())]] = True
    return live.reshape(scores.shape)


def _join(shapes: Iterable[tuple[int, ...]]) -> str:
    return " and ".join(str(shape) for shape in shapes)
