"""Trainable masks: scores over blocks of weights, and the parametrizations through which a model feels them.

One *group* has a matrix of scores S, one for each block; the block lives where its score passes the threshold. Forward
and backward, for a weight W cut into blocks and its mask M of zeros and ones::

    W' = W * expand(M),   M = 1[σ(S) > τ]        dL/dS = sum over the block of  dL/dW' * W      (straight through)

A neuron of a feed-forward pair is one score over rows of one matrix and columns of the other: both are *members* of its
group. A row without a live block loses its bias too; else heads would rarely be removable. Of a matrix that is fused of
several, each part of its rows is a member of its own.

The model stays what it was: masks sit in ``torch.nn.utils.parametrize``, the scores in one submodule of the model, so
that optimizers, checkpoints and data parallelism treat them as any parameter. Masked weights live for the time of one
product: autograd is given the weight and the mask, and multiplies them again in the backward pass
(``recomputed_weights``), so masks cost next to no memory.

Reference: Lagunas et al. (2021), Section 3; Sanh, Wolf and Rush, "Movement Pruning", 2020, Equations 2 and 3; Bengio,
Léonard and Courville, "Estimating or Propagating Gradients Through Stochastic Neurons", 2013.
"""

from __future__ import annotations

import contextlib
import dataclasses
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from compactor.checkpoint.pruning_record import MaskedMatrix

FAMILIES = ("attention", "feed_forward")


class Group(nn.Module):
    """Scores that are thresholded together, and the blocks that they switch.

    Args:
        name: Unique in the model: its first matrix.
        family: ``attention`` or ``feed_forward``.
        stack: ``encoder`` or ``decoder``.
        shape: ``(R, C)`` of the scores.
        weights: Elements that one score stands for, without what is padded; ``(R, C)``.
    """

    scores: nn.Parameter
    live: Tensor
    protected: Tensor
    weights: Tensor

    def __init__(self, name: str, family: str, stack: str, shape: tuple[int, int], weights: Tensor) -> None:
        super().__init__()
        self.name, self.family, self.stack = name, family, stack
        self.members: list[Member] = []
        self.scores = nn.Parameter(torch.zeros(shape))
        self.register_buffer("live", torch.ones(shape, dtype=torch.bool), persistent=False)
        self.register_buffer("protected", torch.zeros(shape, dtype=torch.bool), persistent=False)
        self.register_buffer("weights", weights, persistent=False)
        self.count = int(weights.sum(dtype=torch.float64))

    @property
    def live_weights(self) -> Tensor:
        """How many elements the live blocks hold, a scalar."""
        return (self.weights * self.live).sum(dtype=torch.float64)

    def set_live(self, live: Tensor) -> None:
        """Switch blocks on and off, in place; what is protected stays on."""
        self.live.copy_(live | self.protected)

    @torch.no_grad()
    def passing(self, threshold: float, least: float) -> Tensor:
        """``(R, C)`` bool: the blocks whose score passes, and at least ``least`` of them.

        Args:
            threshold: What the sigmoid of a score must be above.
            least: The part of the scores that is kept whatever they are; on ties, the first ones of the matrix.
        """
        return keep_at_least(self.scores.sigmoid() > threshold, self.scores, least)

    @torch.no_grad()
    def norms(self) -> Tensor:
        """``(R, C)``: the norm of what each score covers, per element and over all members."""
        squares = sum(member.block_sums(member.part(member.weight.detach()).square()) for member in self.members)
        return (torch.as_tensor(squares) / self.weights).sqrt()


def keep_at_least(live: Tensor, scores: Tensor, least: float) -> Tensor:
    """``live``, or the highest scores where fewer than ``int(least * n) + 1`` of n live; on ties, the first ones."""
    count = scores.numel()
    floor = min(int(least * count) + 1, count) if least > 0 else 0
    return live if int(live.sum()) >= floor else highest(scores, floor)


def highest(scores: Tensor, count: int) -> Tensor:
    """Bool of the shape of ``scores``: exactly its ``count`` highest; on ties, the first ones."""
    order = scores.flatten().sort(descending=True, stable=True).indices
    found = torch.zeros(scores.numel(), dtype=torch.bool, device=scores.device)
    found[order[:count]] = True
    return found.reshape(scores.shape)


