"""Remove attention heads that reach the output only as a constant.

    y = bo + sum over heads h of  softmax(s q_h k_h^T) v_h Wo[h*d:(h+1)*d, :]

A head is *dead* when none of its value channels is alive: for every channel, its column of Wv or its row of Wo is all
zero. Its columns of Wq, Wk, Wv and its rows of Wo go, and ``q_num_heads`` shrinks. A head whose Q.K is dead but whose
V is alive averages V over the visible keys: it stays.

Where query heads share keys and values, a key/value head goes when none of its query heads lives.

Symbols: B batch, S sequence, D model width, H heads, d head width; weights are (in, out).
Reference: Lagunas et al., "Block Pruning For Faster Transformers", 2021; Michel, Levy and Neubig, "Are Sixteen Heads
Really Better than One?", 2019.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from compactor.passes.base import Applied, NoMatch, Refused, RewritePass, RewriteResult
from compactor.passes.graph.blocks import AttentionBlock, attention_blocks
from compactor.passes.graph.liveness import Columns, arrange_heads
from compactor.passes.graph.matching import Array, add_initializer, layer_of, new_node


@dataclasses.dataclass(frozen=True)
class RemoveDeadHeadsPass(RewritePass):
    """Shrink every attention block to its live heads.

    A value channel's bias counts as alive here; ``fold-value-biases`` runs first and leaves none. A mask with values
    per head keeps those of the live heads. A block without any live head is left to ``remove-empty-sublayers``. A
    block is left alone, and the reason reported, when a weight is not a constant, an inner value is used elsewhere, or
    the head axis of the mask is not known.
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
            if not live.any() or live.all():
                continue
            queries, keys = arrange_heads(
                live, block.kv_heads, width=block.query.weight.shape[1] // block.heads, inner=len(block.query.weight)
            )
            if (len(queries), len(keys)) != (block.heads, block.kv_heads):
                applied.append(Applied(block.layer, "dead-head", block.heads - len(queries)))
                _keep_heads(model.graph, block, queries, keys)
        return RewriteResult.of(model, applied, refused)


def _keep_heads(graph: ir.Graph, block: AttentionBlock, queries: Columns, keys: Columns) -> None:
    def columns(matrix: Array, heads: int, kept: Columns) -> Array:
        split = matrix.reshape(*matrix.shape[:-1], heads, -1)[..., kept, :]
        taken = np.where(kept[:, None] >= 0, split, np.zeros((), matrix.dtype))
        return np.ascontiguousarray(taken.reshape(*matrix.shape[:-1], -1))

    for layer, heads, kept in (
        (block.query, block.heads, queries),
        (block.key, block.kv_heads, keys),
        (block.value, block.kv_heads, keys),
    ):
        bias = None if layer.bias is None else columns(layer.bias, heads, kept)
        layer.refill(columns(layer.weight, heads, kept), bias)
    block.output.refill(columns(block.output.weight.T, block.heads, queries).T, block.output.bias)
    for term in block.terms:
        term.refill(columns(term.table, block.heads, queries), len(queries))
    if block.per_head_mask:
        mask = block.node.inputs[3]
        assert mask is not None and mask.shape is not None
        axis = len(mask.shape) - 3
        indices = add_initializer(graph, f"{block.layer}.live_heads", np.maximum(queries, 0))
        gather = new_node("Gather", [mask, indices], like=block.node, axis=axis)
        gather.outputs[0].type = mask.type
        gather.outputs[0].shape = ir.Shape([len(queries) if i == axis else d for i, d in enumerate(mask.shape)])
        graph.insert_before(block.node, gather)
        block.node.replace_input_with(3, gather.outputs[0])
    block.set_heads(len(queries), len(keys))
