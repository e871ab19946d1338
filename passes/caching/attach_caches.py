"""Give a decoder its key/value caches: from one compact graph, the graph of the first step and that of every next one.

    self-attention    Attention(q, k, v, causal)  ==>  first: Attention(q, k, v; causal) -> y, present
                                                       next:  Attention(q, k, v, past)   -> y, present
    cross-attention   Attention(q, K, V, mask)    ==>  first: the same -> y, present      K, V of the encoder's states,
                                                       next:  Attention(q, past, mask)    computed once a sequence

The graph that this pass takes is a decoder without a cache, with its time written out as two inputs: ``past_length``
(), the tokens that are cached, and ``causal_mask`` (1, 1, S, S). Removal happened before, on that graph: cached rows
were made by the same projections, so whatever holds for new keys and values holds for cached ones, and both graphs have
the heads and widths of one decision.

Caches are (B, H, T, d), each with the head count and the widths of its own layer, named as the ecosystem names them:
``past_key_values.3.decoder.key`` in, ``present.3.decoder.key`` out. A layer whose attention went has none.

Cross-attention takes fewer encoder sequences than decoder rows: G sequences for R rows serve R/G rows each (the beams
of one text), which share keys and values instead of copying them. With R = G nothing is different.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from compactor.passes.base import Applied, NoMatch, Refused, RewritePass, RewriteResult
from compactor.passes.graph.blocks import AttentionBlock, match_attention
from compactor.passes.graph.masks import ENCODER_PADDING_MASK, summarize
from compactor.passes.graph.matching import ENCODER_STATES, add_initializer, layer_of, new_node, redirect

CAUSAL_MASK = "causal_mask"
PAST_LENGTH = "past_length"
TOKENS = "input_ids"

Step = Literal["first", "next"]

_KINDS = ("decoder", "encoder")
_NUMBER = re.compile(r"layers\.(\d+)\.")
_HEADS_SECOND = (0, 2, 1, 3)  # (B, S, H, d) <-> (B, H, S, d)


@dataclasses.dataclass(frozen=True)
class AttachCachesPass(RewritePass):
    """Make the graph of one step of generation. All of it or nothing: half a cache is a wrong decoder.

    Refused, with the reason: an attention that is not canonical, a self-attention whose mask is more than causal (such
    as a position bias, which depends on how much is cached), a cross-attention whose mask is more than padding, heads
    that are turned, normalised or shared, and a decoder that has no self-attention left, whose caches would not say
    how many tokens there were.

    Attributes:
        step: ``first``: any number of tokens (B, S), caches come out. ``next``: one token (B, 1), caches in and out;
            those of cross-attention go in only.
        explicit: Spell the caches out with ``Concat`` around the 4-D ``Attention``, for runtimes without the 3-D one.
    """

    name: ClassVar[str] = "attach-caches"
    step: Step = "first"
    explicit: bool = False

    def call(self, model: ir.Model) -> RewriteResult:
        """Rewrite the main graph."""
        plans: list[_Plan] = []
        refused = []
        for node in model.graph:
            if node.op_type == "Attention" and not node.domain:
                try:
                    plans.append(_match(node, plans))
                except NoMatch as reason:
                    refused.append(Refused(layer_of(node), str(reason)))
        try:
            time = _match_time(model.graph, plans)
        except NoMatch as reason:
            refused.append(Refused("graph", str(reason)))
        if refused:
            return RewriteResult.of(model, (), refused)
        rows = _Rows(model.graph)
        for plan in plans:
            attach = _attach_self if plan.kind == "decoder" else _attach_cross
            attach(model.graph, plan, rows, self)
        _set_time(model.graph, time, plans, self.step)
        RemoveUnusedNodesPass()(model)
        _drop_inputs(model.graph, self.step)
        return RewriteResult.of(model, [Applied(layer_of(plan.node), "attached-cache", 1) for plan in plans])


@dataclasses.dataclass
class _Plan:
    """One attention: ``kind`` is the ecosystem's word for its cache, ``decoder`` (self) or ``encoder`` (cross)."""

    node: ir.Node
    block: AttentionBlock
    kind: str
    number: int
    past: tuple[ir.Value, ir.Value] | None = None

    @property
    def widths(self) -> tuple[int, int]:
        """Of one head: of its keys, of its values."""
        heads = self.block.heads
        return self.block.key.weight.shape[1] // heads, self.block.value.weight.shape[1] // heads

    def cache(self, prefix: str) -> tuple[str, str]:
        """Names of its key and value cache."""
        return f"{prefix}.{self.number}.{self.kind}.key", f"{prefix}.{self.number}.{self.kind}.value"


def _match(node: ir.Node, others: Sequence[_Plan]) -> _Plan:
    plan = _match_kind(node)
    if any((other.kind, other.number) == (plan.kind, plan.number) for other in others):
        raise NoMatch("another attention of this layer has the same cache")
    return plan


