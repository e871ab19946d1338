"""Which heads and neurons are alive, as an export would judge them (``passes.graph.liveness``)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compactor.passes.graph.liveness import head_liveness, neuron_liveness
from compactor.trainer.following import Part
from compactor.trainer.structure import AttentionMatrices, FeedForwardMatrices, Matrices

Live = Mapping[Part, NDArray[np.bool_]]


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
    heads, neurons = {}, {}
    for block in blocks:
        live = {part: _nonzero(linears[part.module], part) for part in block.matrices}
        if isinstance(block, AttentionMatrices):
            heads[block.output.name] = torch.from_numpy(live_heads(block, live).copy())
        else:
            neurons[block.output.name] = torch.from_numpy(live_neurons(block, live))
    return Survivors(heads, neurons)


def live_heads(block: AttentionMatrices, live: Live) -> NDArray[np.bool_]:
    """``(H,)`` bool: heads of which a value channel is made and read; what they look at does not count.

    Args:
        block: The attention.
        live: ``(in, out)`` bool of each of its matrices: where it is not zero.
    """
    return head_liveness(
        live[block.query],
        None,
        live[block.key],
        live[block.value],
        live[block.output],
        heads=block.heads,
        kv_heads=block.kv_heads,
    ).heads


def live_neurons(block: FeedForwardMatrices, live: Live) -> NDArray[np.bool_]:
    """``(N,)`` bool: neurons that are driven, by either of two matrices where one is the other's gate, and read."""
    return neuron_liveness([live[part] for part in block.inputs], live[block.output])


def _nonzero(module: nn.Linear, part: Part) -> NDArray[np.bool_]:
    mask: NDArray[np.bool_] = (module.weight.detach()[part.start : part.stop] != 0).T.cpu().numpy()
    return mask
