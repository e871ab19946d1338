"""Remove attention heads that reach the output only as a constant.

    y = bo + sum over heads h of  softmax(s q_h k_h^T) v_h Wo[h*d:(h+1)*d, :]

A head is *dead* when none of its value channels is alive: for every channel, its column of Wv or its row of Wo is all
zero. Its columns of Wq, Wk, Wv and its rows of Wo go, and ``q_num_heads`` shrinks. A head whose Q.K is dead but whose
V is alive averages V over the visible keys: it stays.

Symbols: B batch, S sequence, D model width, H heads, d head width; weights are (in, out).
Reference: Lagunas et al., "Block Pruning For Faster Transformers", 2021; Michel, Levy and Neubig, "Are Sixteen Heads
Really Better than One?", 2019.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from compactor.passes.base import Applied, NoMatch, Refused, RewritePass, RewriteResult
from compactor.passes.graph.blocks import AttentionBlock, attention_blocks
from compactor.passes.graph.matching import Array, add_initializer, layer_of, new_node


@dataclasses.dataclass(frozen=True)
class RemoveDeadHeadsPass(RewritePass):
    """Shrink every attention block to its live heads.

    A value channel's bias counts as alive here; ``fold-value-biases`` runs first and leaves none. A mask with values
    per head keeps those of the live heads. A block without any live head is left to ``remove-empty-sublayers``. A
    block is left alone, and the reason reported, when a weight is not a constant, an inner value is used elsewhere,
    the head axis of the mask is not known, or key/value heads are shared.
    """

    name: ClassVar[str] = "remove-dead-heads"

    def call(self, model: ir.Model) -> RewriteResult:
        """Remove the dead heads of the main graph."""
        applied, refused = [], []
        for node, block in attention_blocks(model.graph):
            if isinstance(block, NoMatch):
                refused.append(Refused(layer_of(node), str(block)))
                continue
            live = block.live_heads
            if live.any() and not live.all():
                _keep_heads(model.graph, block, live)
                applied.append(Applied(block.layer, "dead-head", int((~live).sum())))
        return RewriteResult.of(model, applied, refused)


def _keep_heads(graph: ir.Graph, block: AttentionBlock, live: NDArray[np.bool_]) -> None:
    def columns(matrix: Array) -> Array:
        return matrix.reshape(*matrix.shape[:-1], block.heads, -1)[..., live, :].reshape(*matrix.shape[:-1], -1)

    for layer in (block.query, block.key, block.value):
        layer.refill(columns(layer.weight), None if layer.bias is None else columns(layer.bias))
    block.output.refill(columns(block.output.weight.T).T, block.output.bias)
    for name in ("q_num_heads", "kv_num_heads"):
        block.node.attributes[name] = ir.AttrInt64(name, int(live.sum()))
    for node in () if block.rotary is None else block.rotary.nodes:
        node.attributes["num_heads"] = ir.AttrInt64("num_heads", int(live.sum()))
        node.outputs[0].shape = None
    block.node.outputs[0].shape = None
    if block.per_head_mask:
        mask = block.node.inputs[3]
        assert mask is not None and mask.shape is not None
        axis = len(mask.shape) - 3
        indices = add_initializer(graph, f"{block.layer}.live_heads", np.flatnonzero(live))
        gather = new_node("Gather", [mask, indices], like=block.node, axis=axis)
        gather.outputs[0].type = mask.type
        gather.outputs[0].shape = ir.Shape([int(live.sum()) if i == axis else d for i, d in enumerate(mask.shape)])
        graph.insert_before(block.node, gather)
        block.node.replace_input_with(3, gather.outputs[0])
