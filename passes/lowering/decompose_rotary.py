"""Spell rotary embeddings out in operators that every runtime has.

    RotaryEmbedding(x, C, S, p)   ==>   x1, x2 = halves of x;  [x1 C[p] - x2 S[p], x2 C[p] + x1 S[p]]

The halves are the first and the second part of a head's rotated channels, or the even and the odd ones; channels that
are not rotated stay. Rows of the tables are gathered once for all layers that read the same.

Symbols: x (B, S, H*d), C and S (P, r/2), p (B, S).
Reference: Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021, equation 34.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from compactor.passes.base import Applied, NoMatch, Refused, RewritePass, RewriteResult
from compactor.passes.graph.matching import add_initializer, attribute, last_dim, layer_of, new_node, redirect


@dataclasses.dataclass(frozen=True)
class DecomposeRotaryPass(RewritePass):
    """Replace each 3-D ``RotaryEmbedding`` that reads tables by position.

    Left alone, with the reason: one in another form, or of unknown width.
    """

    name: ClassVar[str] = "decompose-rotary"

    def call(self, model: ir.Model) -> RewriteResult:
        """Spell out the rotary embeddings of the main graph."""
        applied, refused = [], []
        rows: dict[tuple[ir.Value, ir.Value], ir.Value] = {}
        for node in tuple(model.graph):
            if node.op_type != "RotaryEmbedding" or node.domain:
                continue
            try:
                _rewrite(model.graph, node, rows)
            except NoMatch as reason:
                refused.append(Refused(layer_of(node), str(reason)))
                continue
            applied.append(Applied(layer_of(node), "spelled-out-rotary", 1))
        if applied:
            RemoveUnusedNodesPass()(model)
        return RewriteResult.of(model, applied, refused)


def _rewrite(graph: ir.Graph, node: ir.Node, rows: dict[tuple[ir.Value, ir.Value], ir.Value]) -> None:
    heads = int(attribute(node, "num_heads", 0))
    if not heads or len(node.inputs) < 4 or node.inputs[3] is None:
        raise NoMatch("the rotary embedding is not in the 3-D form, or does not read its tables by position")
    source, result = node.inputs[0], node.outputs[0]
    assert source is not None
    width = last_dim(source) // heads
    rotated = int(attribute(node, "rotary_embedding_dim", 0)) or width
    interleaved = bool(attribute(node, "interleaved", 0))
    nodes: list[ir.Node] = []

    def numbers(*values: int) -> ir.Value:
        return add_initializer(graph, "rotary_numbers", np.array(values, dtype=np.int64))

    def emit(op_type: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        nodes.append(new_node(op_type, inputs, like=node, **attributes))
        nodes[-1].outputs[0].type = result.type
        return nodes[-1].outputs[0]

    def channels(start: int, end: int, step: int = 1) -> ir.Value:
        return emit("Slice", split, numbers(start), numbers(end), numbers(3), numbers(step))

    cosines, sines = (_rows(graph, node, index, rows) for index in (1, 2))
    split = emit("Reshape", source, numbers(0, 0, heads, width))
    half = rotated // 2
    first, second = (
        (channels(0, rotated, 2), channels(1, rotated, 2))
        if interleaved
        else (channels(0, half), channels(half, rotated))
    )
    turned = [
        emit("Sub", emit("Mul", first, cosines), emit("Mul", second, sines)),
        emit("Add", emit("Mul", second, cosines), emit("Mul", first, sines)),
    ]
    if interleaved:
        stacked = emit("Concat", *(emit("Unsqueeze", value, numbers(4)) for value in turned), axis=4)
        turned = [emit("Reshape", stacked, numbers(0, 0, heads, rotated))]
    if rotated < width:
        turned.append(channels(rotated, width))
    joined = turned[0] if len(turned) == 1 else emit("Concat", *turned, axis=3)
    merged = emit("Reshape", joined, numbers(0, 0, heads * width))
    merged.shape = result.shape
    graph.insert_before(node, nodes)
    redirect(result, merged)
    graph.remove(node, safe=True)


def _rows(graph: ir.Graph, node: ir.Node, index: int, rows: dict[tuple[ir.Value, ir.Value], ir.Value]) -> ir.Value:
    """(B, S, 1, r/2) of a table, by position."""
    table, places = node.inputs[index], node.inputs[3]
    assert table is not None and places is not None
    if (table, places) not in rows:
        gather = new_node("Gather", [table, places], axis=0)
        axis = add_initializer(graph, "rotary_numbers", np.array([2], dtype=np.int64))
        unsqueeze = new_node("Unsqueeze", [gather.outputs[0], axis])
        for each in (gather, unsqueeze):
            each.outputs[0].type = node.outputs[0].type
        graph.insert_before(node, [gather, unsqueeze])
        rows[table, places] = unsqueeze.outputs[0]
    return rows[table, places]
