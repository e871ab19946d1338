"""What can be removed: the heads and neurons of every block, how one matrix reads them, and removing some in place."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from compactor.errors import ModelDirectoryError
from compactor.trainer.following import Part
from compactor.trainer.structure import AttentionMatrices, FeedForwardMatrices, Matrices, find_blocks

_TODO = "give a BERT, ModernBERT, GTE, DeBERTa-v2 or ESM-2, or a model built like one of them"


@dataclasses.dataclass(frozen=True)
class Unit:
    """One attention or feed-forward block, with the layer that reads its heads or neurons.

    Attributes:
        block: Its matrices.
        module: The linear layer that reads: O, or the down-projection.
        count: How many heads or neurons there are.
        width: Inputs of ``module`` that one makes: the channels of a head's value, or 1.
    """

    block: Matrices
    module: nn.Linear
    count: int
    width: int

    @property
    def name(self) -> str:
        """``layers.3.attention``."""
        return f"layers.{self.block.index}.{self.block.kind}"

    @property
    def is_attention(self) -> bool:
        """Whether it has heads, and not neurons."""
        return isinstance(self.block, AttentionMatrices)

    @property
    def shape(self) -> str:
        """What its time depends on, beside its size: ``attention 384 12x32``, ``feed_forward 384 1536x1``."""
        inner = f"{self.count}x{self.width}" if self.is_attention else f"{self.count}x{len(self.block.matrices) - 1}"
        return f"{self.block.kind} {self.module.out_features} {inner}"

    def inputs_of(self, kept: Tensor) -> Tensor:
        """(K * width,) the inputs of ``module`` that ``kept`` heads or neurons make."""
        return (kept[:, None] * self.width + torch.arange(self.width)).flatten()

    def weight(self) -> Tensor:
        """(D, N + 1) the weight of ``module`` with its bias as one more input, a constant; (D, N) without a bias."""
        weight = self.module.weight.detach().double()
        return weight if self.module.bias is None else torch.cat([weight, self.module.bias.double()[:, None]], 1)


def find_units(model: Any, batch: Any) -> tuple[Unit, ...]:
    """The blocks of ``model`` of which heads or neurons can be removed, in the order in which it computes them.

    Args:
        model: In evaluation mode.
        batch: A small one.

    Raises:
        ModelDirectoryError: There is no attention over linear projections in it; or what is known of a block by its
            name, or by one look at it, would be of several.
    """
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    units = []
    for block in find_blocks(model, batch):
        module = linears[block.output.module]
        if not block.output.whole:
            continue
        if isinstance(block, AttentionMatrices):
            units.append(Unit(block, module, block.heads, module.in_features // block.heads))
        else:
            units.append(Unit(block, module, module.in_features, 1))
    if not units:
        raise ModelDirectoryError(
            "no block was found of which heads or neurons could be removed",
            todo=_TODO,
        )
    _check_single(model, batch, units)
    return tuple(units)


@torch.no_grad()
def _check_single(model: Any, batch: Any, units: Sequence[Unit]) -> None:
    """Refuse layers with several blocks of a kind (MobileBERT), and blocks that run more than once (ALBERT)."""
    twice = [name for name, count in collections.Counter(unit.name for unit in units).items() if count > 1]
    if twice:
        raise ModelDirectoryError(f"a layer has several blocks of a kind: {twice[0]}", todo=_TODO)
    runs: collections.Counter[nn.Module] = collections.Counter()
    handles = [unit.module.register_forward_hook(lambda module, *_: runs.update([module])) for unit in units]
    try:
        model(**batch)
    finally:
        for handle in handles:
            handle.remove()
    again = [unit.name for unit in units if runs[unit.module] > 1]
    if again:
        raise ModelDirectoryError(f"{again[0]} runs more than once: layers share their weights", todo=_TODO)


class Linears:
    """The linear layers of a model as they were, so that any choice can be made and taken back.

    Args:
        model: Whose weights are copied.
        units: What may change.
    """

    def __init__(self, model: nn.Module, units: Sequence[Unit]) -> None:
        self._modules = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
        names = dict.fromkeys(part.module for unit in units for part in unit.block.matrices)
        self._before = {name: self._copy(self._modules[name]) for name in names}

    @staticmethod
    def _copy(module: nn.Linear) -> tuple[Tensor, Tensor | None]:
        return module.weight.detach().clone(), None if module.bias is None else module.bias.detach().clone()

    @torch.no_grad()
    def restore(self) -> None:
        """Every layer as it was."""
        for name, (weight, bias) in self._before.items():
            module = self._modules[name]
            module.weight.copy_(weight)
            if bias is not None:
                module.bias.copy_(bias)

    @torch.no_grad()
    def write(self, unit: Unit, kept: Tensor, solved: Tensor) -> None:
        """Let ``kept`` heads or neurons live: what reads them becomes ``solved``, and what reads the others zero.

        Args:
            unit: The block.
            kept: (K,) numbers.
            solved: (D, K * width [+ 1]) the weights of those that are read, and the bias where there is one.
        """
        module = unit.module
        inputs = unit.inputs_of(kept)
        module.weight.zero_()
        module.weight[:, inputs] = solved[:, : len(inputs)].to(module.weight.dtype)
        if module.bias is not None:
            module.bias.copy_(solved[:, -1])

    @torch.no_grad()
    def clear(self, unit: Unit, kept: Tensor) -> None:
        """Zero in the matrices that make them the rows of all heads or neurons but ``kept``, biases included."""
        alive = torch.zeros(unit.count, dtype=torch.bool)
        alive[kept] = True
        block = unit.block
        if isinstance(block, FeedForwardMatrices):
            for part in block.inputs:
                self._zero(part, ~alive)
            return
        for part in block.inputs:
            heads = alive.reshape(block.heads_of(part), -1).any(
                1
            )  # keys and values live with any query that reads them
            self._zero(part, ~heads.repeat_interleave(part.rows // len(heads)))

    def _zero(self, part: Part, rows: Tensor) -> None:
        module = self._modules[part.module]
        module.weight[part.start : part.stop][rows] = 0
        if module.bias is not None:
            module.bias[part.start : part.stop][rows] = 0
