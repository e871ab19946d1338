"""Bring attention into the canonical 3-D form.

    Reshape, Transpose (x3) -> Attention (4-D) -> Transpose, Reshape   ==>   Attention (3-D; q_num_heads, scale)
    Reshape, Transpose [-> c * ] -> RotaryEmbedding (4-D)              ==>   RotaryEmbedding (3-D; num_heads), c * scale
    RMSNormalization (4-D) of each head                                ==>   HeadRMSNormalization (3-D; num_heads)
    Unsqueeze, Expand, Reshape of keys and values for their group      ==>   kv_num_heads

In the 3-D form the head count is one attribute and everything else is the width of a matrix. The scale is pinned to
the original 1/sqrt(d), so that later passes may narrow heads without moving the logits; a number that queries or keys
are multiplied by on their way joins it.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from compactor.passes.base import Applied, NoMatch, Refused, RewritePass, RewriteResult
from compactor.passes.graph.heads import (
    HEAD_NORMS,
    SWAP,
    SplitHeads,
    before_repeats,
    normed_heads,
    without_factors,
)
from compactor.passes.graph.matching import (
    CANONICAL,
    attribute,
    new_node,
    redirect,
    same_size,
    sole_consumer,
)


@dataclasses.dataclass(frozen=True)
class _Wrapped:
    """The operands of a 4-D attention, the 3-D value that it becomes, and its scale."""

    operands: tuple[SplitHeads, SplitHeads, SplitHeads]
    output: ir.Value
    scale: float


@dataclasses.dataclass(frozen=True)
class NormalizeAttentionPass(RewritePass):
    """Replace each 4-D ``Attention`` between Reshape and Transpose by the 3-D form.

    Left alone, with the reason: an attention whose operands are not heads split from one matrix by Reshape and
    Transpose (a rotary embedding with positions and a factor may be between), whose result is not merged back the same
    way, whose head size is not static, or that has or exposes a cache, or exposes its logits.
    """

    name: ClassVar[str] = "normalize-attention"

    def call(self, model: ir.Model) -> RewriteResult:
        """Normalise every attention of the main graph."""
        applied, refused = [], []
        for node in tuple(model.graph):
            if node.op_type != "Attention" or node.domain or attribute(node, "q_num_heads", 0):
                continue
            try:
                found = _match(node)
            except NoMatch as reason:
                refused.append(Refused(node.name or "Attention", str(reason)))
                continue
            _rewrite(model.graph, node, found)
            applied.append(Applied("graph", "normalized-attention", 1))
        RemoveUnusedNodesPass()(model)  # or the blocks' inner values would seem to have other readers
        return RewriteResult.of(model, applied, refused)


def _match(node: ir.Node) -> _Wrapped:
    if len(node.inputs) > 4 and any(v is not None for v in node.inputs[4:]):
        raise NoMatch("the attention has a key/value cache")
    if any(value.uses() or value.is_graph_output() for value in node.outputs[1:]):
        raise NoMatch("the attention exposes its cache or its logits")
    query, key = _rotated(node.inputs[0]), _rotated(node.inputs[1], repeated=True)
    value = normed_heads(before_repeats(node.inputs[2]))
    if value.factor != 1:
        raise NoMatch("the values are multiplied by a number")
    if key.heads != value.heads or query.heads % key.heads:
        raise NoMatch(f"{query.heads} query heads, {key.heads} key heads and {value.heads} value heads")
    transpose = sole_consumer(node.outputs[0])
    if transpose.op_type == "Reshape" and _keeps_shape(transpose):
        transpose = sole_consumer(transpose.outputs[0])
    if transpose.op_type != "Transpose" or tuple(attribute(transpose, "perm", ())) != SWAP:
        raise NoMatch("the heads are not merged by a Transpose")
    reshape = sole_consumer(transpose.outputs[0])
    if reshape.op_type != "Reshape":
        raise NoMatch("the heads are not merged by a Reshape")
    merged = reshape.outputs[0]
    if merged.shape is None or len(merged.shape) != 3 or merged.shape[-1] != query.heads * value.width:
        raise NoMatch(f"the merged heads have shape {merged.shape}")
    stated = attribute(node, "scale", None)
    scale = query.width**-0.5 if stated is None else float(stated)
    return _Wrapped((query, key, value), merged, scale * query.factor * key.factor)


def _keeps_shape(reshape: ir.Node) -> bool:
    """Whether a Reshape is known to leave all axes as they are."""
    before = reshape.inputs[0].shape if reshape.inputs[0] is not None else None
    after = reshape.outputs[0].shape
    return before is not None and after is not None and len(before) == len(after) and all(map(same_size, before, after))


def _rotated(value: ir.Value | None, *, repeated: bool = False) -> SplitHeads:
    """An operand behind a rotary embedding, factors and a norm of each head, or not, of heads that may be repeated."""
    value, outer = without_factors(value)
    value, inner = without_factors(before_repeats(value)) if repeated else (value, 1.0)
    rotary = value.producer() if value is not None else None
    if rotary is None or rotary.op_type != "RotaryEmbedding" or rotary.domain:
        found, rotary = normed_heads(value), None
    elif len(rotary.inputs) < 4 or rotary.inputs[3] is None:
        raise NoMatch("the rotary embedding does not read its tables by position")
    else:
        found = normed_heads(rotary.inputs[0])
    return dataclasses.replace(found, rotary=rotary, factor=found.factor * outer * inner)


def _rewrite(graph: ir.Graph, node: ir.Node, found: _Wrapped) -> None:
    causal = int(attribute(node, "is_causal", 0))
    softcap = float(attribute(node, "softcap", 0.0))
    options: dict[str, Any] = {
        "q_num_heads": found.operands[0].heads,
        "kv_num_heads": found.operands[1].heads,
        "scale": found.scale,
        "is_causal": causal,
        "softcap": softcap,
    }
    given = {name: value for name, value in options.items() if value}
    sources = [_in_rows(graph, operand) for operand in found.operands]
    attention = new_node("Attention", [*sources, *node.inputs[3:4]], **given)
    attention.name = node.name
    attention.outputs[0].type = found.output.type
    attention.outputs[0].shape = found.output.shape
    graph.insert_after(node, attention)
    redirect(found.output, attention.outputs[0])


def _in_rows(graph: ir.Graph, operand: SplitHeads) -> ir.Value:
    """The 3-D value that the attention reads."""
    value = operand.source
    if operand.norm is not None:
        node = new_node(
            HEAD_NORMS[operand.norm.op_type],
            [value, *operand.norm.inputs[1:]],
            domain=CANONICAL,
            num_heads=operand.heads,
            epsilon=float(attribute(operand.norm, "epsilon", 1e-5)),
        )
        graph.opset_imports.setdefault(CANONICAL, 1)
        graph.insert_after(operand.norm, node)
        value = node.outputs[0]
    if operand.rotary is not None:
        given = {name: attribute(operand.rotary, name, 0) for name in ("interleaved", "rotary_embedding_dim")}
        options = {name: number for name, number in given.items() if number}
        node = new_node("RotaryEmbedding", [value, *operand.rotary.inputs[1:]], num_heads=operand.heads, **options)
        graph.insert_after(operand.rotary, node)
        value = node.outputs[0]
    if value is not operand.source:
        for made in (value, *(v for v in value.producer().inputs[:1] if v is not None)):  # type: ignore[union-attr]
            made.type, made.shape = operand.source.type, operand.source.shape
    return value
