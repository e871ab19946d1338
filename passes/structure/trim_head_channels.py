"""Narrow the heads of a layer to the channels that matter.

    q_h . k_h = sum over channels c of q_hc k_hc        a channel with q_hc = 0 for every input, or k_hc constant,
                                                        moves no softmax: drop it, keep the original scale
    p_h v_h Wo_h = sum over channels c of (p_h v_hc) Wo_hc    a channel with Wv column or Wo row zero is dropped

Heads may keep different widths; the layer uses its widest head's and pads the others with zero columns, which is
exact. Q.K and V widths are independent. A head left with no Q.K channel keeps one of zeros (uniform attention).
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from compactor.passes.base import Applied, NoMatch, Refused, RewritePass, RewriteResult
from compactor.passes.graph.blocks import attention_blocks
from compactor.passes.graph.matching import Array, Linear, layer_of


@dataclasses.dataclass(frozen=True)
class TrimHeadChannelsPass(RewritePass):
    """Shrink Q.K and V of every attention block to the widest live head.

    A block is left alone, with the reason, where ``remove-dead-heads`` would leave it alone; so is a side that is
    already as narrow as it can be, and V while it still has a bias (run ``fold-value-biases`` first).
    """

    name: ClassVar[str] = "trim-head-channels"

    def call(self, model: ir.Model) -> RewriteResult:
        """Trim the heads of the main graph."""
        applied, refused = [], []
        for node, block in attention_blocks(model.graph):
            if isinstance(block, NoMatch):
                refused.append(Refused(layer_of(node), str(block)))
                continue
            live = block.liveness
            if not live.heads.any():
                continue
            qk_width, v_width = max(live.qk_width, 1), max(live.v_width, 1)
            removed_qk, removed_v = live.qk.shape[1] - qk_width, live.v.shape[1] - v_width
            if removed_qk > 0:
                index = channel_index(live.qk & live.heads[:, None], qk_width)
                _narrow_columns(block.query, index)
                _narrow_columns(block.key, index)
                applied.append(Applied(block.layer, "dead-qk-channel", removed_qk * block.heads))
            if removed_v > 0 and block.value.bias is not None:
                refused.append(Refused(block.layer, "the value bias is not folded"))
            elif removed_v > 0:
                index = channel_index(live.v, v_width)
                _narrow_columns(block.value, index)
                block.output.refill(_take(block.output.weight.T, index).T, block.output.bias)
                block.node.outputs[0].shape = None
                applied.append(Applied(block.layer, "dead-v-channel", removed_v * block.heads))
        return RewriteResult.of(model, applied, refused)


def channel_index(live: NDArray[np.bool_], width: int) -> NDArray[np.int64]:
    """For each head, ``width`` flat column numbers of its live channels, padded with -1 (a zero column).

    Args:
        live: ``(H, d)`` bool.
        width: At least the live channels of any head.

    Returns:
        ``(H*width,)``.
    """
    heads, size = live.shape
    index = np.full((heads, width), -1, dtype=np.int64)
    for head in range(heads):
        channels = np.flatnonzero(live[head])
        index[head, : len(channels)] = head * size + channels
    return index.reshape(-1)


def _take(matrix: Array, index: NDArray[np.int64]) -> Array:
    return np.where(index >= 0, matrix[..., index], np.zeros((), matrix.dtype))


def _narrow_columns(layer: Linear, index: NDArray[np.int64]) -> None:
    layer.refill(_take(layer.weight, index), None if layer.bias is None else _take(layer.bias, index))
