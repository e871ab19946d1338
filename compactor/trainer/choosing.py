"""Which blocks live at a density, by score or by norm; and how many heads and neurons a choice would leave."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compactor.trainer.following import Part
from compactor.trainer.masks import Group, highest
from compactor.trainer.structure import AttentionMatrices, Matrices
from compactor.trainer.survivors import live_heads, live_neurons

Choices = Callable[[float], tuple[list[Tensor], float]]  # of a density: what lives, by group, and the lowest score


def by_score(groups: Sequence[Group]) -> Choices:
    """The highest scores of all groups that make up a density of their weights; they are put in order once."""
    scores = torch.cat([group.scores.flatten() for group in groups])
    weights = torch.cat([group.weights.flatten() for group in groups])
    order = scores.sort(descending=True, stable=True).indices
    filled, everything = weights[order].cumsum(0), weights.sum()
    sizes = [group.scores.numel() for group in groups]

    def choose(density: float) -> tuple[list[Tensor], float]:
        within = filled <= density * everything
        kept = torch.zeros_like(within)
        kept[order] = within
        cut = float(scores[kept].min()) if bool(within.any()) else float(scores.max())
        return list(kept.split(sizes)), cut  # type: ignore[no-untyped-call]

    return choose


def by_norm(groups: Sequence[Group]) -> Choices:
    """The same part of every group: the largest norms, which become its scores; no cut is common to all."""
    for group in groups:
        group.scores.copy_(group.norms())

    def choose(density: float) -> tuple[list[Tensor], float]:
        return [highest(group.scores, round(density * group.scores.numel())) for group in groups], 0.0

    return choose


def sizes_left(
    blocks: Sequence[Matrices], groups: Sequence[Group], lives: Sequence[Tensor], features: Mapping[str, int]
) -> dict[str, int]:
    """Heads or neurons of each block that masks would leave, by the rules of the export.

    Args:
        blocks: The model's.
        groups: Scores on their matrices.
        lives: A mask for each group.
        features: Input features of linear layers, by name.

    Returns:
        By ``layers.0.attention``.
    """
    masks = {
        (member.name, member.start): (member, live)
        for group, live in zip(groups, lives, strict=True)
        for member in group.members
    }

    def alive(part: Part, *, rows: bool) -> NDArray[np.bool_]:
        found = masks.get((part.module, 0 if part.whole else part.start))
        if found is None:
            return np.ones(part.rows if rows else features[part.module], np.bool_)
        member, live = found
        return np.asarray((member.live_rows(live) if rows else member.live_cols(live)).cpu().numpy())

    sizes = {}
    for block in blocks:
        made = {part: alive(part, rows=True)[None] for part in block.inputs}
        live = {**made, block.output: alive(block.output, rows=False)[:, None]}
        found = live_heads(block, live) if isinstance(block, AttentionMatrices) else live_neurons(block, live)
        sizes[f"layers.{block.index}.{block.kind}"] = int(found.sum())
    return sizes
