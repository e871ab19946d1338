"""Write attention as ONNX Runtime's fused operator for CUDA.

    Attention(Q, K, V, mask)   ==>   com.microsoft::MultiHeadAttention(Q, K, V, attention_bias = mask as a float term)
    Attention(Q, K, V, past)   ==>   MultiHeadAttention(Q, K, V, past) -> result, present
    Attention(split(Q), past, mask)   ==>   MultiHeadAttention(Q, past, attention_bias)   cross-attention on its cache

The mask goes in as ``attention_bias`` and never as ``key_padding_mask``. On CUDA, the (B, S) padding mask is served by
the unfused kernel alone; with a bias the memory-efficient one stays eligible, in fp16 where the sequence length and
both head widths are multiples of 8 (the widths may differ). Without a mask, flash attention is eligible where Q.K and V
are equally wide. A mask of lengths alone keeps more kernels eligible, but cannot say left padding or holes.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from compactor.passes.base import Applied, NoMatch, Refused, RewritePass, RewriteResult
from compactor.passes.graph.additive_masks import AdditiveMasks, check_mask, may_hide_all
from compactor.passes.graph.matching import (
    MICROSOFT,
    add_initializer,
    attribute,
    is_read,
    last_dim,
    layer_of,
    new_node,
    producer,
    redirect,
    sole_consumer,
)


@dataclasses.dataclass(frozen=True)
class FuseCudaAttentionPass(RewritePass):
    """Replace each 3-D ``Attention``, and the 4-D one of a cross-attention on its cache, by ``MultiHeadAttention``.

    Left alone, with the reason: an attention that is in neither form with its scale pinned, whose query heads share
    keys, whose cached keys and values differ in width, with a soft cap or exposed logits, or with a mask that is not
    (B or 1, H or 1, S, S).
    """

    name: ClassVar[str] = "fuse-cuda-attention"

    def call(self, model: ir.Model) -> RewriteResult:
        """Fuse every attention of the main graph."""
        masks = AdditiveMasks(model.graph, narrow=False)
        applied, refused = [], []
        for node in tuple(model.graph):
            if node.op_type != "Attention" or node.domain:
                continue
            try:
                found = _match(node)
            except NoMatch as reason:
                refused.append(Refused(layer_of(node), str(reason)))
                continue
            _rewrite(model.graph, node, found, masks)
            applied.append(Applied(layer_of(node), "fused-attention", 1))
        if applied:
            model.graph.opset_imports.setdefault(MICROSOFT, 1)
            RemoveUnusedNodesPass()(model)
        return RewriteResult.of(model, applied, refused)


@dataclasses.dataclass(frozen=True)
class _Found:
    """An attention that can be fused.

    Attributes:
        operands: Q (B, S, H*d); K and V likewise, or cached ones (B, H, S, d).
        past: Cached keys and values that are joined with K and V.
        heads: H.
        result: The (B, S, H*dv) value that it computes.
        split: Of a cross-attention on its cache: the Reshape that split Q.
    """

    operands: tuple[ir.Value, ir.Value, ir.Value]
    past: tuple[ir.Value, ...]
    heads: int
    result: ir.Value
    split: ir.Node | None = None


def _match(node: ir.Node) -> _Found:
    heads = int(attribute(node, "q_num_heads", 0))
    if attribute(node, "scale", None) is None:
        raise NoMatch("the attention has no pinned scale")
    if attribute(node, "kv_num_heads", heads) != heads:
        raise NoMatch("query heads share key/value heads (grouped-query attention)")
    if attribute(node, "softcap", 0.0):
        raise NoMatch("the logits have a soft cap")
    if any(value is not None for value in node.inputs[6:]) or any(map(is_read, node.outputs[3:])):
        raise NoMatch("the attention exposes its logits or says how much of its cache counts")
    query, key, value = node.inputs[:3]
    if query is None or key is None or value is None:
        raise NoMatch("an operand is missing")
    past = tuple(each for each in node.inputs[4:6] if each is not None)
    cached = past if heads else (key, value)
    if len({last_dim(each) for each in cached}) > 1:
        raise NoMatch("cached keys and values are not equally wide: run align-widths with 'same' first")
    found = _Found((query, key, value), past, heads, node.outputs[0]) if heads else _match_cached(node, key, value)
    mask = _mask(node)
    check_mask(mask, found.heads, ir.DataType.FLOAT)
    if mask is not None and mask.shape is not None and (len(mask.shape) != 4 or 1 in mask.shape[2:]):
        raise NoMatch(f"the mask has shape {mask.shape}, not (batch, heads, queries, keys) spelled out")
    return found


def _match_cached(node: ir.Node, key: ir.Value, value: ir.Value) -> _Found:
    """Q split by Reshape and Transpose, keys and values straight from the cache, heads merged by Transpose."""
    heads = key.shape[1] if key.shape is not None and len(key.shape) == 4 else None
    if not (key.is_graph_input() and value.is_graph_input() and isinstance(heads, int)):
        raise NoMatch("the attention is not in the 3-D form, and its keys and values are no cache")
    turned = producer(node.inputs[0], "Transpose")
    split = producer(turned.inputs[0], "Reshape")
    merge = sole_consumer(node.outputs[0])
    query = split.inputs[0]
    if query is None or merge.op_type != "Transpose" or producer(split.inputs[1], "Concat").inputs[0] is None:
        raise NoMatch("the heads are not split and merged by Reshape and Transpose")
    return _Found((query, key, value), (), heads, merge.outputs[0], split)


def _mask(node: ir.Node) -> ir.Value | None:
    return node.inputs[3] if len(node.inputs) > 3 else None


def _rewrite(graph: ir.Graph, node: ir.Node, found: _Found, masks: AdditiveMasks) -> None:
    query, key, value = found.operands
    nodes: list[ir.Node] = []
    if found.split is not None:  # rows of one text side by side: (G, R S / G, H*d)
        shape = producer(found.split.inputs[1], "Concat")
        width = last_dim(query)
        flat = add_initializer(graph, f"width_{width}", np.array([width], dtype=np.int64))
        sizes = new_node("Concat", [*shape.inputs[:2], flat], like=node, axis=0)
        sizes.outputs[0].type = ir.TensorType(ir.DataType.INT64)
        grouped = new_node("Reshape", [query, sizes.outputs[0]], like=node)
        grouped.outputs[0].type = query.type
        nodes, query = [sizes, grouped], grouped.outputs[0]
    mask = _mask(node)
    bias = None if mask is None else masks.of(mask, ir.DataType.FLOAT)
    more = (None, None, bias, *found.past)
    while more and more[-1] is None:
        more = more[:-1]
    fused = new_node(
        "MultiHeadAttention",
        [query, key, value, *more],
        like=node,
        domain=MICROSOFT,
        outputs=max(len(node.outputs), 1),
        num_heads=found.heads,
        scale=float(attribute(node, "scale", 0.0)),
        **({"unidirectional": 1} if attribute(node, "is_causal", 0) else {}),
    )
    fused.name = node.name
    fused.outputs[0].type, fused.outputs[0].shape = found.result.type, found.result.shape
    graph.insert_before(node, [*nodes, fused])
    for old, new in zip(node.outputs[1:], fused.outputs[1:], strict=True):
        new.type, new.shape = old.type, old.shape
        redirect(old, new)
    redirect(found.result, fused.outputs[0])
    if mask is not None and may_hide_all(mask):
        _zero_blind_queries(graph, fused, mask, masks)
    if found.split is None:
        graph.remove(node, safe=True)


def _zero_blind_queries(graph: ir.Graph, fused: ir.Node, mask: ir.Value, masks: AdditiveMasks) -> None:
    """Give queries that see no key zeros, as a bool mask does: (B, S, H*dv) times (B or 1, S, 1)."""
    result = fused.outputs[0]
    readers = list(result.uses())
    rows = new_node("Transpose", [masks.seeing(mask, ir.DataType.FLOAT)], like=fused, perm=(0, 2, 1))
    kept = new_node("Mul", [result, rows.outputs[0]], like=fused)
    for node in (rows, kept):
        node.outputs[0].type = result.type
    kept.outputs[0].shape = result.shape
    graph.insert_after(fused, [rows, kept])
    for usage in readers:
        usage.node.replace_input_with(usage.idx, kept.outputs[0])
