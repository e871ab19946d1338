"""What follows the pruning in the filled and rewound methods: what becomes of the heads and neurons that survived.

Reference: Lagunas et al. (2021), Section 3, "hybrid filled"; ``rewind`` as in its code.
"""

from __future__ import annotations

import torch
from torch import Tensor

from compactor.trainer.masks import Member
from compactor.trainer.pruner import Pruner
from compactor.trainer.structure import AttentionMatrices, Matrices
from compactor.trainer.survivors import Survivors

FILL_SPREAD = 5e-3  # standard deviation of what fills zeros: a quarter of what BERT is initialised with


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
    keep(pruner, survivors)
    filled = 0
    for group, member in pruner.members():
        weight = member.part(member.weight)
        empty = (weight == 0) & member.expand(group.live)
        values = torch.randn(weight.shape, generator=generator) * FILL_SPREAD
        weight.copy_(torch.where(empty, values.to(weight), weight))
        filled += int(empty.sum())
    return filled


@torch.no_grad()
def grown(pruner: Pruner) -> list[Tensor]:
    """By group the masks of now, with heads that are left as ``fill`` will leave them, which is whole."""
    owners, left = _owners(pruner), dict(zip(pruner.blocks, pruner.layers(), strict=True))
    lives = []
    for group in pruner.all_groups:
        block = owners[group.name]
        if isinstance(block, AttentionMatrices):
            survivors = Survivors({block.output.name: torch.tensor(left[block].heads)}, {})
            alive = _heads_of(group.name, block, survivors)
            lives.append(_blocks_of_heads(group.members[0], block, alive).to(group.live.device))
        else:
            lives.append(group.live.clone())
    return lives


@torch.no_grad()
def keep(pruner: Pruner, survivors: Survivors) -> None:
    """Fix the masks of whole heads and neurons to the survivors.

    Args:
        pruner: Newly installed, a score for each head and each neuron.
        survivors: What lives, and goes on living.
    """
    owners = _owners(pruner)
    live = {}
    for group in pruner.all_groups:
        block = owners[group.name]
        if isinstance(block, AttentionMatrices):
            alive = _heads_of(group.name, block, survivors)
        else:
            alive = survivors.neurons[block.output.name]
        live[group.name] = alive.to(group.live.device).reshape(group.live.shape)
    pruner.fix(live)


@torch.no_grad()
def protect(pruner: Pruner, survivors: Survivors) -> None:
    """Keep the blocks of surviving heads, whatever their scores will be; neurons can go."""
    owners = _owners(pruner)
    for group, member in pruner.members():
        block = owners[group.name]
        if isinstance(block, AttentionMatrices):
            alive = _heads_of(group.name, block, survivors)
            group.protected |= _blocks_of_heads(member, block, alive).to(group.protected.device)


def _owners(pruner: Pruner) -> dict[str, Matrices]:
    """The block of each group, by the group's name, which is that of its first matrix."""
    return {part.name: block for block in pruner.blocks for part in block.matrices}


def _heads_of(name: str, block: AttentionMatrices, survivors: Survivors) -> Tensor:
    """The surviving heads of the matrix called ``name``: those of keys and values live with any that reads them."""
    alive = survivors.heads[block.output.name]
    part = next(part for part in block.matrices if part.name == name)
    return alive.reshape(block.heads_of(part), -1).any(1)


def _blocks_of_heads(member: Member, block: AttentionMatrices, alive: Tensor) -> Tensor:
    """``(R, C)`` bool: the blocks that reach into a living head."""
    rows, cols = member.shape
    if member.name == block.output.module:
        elements = alive.repeat_interleave(cols // len(alive)).expand(rows, cols)
    else:
        elements = alive.repeat_interleave(rows // len(alive)).unsqueeze(1).expand(rows, cols)
    return member.block_sums(elements.float()) > 0