@dataclasses.dataclass(frozen=True)
class Member:
    """A matrix and how the scores of a group lie on it.

    Attributes:
        module: The linear layer.
        name: Its module name.
        group: The name of its group.
        rows: Output features of a block.
        cols: Input features of a block.
        transposed: Whether the scores' rows are the matrix's columns.
        start: Its first output feature in the layer, which may hold several matrices.
        stop: The one behind its last; None where it reaches to the end.
    """

    module: nn.Linear
    name: str
    group: str
    rows: int
    cols: int
    transposed: bool = False
    start: int = 0
    stop: int | None = None

    @property
    def layout(self) -> MaskedMatrix:
        """The same, as it is written beside a model."""
        return MaskedMatrix(self.name, self.group, self.rows, self.cols, self.transposed, self.start, self.stop)

    @property
    def shape(self) -> tuple[int, int]:
        """Output and input features of the matrix."""
        stop = self.module.out_features if self.stop is None else self.stop
        return stop - self.start, self.module.in_features

    @property
    def weight(self) -> Tensor:
        """``(out, in)``: the layer's weight without its masks."""
        if parametrize.is_parametrized(self.module, "weight"):
            return self.module.parametrizations.weight.original  # type: ignore[union-attr,return-value]
        return self.module.weight

    @property
    def bias(self) -> Tensor | None:
        """``(out,)``: the layer's bias without its masks."""
        if parametrize.is_parametrized(self.module, "bias"):
            return self.module.parametrizations.bias.original  # type: ignore[union-attr,return-value]
        return self.module.bias

    def part(self, tensor: Tensor) -> Tensor:
        """The matrix's own rows of the layer's weight or bias; a view."""
        return tensor[self.start : self.stop]

    def expand(self, blocks: Tensor) -> Tensor:
        """A value for each block as one for each element of the matrix."""
        return self.layout.expand(blocks, self.shape)

    def live_rows(self, blocks: Tensor) -> Tensor:
        """Bool, one for each row of the matrix: whether it has a live block."""
        blocks = blocks.T if self.transposed else blocks
        return blocks.any(1).repeat_interleave(self.rows, 0)[: self.shape[0]]

    def live_cols(self, blocks: Tensor) -> Tensor:
        """Bool, one for each column of the matrix: whether it has a live block."""
        blocks = blocks.T if self.transposed else blocks
        return blocks.any(0).repeat_interleave(self.cols, 0)[: self.shape[1]]

    def masked(self, matrix: Tensor, live: Tensor, *, out: Tensor | None = None) -> Tensor:
        """``matrix`` with zeros where its block does not live; written to ``out`` where that is given."""
        blocks = live.T if self.transposed else live
        grid = self._grid()
        if grid is None:
            return torch.mul(matrix, self.expand(live), out=out)
        rows, cols = grid
        shape = (rows, self.rows, cols, self.cols)
        spread = blocks.to(matrix.dtype).reshape(rows, 1, cols, 1)
        if out is not None:
            torch.mul(matrix.view(shape), spread, out=out.view(shape))
            return out
        return (matrix.view(shape) * spread).view_as(matrix)

    def block_sums(self, elements: Tensor) -> Tensor:
        """``(R, C)``: the sum of the matrix's elements over each block."""
        grid = self._grid()
        if grid is None:  # the last blocks reach beyond the edge
            down = -elements.shape[0] % self.rows
            right = -elements.shape[1] % self.cols
            elements = nn.functional.pad(elements, (0, right, 0, down))
            grid = elements.shape[0] // self.rows, elements.shape[1] // self.cols
        sums = elements.reshape(grid[0], self.rows, grid[1], self.cols).sum((1, 3))
        return sums.T if self.transposed else sums

    def _grid(self) -> tuple[int, int] | None:
        """How many blocks there are, where they tile the matrix."""
        rows, cols = self.shape
        return None if rows % self.rows or cols % self.cols else (rows // self.rows, cols // self.cols)


Mask = tuple[Group, Member]


def live_elements(masks: Sequence[Mask]) -> Tensor:
    """``(out, in)`` bool of a linear layer: what the masks on its matrices leave."""
    module = masks[0][1].module
    live = masks[0][0].live.new_ones(module.out_features, module.in_features)
    for group, member in masks:
        member.part(live).copy_(member.expand(group.live))
    return live


def live_rows(masks: Sequence[Mask]) -> Tensor:
    """``(out,)`` bool of a linear layer: rows of which the masks leave anything."""
    live = masks[0][0].live.new_ones(masks[0][1].module.out_features)
    for group, member in masks:
        member.part(live).copy_(member.live_rows(group.live))
    return live


def _mask(weight: Tensor, masks: Sequence[Mask], lives: Sequence[Tensor]) -> Tensor:
    """``weight`` of a linear layer with zeros where the blocks of its matrices do not live."""
    if weight.shape == masks[0][1].shape:
        return masks[0][1].masked(weight, lives[0])
    covered = sum(member.shape[0] for _, member in masks)
    made = torch.empty_like(weight) if covered == len(weight) else weight.clone()
    for (_, member), live in zip(masks, lives, strict=True):
        member.masked(member.part(weight), live, out=member.part(made))
    return made


class _MaskedWeight(torch.autograd.Function):
    """``W * expand(M)`` with the straight-through gradient; keeps nothing but W and M."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, masks: Sequence[Mask], *scores: Tensor) -> Tensor:
        """W'."""
        lives = [group.live for group, _ in masks]
        ctx.save_for_backward(weight, *lives)
        ctx.masks = masks
        return _mask(weight, masks, lives)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of W and of each matrix's S from that of W'."""
        weight, *lives = ctx.saved_tensors
        (gradient,) = gradients
        of_weight = _mask(gradient, ctx.masks, lives) if ctx.needs_input_grad[0] else None
        of_scores = [
            member.block_sums(member.part(gradient) * member.part(weight)) if needed else None
            for (_, member), needed in zip(ctx.masks, ctx.needs_input_grad[2:], strict=True)
        ]
        return (of_weight, None, *of_scores)


class MaskedWeight(nn.Module):
    """The parametrization of a linear layer's weight: masks on it, or on the matrices that it is fused of."""

    def __init__(self, *masks: Mask) -> None:
        super().__init__()
        self._masks = masks  # in tuples, or each would become a part of the model once more

    def forward(self, weight: Tensor) -> Tensor:
        """``(out, in)``: the masked weight."""
        scores = [group.scores for group, _ in self._masks]
        made: Tensor = _MaskedWeight.apply(weight, self._masks, *scores)  # type: ignore[no-untyped-call]
        if torch.is_grad_enabled():
            _note(made, self, weight)
        return made

    def again(self, weight: Tensor) -> Tensor:
        """The masked weight once more, for the backward pass."""
        return _mask(weight.detach(), self._masks, [group.live for group, _ in self._masks])

    def right_inverse(self, weight: Tensor) -> Tensor:
        """What an assignment to the weight stores."""
        return weight


class MaskedBias(nn.Module):
    """The parametrization of a bias: zero in rows without a live block."""

    def __init__(self, *masks: Mask) -> None:
        super().__init__()
        self._masks = masks

    def forward(self, bias: Tensor) -> Tensor:
        """``(out,)``: the masked bias."""
        return bias * live_rows(self._masks)

    def right_inverse(self, bias: Tensor) -> Tensor:
        """What an assignment to the bias stores."""
        return bias


# Masked weights in the backward pass

# By the address of its storage: a masked weight (weakly), its parametrization and the weight it was made from.
_made: dict[int, tuple[weakref.ref[Tensor], MaskedWeight, Tensor]] = {}


def _note(made: Tensor, parametrization: MaskedWeight, weight: Tensor) -> None:
    _made[made.untyped_storage().data_ptr()] = (weakref.ref(made), parametrization, weight)


@dataclasses.dataclass(frozen=True)
class _Recipe:
    """How to make a tensor again that autograd would have kept."""

    parametrization: MaskedWeight
    weight: Tensor
    version: int
    size: torch.Size
    stride: tuple[int, ...]
    offset: int


@contextlib.contextmanager
def recomputed_weights() -> Iterator[None]:
    """While it lasts, autograd keeps no masked weights for the backward pass, and makes them again there.

    Without it the model computes the same, and holds all masked weights at once.
    """
    try:
        with torch.autograd.graph.saved_tensors_hooks(_pack, _unpack):
            yield
    finally:
        _made.clear()


def _pack(tensor: Tensor) -> Tensor | _Recipe:
    found = _made.get(tensor.untyped_storage().data_ptr()) if tensor.layout is torch.strided else None
    if found is None:
        return tensor
    made, parametrization, weight = found
    owner = made()
    if owner is None or owner.untyped_storage().data_ptr() != tensor.untyped_storage().data_ptr():
        return tensor  # the address belongs to another tensor by now
    return _Recipe(
        parametrization, weight, weight._version, tensor.size(), tensor.stride(), int(tensor.storage_offset())
    )


def _unpack(kept: Tensor | _Recipe) -> Tensor:
    if not isinstance(kept, _Recipe):
        return kept
    if kept.weight._version != kept.version:
        raise RuntimeError("a masked weight was changed between the forward and the backward pass")
    return kept.parametrization.again(kept.weight).as_strided(kept.size, kept.stride, kept.offset)