def _match_kind(node: ir.Node) -> _Plan:
    block = match_attention(node)
    number = _NUMBER.search(block.layer)
    if number is None:
        raise NoMatch("the attention has no layer number: run label-layers first")
    if block.rotary is not None or block.normed or block.terms or block.shared:
        raise NoMatch("a cache of turned, normalised or shared heads, or of logits of distances, is not supported")
    mask = node.inputs[3] if len(node.inputs) > 3 else None
    if block.key.input is not block.value.input:
        raise NoMatch("keys and values are made of different states")
    if block.key.input.name == ENCODER_STATES and block.key.input.is_graph_input():
        summary = summarize(mask) if mask is not None else None
        if mask is not None and (summary is None or not summary.is_padding_mask):
            raise NoMatch("the mask of the cross-attention is more than padding")
        return _Plan(node, block, "encoder", int(number[1]))
    if mask is None or not mask.is_graph_input() or mask.name != CAUSAL_MASK:
        raise NoMatch("the mask of the self-attention is more than causal, such as a position bias")
    return _Plan(node, block, "decoder", int(number[1]))


def _match_time(graph: ir.Graph, plans: Sequence[_Plan]) -> list[ir.Node]:
    """The ``Shape`` nodes that read the causal mask. Raises NoMatch where it is read in another way."""
    if not any(plan.kind == "decoder" for plan in plans):
        raise NoMatch("no self-attention is left in the decoder, so that no cache says how many tokens there were")
    mask = _input(graph, CAUSAL_MASK)
    attentions = {plan.node for plan in plans}
    shapes = []
    for usage in mask.uses():
        if usage.node in attentions and usage.idx == 3:
            continue
        if usage.node.op_type != "Shape":
            raise NoMatch(f"'{usage.node.op_type}' reads the causal mask, so that it is more than that")
        shapes.append(usage.node)
    return shapes


class _Rows:
    """Rows and lengths at run time, each computed once a graph and placed at its beginning."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph, self._first = graph, graph[0]
        self._made: dict[str, ir.Value] = {}

    def number(self, name: str, value: int) -> ir.Value:
        """A constant (1,)."""
        if name not in self._made:
            self._made[name] = add_initializer(self._graph, name, np.array([value], dtype=np.int64))
        return self._made[name]

    def emit(self, name: str, op_type: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        """The int64 result of a node that is made on first use."""
        if name not in self._made:
            node = new_node(op_type, inputs, **attributes)
            node.outputs[0].type = ir.TensorType(ir.DataType.INT64)
            self._graph.insert_before(self._first, node)
            self._made[name] = node.outputs[0]
        return self._made[name]

    @property
    def decoder(self) -> ir.Value:
        """R: rows that the decoder works on, (1,)."""
        return self.emit("rows", "Shape", _input(self._graph, TOKENS), start=0, end=1)

    @property
    def encoder(self) -> ir.Value:
        """G: sequences of the encoder, (1,)."""
        return self.emit("sequences", "Shape", _input(self._graph, ENCODER_PADDING_MASK), start=0, end=1)

    @property
    def queries(self) -> ir.Value:
        """Queries of all rows that share a sequence, R S / G, (1,)."""
        length = self.emit("length", "Shape", _input(self._graph, TOKENS), start=1, end=2)
        tokens = self.emit("tokens", "Mul", self.decoder, length)
        return self.emit("queries", "Div", tokens, self.encoder)

    def shape(self, *parts: ir.Value) -> ir.Value:
        """Their concatenation."""
        name = "shape:" + ",".join(str(part.name or id(part)) for part in parts)
        return self.emit(name, "Concat", *parts, axis=0)

    def mask(self) -> ir.Value:
        """(G, 1, queries, keys) bool: True where the encoder's token is real."""
        if "mask" not in self._made:
            source = _input(self._graph, ENCODER_PADDING_MASK)
            assert source.shape is not None
            visible = new_node("Cast", [source], to=ir.DataType.BOOL.value)
            axes = add_initializer(self._graph, "cross_mask_axes", np.array([1, 2], dtype=np.int64))
            keys = new_node("Unsqueeze", [visible.outputs[0], axes])
            one = self.number("one", 1)
            mask = new_node("Expand", [keys.outputs[0], self.shape(one, one, self.queries, one)])
            batch, length = source.shape[0], source.shape[1]
            for node, shape in (
                (visible, [batch, length]),
                (keys, [batch, 1, 1, length]),
                (mask, [batch, 1, "queries", length]),
            ):
                node.outputs[0].type, node.outputs[0].shape = ir.TensorType(ir.DataType.BOOL), ir.Shape(shape)
            mask.outputs[0].name = "cross_mask"
            self._graph.insert_before(self._first, [visible, keys, mask])
            self._made["mask"] = mask.outputs[0]
        return self._made["mask"]


