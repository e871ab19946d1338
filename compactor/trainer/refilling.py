"""What follows the pruning in the filled and rewound methods: who survived, and what becomes of them.

Surviving is what an export would keep (``passes.graph.liveness``): a head with a live value channel, a neuron that
is driven and read. Reference: Lagunas et al. (2021), Section 3, "hybrid filled"; ``rewind`` as in its code.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compactor.passes.graph.liveness import head_liveness, neuron_liveness
from compactor.trainer.masks import Member
from compactor.trainer.pruner import Pruner
from compactor.trainer.structure import AttentionMatrices, Matrices

FILL_SPREAD = 5e-3  # standard deviation of what fills zeros: a quarter of what BERT is initialised with


@dataclasses.dataclass(frozen=True)
class Survivors:
    """What is left of a pruned model.

    Attributes:
        heads: ``(H,)`` bool by the name of the attention's output projection.
        neurons: ``(N,)`` bool by the name of the feed-forward's output projection.
    """

    heads: Mapping[str, Tensor]
    neurons: Mapping[str, Tensor]


def find_survivors(model: nn.Module, blocks: Sequence[Matrices]) -> Survivors:
    """The heads and neurons that are alive in the weights of ``model``, which holds its zeros in place."""
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}

    def nonzero(name: str) -> NDArray[np.bool_]:
        mask: NDArray[np.bool_] = (linears[name].weight.detach() != 0).T.cpu().numpy()
        return mask

    heads, neurons = {}, {}
    for block in blocks:
        if isinstance(block, AttentionMatrices):
            query_bias = linears[block.query].bias
            live = head_liveness(
                nonzero(block.query),
                None if query_bias is None else (query_bias.detach() != 0).cpu().numpy(),
                nonzero(block.key),
                nonzero(block.value),
                nonzero(block.output),
                heads=block.heads,
            )
            heads[block.output] = torch.from_numpy(live.heads.copy())
        else:
            alive = neuron_liveness([nonzero(name) for name in block.inputs], nonzero(block.output))
            neurons[block.output] = torch.from_numpy(alive)
    return Survivors(heads, neurons)


@torch.no_grad()
def fill(pruner: Pruner, survivors: Survivors, generator: torch.Generator) -> int:
    """Fix the masks of whole heads and neurons to the survivors, and give the zeros inside them small random values.

    Args:
        pruner: Newly installed on the pruned model, a score for each head and each neuron.
        survivors: Of that model.
        generator: Of the values: N(0, ``FILL_SPREAD``).

    Returns:
        How many weights were filled.
    """
    owners = _owners(pruner)
    live = {}
    for group in pruner.all_groups:
        block = owners[group.name]
        alive = (
            survivors.heads[block.output] if isinstance(block, AttentionMatrices) else survivors.neurons[block.output]
        )
        live[group.name] = alive.to(group.live.device).reshape(group.live.shape)
    pruner.fix(live)
    filled = 0
    for group, member in pruner.members():
        weight = member.weight
        empty = (weight == 0) & member.expand(group.live)
        values = torch.randn(weight.shape, generator=generator) * FILL_SPREAD
        weight.copy_(torch.where(empty, values.to(weight), weight))
        filled += int(empty.sum())
    return filled


@torch.no_grad()
def protect(pruner: Pruner, survivors: Survivors) -> None:
    """Keep the blocks of surviving heads, whatever their scores will be; neurons can go."""
    owners = _owners(pruner)
    for group, member in pruner.members():
        block = owners[group.name]
        if isinstance(block, AttentionMatrices):
            group.protected |= _blocks_of_heads(member, block, survivors.heads[block.output]).to(group.protected.device)


def _owners(pruner: Pruner) -> dict[str, Matrices]:
    """The block of each group, by the group's name, which is that of its first matrix."""
    return {name: block for block in pruner.blocks for name in block.matrices}


def _blocks_of_heads(member: Member, block: AttentionMatrices, alive: Tensor) -> Tensor:
    """``(R, C)`` bool: the blocks that reach into a living head."""
    rows, cols = member.module.out_features, member.module.in_features
    if member.name == block.output:
        elements = alive.repeat_interleave(cols // block.heads).expand(rows, cols)
    else:
        elements = alive.repeat_interleave(rows // block.heads).unsqueeze(1).expand(rows, cols)
    return member.block_sums(elements.float()) > 0
