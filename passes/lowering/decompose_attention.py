"""Spell attention out in operators that every ONNX runtime has.

    Attention(Q, K, V, mask)   ==>   Softmax(scale * Q_h K_h^T + mask) V_h, with Q_h, K_h, V_h (B, H, S, d)

``Attention`` came with opset 23; runtimes that stop below it know MatMul and Softmax, and recognise this spelling.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from compactor.passes.base import Applied, NoMatch, Refused, RewritePass, RewriteResult
from compactor.passes.graph.additive_masks import AdditiveMasks, check_mask, hide_where_false, may_hide_all
from compactor.passes.graph.matching import add_initializer, attribute, is_read, last_dim, layer_of, new_node, redirect

_SPLIT = (0, 2, 1, 3)  # (B, S, H, d) -> (B, H, S, d), and back
_SPLIT_KEYS = (0, 2, 3, 1)  # (B, S, H, d) -> (B, H, d, S)
_SWAP_KEYS = (0, 1, 3, 2)  # (B, H, S, d) -> (B, H, d, S)


@dataclasses.dataclass(frozen=True)
class DecomposeAttentionPass(RewritePass):
    """Replace each ``Attention``, 3-D or 4-D, by MatMul, Softmax and MatMul.

    Q.K and V may have different widths. A bool mask becomes an additive one, made once for all layers and left
    unexpanded; a float mask is added as it is; a causal attention gets its triangle. Left alone, with the reason: heads
    that share keys, a soft cap, a cache, exposed logits, and a mask whose axes are not known to fit.
    """

    name: ClassVar[str] = "decompose-attention"

    def call(self, model: ir.Model) -> RewriteResult:
        """Decompose every attention of the main graph."""
        masks = AdditiveMasks(model.graph, narrow=True)
        applied, refused = [], []
        for node in tuple(model.graph):
            if node.op_type != "Attention" or node.domain:
                continue
            try:
                found = _match(node)
            except NoMatch as reason:
                refused.append(Refused(layer_of(node), str(reason)))
                continue
            _rewrite(model.graph, found, masks)
            applied.append(Applied(layer_of(node), "decomposed-attention", 1))
        RemoveUnusedNodesPass()(model)
        return RewriteResult.of(model, applied, refused)


@dataclasses.dataclass(frozen=True)
class _Attention:
    """An attention that can be spelled out; ``split`` says that its operands are (B, S, H*d)."""

    node: ir.Node
    query: ir.Value
    key: ir.Value
    value: ir.Value
    mask: ir.Value | None
    heads: int
    split: bool
    scale: float
    dtype: ir.DataType


def _match(node: ir.Node) -> _Attention:
    if any(value is not None for value in node.inputs[4:]) or any(map(is_read, node.outputs[1:])):
        raise NoMatch("the attention keeps a key/value cache or exposes its logits")
    if attribute(node, "softcap", 0.0):
        raise NoMatch("the logits have a soft cap")
    query, key, value = node.inputs[:3]
    if query is None or key is None or value is None:
        raise NoMatch("an operand is missing")
    heads = int(attribute(node, "q_num_heads", 0))
    split = heads > 0
    kv_heads = int(attribute(node, "kv_num_heads", 0)) if split else _head_axis(key)
    heads = heads or _head_axis(query)
    if kv_heads != heads:
        raise NoMatch("query heads share key/value heads (grouped-query attention)")
    scale = attribute(node, "scale", None)
    if scale is None:
        scale = (last_dim(query) // heads if split else last_dim(query)) ** -0.5
    mask = node.inputs[3] if len(node.inputs) > 3 else None
    dtype = node.outputs[0].dtype
    if dtype is None:
        raise NoMatch("the type of the attention's result is not known")
    check_mask(mask, heads, dtype)
    return _Attention(node, query, key, value, mask, heads, split, float(scale), dtype)


def _head_axis(value: ir.Value) -> int:
    if value.shape is None or len(value.shape) != 4 or not isinstance(value.shape[1], int):
        raise NoMatch(f"the head count of '{value.name}' is not static")
    return value.shape[1]


def _rewrite(graph: ir.Graph, found: _Attention, masks: AdditiveMasks) -> None:
    node, nodes = found.node, list[ir.Node]()
    result = node.outputs[0]

    def emit(op_type: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        nodes.append(new_node(op_type, inputs, like=node, **attributes))
        nodes[-1].outputs[0].type = result.type
        return nodes[-1].outputs[0]

    query, key, value = found.query, found.key, found.value
    if found.split:
        shape = add_initializer(graph, f"split_{found.heads}_heads", np.array([0, 0, found.heads, -1], dtype=np.int64))
        query = emit("Transpose", emit("Reshape", query, shape), perm=_SPLIT)
        key = emit("Transpose", emit("Reshape", key, shape), perm=_SPLIT_KEYS)
        value = emit("Transpose", emit("Reshape", value, shape), perm=_SPLIT)
    else:
        key = emit("Transpose", key, perm=_SWAP_KEYS)
    scale = add_initializer(graph, "attention_scale", np.array(found.scale, dtype=found.dtype.numpy()))
    logits = emit("MatMul", emit("Mul", query, scale), key)
    if attribute(node, "is_causal", 0):
        triangle = _triangle(graph, logits, found.dtype)
        nodes += triangle
        logits = emit("Add", logits, triangle[-1].outputs[0])
    if found.mask is not None:
        logits = emit("Add", logits, masks.of(found.mask, found.dtype))
    mixed = emit("MatMul", emit("Softmax", logits, axis=-1), value)
    if found.mask is not None and may_hide_all(found.mask):
        last = add_initializer(graph, "last_axis", np.array([-1], dtype=np.int64))
        mixed = emit("Mul", mixed, emit("Unsqueeze", masks.seeing(found.mask, found.dtype), last))
    if found.split:
        merge = add_initializer(graph, "merge_heads", np.array([0, 0, -1], dtype=np.int64))
        mixed = emit("Reshape", emit("Transpose", mixed, perm=_SPLIT), merge)
    mixed.shape = result.shape
    graph.insert_before(node, nodes)
    redirect(result, mixed)
    graph.remove(node, safe=True)


def _triangle(graph: ir.Graph, logits: ir.Value, dtype: ir.DataType) -> list[ir.Node]:
    """Nodes for (S, T): 0 where query s may see key t, that is t <= s; HIDDEN_LOGIT elsewhere."""
    nodes: list[ir.Node] = []

    def emit(op_type: str, *inputs: ir.Value, dtype: ir.DataType = ir.DataType.INT64, **attributes: Any) -> ir.Value:
        nodes.append(new_node(op_type, inputs, **attributes))
        nodes[-1].outputs[0].type = ir.TensorType(dtype)
        return nodes[-1].outputs[0]

    zero, one, first, second = (
        add_initializer(graph, f"triangle_{name}", np.array(number, dtype=np.int64))
        for name, number in (("start", 0), ("step", 1), ("axis_0", [0]), ("axis_1", [1]))
    )
    lengths = [emit("Squeeze", emit("Shape", logits, start=axis, end=axis + 1), first) for axis in (2, 3)]
    queries, keys = (emit("Range", zero, length, one) for length in lengths)
    visible = emit("LessOrEqual", keys, emit("Unsqueeze", queries, second), dtype=ir.DataType.BOOL)
    return [*nodes, hide_where_false(graph, visible, dtype)]