@dataclasses.dataclass
class _Writer:
    """Nodes for one attention, put where it was."""

    graph: ir.Graph
    plan: _Plan
    rows: _Rows
    nodes: list[ir.Node] = dataclasses.field(default_factory=list)

    def emit(self, op_type: str, *inputs: ir.Value | None, outputs: int = 1, **attributes: Any) -> ir.Node:
        """A node of the attention's float type."""
        node = new_node(op_type, inputs, like=self.plan.node, outputs=outputs, **attributes)
        for value in node.outputs:
            value.type = self.plan.node.outputs[0].type
        self.nodes.append(node)
        return node

    def split(self, value: ir.Value, rows: ir.Value, width: int) -> ir.Value:
        """(..., H*d) as (rows, H, length, d)."""
        heads = self.plan.block.heads
        shape = self.rows.shape(
            rows,
            self.rows.number("rest", -1),
            self.rows.number(f"heads_{heads}", heads),
            self.rows.number(f"width_{width}", width),
        )
        split = self.emit("Reshape", value, shape).outputs[0]
        turned = self.emit("Transpose", split, perm=_HEADS_SECOND).outputs[0]
        turned.shape = ir.Shape([None, heads, None, width])
        return turned

    def merge(self, value: ir.Value, rows: ir.Value, width: int) -> ir.Value:
        """(sequences, H, queries, d) as (rows, length, H*d)."""
        turned = self.emit("Transpose", value, perm=_HEADS_SECOND).outputs[0]
        return self.flat(turned, rows, self.plan.block.heads * width)

    def flat(self, value: ir.Value, rows: ir.Value, width: int) -> ir.Value:
        """As (rows, length, width)."""
        shape = self.rows.shape(rows, self.rows.number("rest", -1), self.rows.number(f"width_{width}", width))
        return self.emit("Reshape", value, shape).outputs[0]

    def finish(self, result: ir.Value, presents: Sequence[ir.Value]) -> None:
        """Replace the attention by the nodes; expose the caches."""
        old = self.plan.node.outputs[0]
        result.shape = old.shape
        self.graph.insert_before(self.plan.node, self.nodes)
        redirect(old, result)
        self.graph.remove(self.plan.node, safe=True)
        self.plan.node = self.nodes[-1]
        length = "total_decoder_sequence_length" if self.plan.past else "decoder_sequence_length"
        if not presents:
            return
        for value, name, width in zip(presents, self.plan.cache("present"), self.plan.widths, strict=True):
            is_self = self.plan.kind == "decoder"
            value.name = name
            value.type = old.type
            value.shape = ir.Shape(
                [
                    "batch_size" if is_self else "encoder_batch_size",
                    self.plan.block.heads,
                    length if is_self else "encoder_sequence_length",
                    width,
                ]
            )
            self.graph.outputs.append(value)


def _attach_self(graph: ir.Graph, plan: _Plan, rows: _Rows, options: AttachCachesPass) -> None:
    writer, heads = _Writer(graph, plan, rows), plan.block.heads
    query, key, value = plan.block.query.output, plan.block.key.output, plan.block.value.output
    if options.step == "next":
        plan.past = _add_past(graph, plan, "batch_size", "past_decoder_sequence_length")
    causal = {"is_causal": 1} if options.step == "first" else {}
    scale = plan.block.scale
    if not options.explicit:
        operands = [query, key, value, *((None, *plan.past) if plan.past else ())]
        node = writer.emit(
            "Attention", *operands, outputs=3, q_num_heads=heads, kv_num_heads=heads, scale=scale, **causal
        )
        writer.finish(node.outputs[0], node.outputs[1:])
        return
    qk_width, v_width = plan.widths
    queries = writer.split(query, rows.decoder, qk_width)
    present = [writer.split(key, rows.decoder, qk_width), writer.split(value, rows.decoder, v_width)]
    if plan.past:
        present = [
            writer.emit("Concat", past, new, axis=2).outputs[0] for past, new in zip(plan.past, present, strict=True)
        ]
        for joined, width in zip(present, plan.widths, strict=True):
            joined.shape = ir.Shape([None, heads, None, width])
    mixed = writer.emit("Attention", queries, *present, scale=scale, **causal).outputs[0]
    mixed.shape = ir.Shape([None, heads, None, v_width])
    writer.finish(writer.merge(mixed, rows.decoder, v_width), present)


def _attach_cross(graph: ir.Graph, plan: _Plan, rows: _Rows, options: AttachCachesPass) -> None:
    writer, heads = _Writer(graph, plan, rows), plan.block.heads
    qk_width, v_width = plan.widths
    mask = rows.mask() if len(plan.node.inputs) > 3 and plan.node.inputs[3] is not None else None
    query, scale = plan.block.query.output, plan.block.scale
    if options.step == "first" and not options.explicit:
        grouped = writer.flat(query, rows.encoder, heads * qk_width)
        operands = [grouped, plan.block.key.output, plan.block.value.output, mask]
        node = writer.emit("Attention", *operands, outputs=3, q_num_heads=heads, kv_num_heads=heads, scale=scale)
        writer.finish(writer.flat(node.outputs[0], rows.decoder, heads * v_width), node.outputs[1:])
        return
    present: tuple[ir.Value, ...] = ()
    if options.step == "first":
        present = (
            writer.split(plan.block.key.output, rows.encoder, qk_width),
            writer.split(plan.block.value.output, rows.encoder, v_width),
        )
        keys, values = present
    else:
        plan.past = keys, values = _add_past(graph, plan, "encoder_batch_size", "encoder_sequence_length")
    grouped = writer.split(query, rows.encoder, qk_width)
    mixed = writer.emit("Attention", grouped, keys, values, *([mask] if mask is not None else []), scale=scale)
    mixed.outputs[0].shape = ir.Shape([None, heads, None, v_width])
    writer.finish(writer.merge(mixed.outputs[0], rows.decoder, v_width), present)


def _add_past(graph: ir.Graph, plan: _Plan, batch: str, length: str) -> tuple[ir.Value, ir.Value]:
    """New graph inputs for its caches."""
    added = []
    for name, width in zip(plan.cache("past_key_values"), plan.widths, strict=True):
        shape = ir.Shape([batch, plan.block.heads, length, width])
        value = ir.Value(name=name, type=plan.node.outputs[0].type, shape=shape)
        graph.inputs.append(value)
        added.append(value)
    return added[0], added[1]


def _set_time(graph: ir.Graph, shapes: Sequence[ir.Node], plans: Sequence[_Plan], step: Step) -> None:
    """Let tokens and caches say what ``causal_mask`` and ``past_length`` did."""
    tokens = _input(graph, TOKENS)
    for node in shapes:  # of (1, 1, S, S)
        length = new_node("Shape", [tokens], start=1, end=2)
        length.outputs[0].type, length.outputs[0].shape = node.outputs[0].type, node.outputs[0].shape
        graph.insert_before(node, length)
        redirect(node.outputs[0], length.outputs[0])
        graph.remove(node, safe=True)
    past_length = _input(graph, PAST_LENGTH)
    if step == "first":
        now = add_initializer(graph, "no_past", np.array(0, dtype=np.int64))
    else:
        past = next(plan.past for plan in plans if plan.kind == "decoder")
        assert past is not None
        size = new_node("Shape", [past[0]], start=2, end=3)
        scalar = new_node("Squeeze", [size.outputs[0]])
        for node, shape in ((size, [1]), (scalar, [])):
            node.outputs[0].type, node.outputs[0].shape = ir.TensorType(ir.DataType.INT64), ir.Shape(shape)
        graph.insert_before(graph[0], [size, scalar])
        now = scalar.outputs[0]
    past_length.replace_all_uses_with(now)


def _drop_inputs(graph: ir.Graph, step: Step) -> None:
    """Remove the inputs that stood for time and, where keys and values are cached, for the encoder's states."""
    gone = {CAUSAL_MASK, PAST_LENGTH, *((ENCODER_STATES,) if step == "next" else ())}
    graph.inputs[:] = [value for value in graph.inputs if value.name not in gone]
    if step == "next":
        tokens = _input(graph, TOKENS)
        assert tokens.shape is not None
        tokens.shape = ir.Shape([tokens.shape[0], 1])
    graph.outputs[:] = _in_order(graph.outputs)
    graph.inputs[:] = _in_order(graph.inputs)


def _in_order(values: Sequence[ir.Value]) -> list[ir.Value]:
    """As the ecosystem orders them: other values first, then by layer; self before cross, key before value.

    Where a layer has only one of its attentions, the n-th cache of self-attention stands beside the n-th of
    cross-attention all the same: consumers such as optimum pair them by place.
    """
    caches: dict[tuple[str, int], list[ir.Value]] = {}
    others = []
    for value in values:
        _, number, kind, *_ = [*str(value.name).split("."), "", "", ""]
        if kind in _KINDS:
            caches.setdefault((kind, int(number)), []).append(value)
        else:
            others.append(value)
    numbers = {kind: sorted(number for other, number in caches if other == kind) for kind in _KINDS}
    order = sorted(caches, key=lambda cache: (numbers[cache[0]].index(cache[1]), _KINDS.index(cache[0])))
    return others + [value for cache in order for value in caches[cache]]


def _input(graph: ir.Graph, name: str) -> ir.Value:
    return next(value for value in graph.inputs if value.name == name)
