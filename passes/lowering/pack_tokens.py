"""Token packing: run everything but attention on real tokens only.

    (B, S, W) with padding  --pack-->  (T, W) real tokens  --token-wise operators-->  (T, W)  --spread-->  (B, S, W)

Every token-wise operator (projections, feed-forward, normalisation, residuals) works on a (T, W) matrix of the T real
tokens. Only around ``Attention`` are Q, K and V spread back to (B, S, W) by one ``Gather`` each, and its result packed
again. Padding then costs attention scores and nothing else, and stays out of dynamic quantization's ranges.

What padded positions hold:
* inside, a padded row is a copy of an earlier kept row of the same example; as a key it is hidden by the mask, as a
  query its result is dropped;
* where a padded query weighs all keys alike (DeBERTa), padded ones too, padded rows are copies of the example's first:
  it counts where it is padded itself, and then all padded rows are equal, because all are 0 at the start;
* position 0 of each example is always kept, real or not, so that models which read it (``[CLS]``) are exact under
  left padding too, and no batch is empty;
* in a (B, S, ...) graph output, padded positions hold ``fill`` (per output), so never another example's values.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from compactor.passes.base import Applied, NoMatch, Refused, RewritePass, RewriteResult
from compactor.passes.graph.masks import (
    PADDING_MASK,
    hides_all_from_padding,
    hides_padding,
    weighs_hidden_evenly,
    zeroes_padding,
)
from compactor.passes.graph.matching import add_initializer, attribute, constant, new_node, scalar
from compactor.passes.graph.tokenwise import BY_POSITION, SPREAD, token_wise_nodes

FILL_LOGITS = float(np.finfo(np.float32).min / 2)  # below every logit; the sum of two is still finite


@dataclasses.dataclass(frozen=True)
class PackTokensPass(RewritePass):
    """Make the graph padding-free. Needs current value shapes: run shape inference first.

    The whole graph is left alone, with the reason, when it has no ``attention_mask`` input, when an attention's mask
    is not proven to hide padding, or when an operator other than attention mixes positions (reading position 0,
    splitting the last axis on the way to an output, or whatever comes behind a product with the padding mask, is fine).

    Attributes:
        fill: What padded positions of each graph output hold; 0 where it is not named.
    """

    name: ClassVar[str] = "pack-tokens"
    fill: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def call(self, model: ir.Model) -> RewriteResult:
        """Pack the main graph."""
        try:
            plan = _plan(model.graph)
        except NoMatch as reason:
            return RewriteResult.of(model, (), (Refused("graph", str(reason)),))
        packer = _Packer(model.graph, plan, self.fill)
        packer.rewrite()
        RemoveUnusedNodesPass()(model)
        return RewriteResult.of(
            model,
            (
                Applied("graph", "packed-operator", len(plan.region)),
                Applied("graph", "spread-attention", len(plan.attentions)),
            ),
        )


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What to pack: the padding mask, the attention nodes, the token-wise nodes, and the values at the border."""

    mask: ir.Value
    attentions: tuple[ir.Node, ...]
    region: frozenset[ir.Node]
    entries: Mapping[ir.Value, int]  # (B, S, W) values computed outside and read inside, with W
    exits: tuple[ir.Value, ...]  # (T, W) values computed inside and read outside
    even: bool  # whether padded queries weigh all keys alike, so that all padded rows count where the first is one


def _plan(graph: ir.Graph) -> _Plan:
    mask = next((value for value in graph.inputs if value.name == PADDING_MASK), None)
    if mask is None:
        raise NoMatch(f"the graph has no input '{PADDING_MASK}'")
    attentions = tuple(node for node in graph if node.op_type == "Attention" and node.domain == "")
    for node in attentions:
        if not attribute(node, "q_num_heads", 0):
            raise NoMatch("an attention is not in the 3-D form")
        if len(node.inputs) < 4 or not hides_padding(node.inputs[3]):
            raise NoMatch(f"the mask of '{node.name}' is not proven to hide padding")
    token_wise = token_wise_nodes(graph, mask)
    region = _around_attention(graph, attentions, token_wise)
    if not region:
        raise NoMatch("no token-wise operator stands beside an attention")
    for node in attentions:  # inside, the result of a padded query is a copy of another's
        value = node.outputs[0]
        if value.is_graph_output() or any(usage.node not in region for usage in value.uses()):
            raise NoMatch(f"the result of '{node.name}' is read by more than token-wise operators")
    entries = {
        value: _width(value)
        for node in graph
        if node in region
        for value in node.inputs
        if value is not None and constant(value) is None and value.producer() not in region
    }
    exits = []
    for node in graph:
        if node not in region:
            continue
        for value in node.outputs:
            outside = [usage for usage in value.uses() if usage.node not in region]
            if outside or value.is_graph_output():
                exits.append(value)
                _check_readers(value, region)
    masks = [node.inputs[3] for node in attentions]
    even = any(map(weighs_hidden_evenly, masks))
    if even and not (all(map(_is_zeroed, entries)) and all(map(hides_all_from_padding, masks))):
        raise NoMatch("a padded query weighs all keys alike, and the padded ones are not equal")
    return _Plan(mask, attentions, frozenset(region), entries, tuple(exits), even)


def _is_zeroed(value: ir.Value) -> bool:
    """Whether a value that the region reads is 0 where padded, or the result of an attention."""
    node = value.producer()
    return node is not None and (node.op_type in SPREAD or zeroes_padding(node))


def _width(value: ir.Value) -> int:
    """W of a (B, S, W) value: its static shape, or the rows of a weight that multiplies it. Raises NoMatch."""
    if value.shape is not None and isinstance(value.shape[-1], int):
        return value.shape[-1]
    for usage in value.uses():
        weight = constant(usage.node.inputs[1]) if usage.node.op_type == "MatMul" else None
        if weight is not None and usage.idx == 0:
            return int(weight.shape[0])
    raise NoMatch(f"the width of '{value.name}' is not known")


def _around_attention(graph: ir.Graph, attentions: tuple[ir.Node, ...], token_wise: set[ir.Node]) -> set[ir.Node]:
    """The token-wise nodes connected to an attention through token-wise nodes, less those better left outside."""
    region: set[ir.Node] = set()
    borders = [node for node in graph if node in attentions or node.op_type in SPREAD]
    pending = [neighbour for node in borders for neighbour in _neighbours(node) if neighbour in token_wise]
    while pending:
        node = pending.pop()
        if node is None or node in region:
            continue
        region.add(node)
        pending.extend(neighbour for neighbour in _neighbours(node) if neighbour in token_wise)
    for node in graph:  # an embedding sum at the front would need one packing per term: pack its result instead
        if node in region:
            operands = [v for v in node.inputs if v is not None and constant(v) is None]
            if len(operands) > 1 and all(v.producer() not in region for v in operands):
                attention_reads = any(v.producer() in attentions for v in operands)
                if not attention_reads:
                    region.discard(node)
    return region


def _neighbours(node: ir.Node) -> list[ir.Node]:
    """The nodes that feed ``node`` and those that read it."""
    sources = [value.producer() for value in node.inputs if value is not None]
    readers = [usage.node for value in node.outputs for usage in value.uses()]
    return [source for source in sources if source is not None] + readers


def _check_readers(value: ir.Value, region: set[ir.Node]) -> None:
    """Raise NoMatch unless everything outside that reads ``value`` keeps positions apart."""
    for usage in value.uses():
        node = usage.node
        if node in region or node.op_type in BY_POSITION or _reads_first_token(node) or zeroes_padding(node):
            continue
        _check_keeps_positions(node)


def _check_keeps_positions(node: ir.Node) -> None:
    if node.op_type == "Split":
        fine = attribute(node, "axis", 0) in (-1, 2)
    elif node.op_type == "Squeeze":
        axes = constant(node.inputs[1]) if len(node.inputs) > 1 else None
        fine = axes is not None and set(axes.reshape(-1).tolist()) <= {-1, 2}
    else:
        fine = node.op_type in ("Cast", "Identity")
    if not fine:
        raise NoMatch(f"'{node.name}' ({node.op_type}) mixes positions outside attention")
    for value in node.outputs:
        for usage in value.uses():
            _check_keeps_positions(usage.node)


def _reads_first_token(node: ir.Node) -> bool:
    return node.op_type == "Gather" and attribute(node, "axis", 0) == 1 and scalar(node.inputs[1]) == 0


class _Packer:
    """Spends a plan. Every check is behind us."""

    def __init__(self, graph: ir.Graph, plan: _Plan, fill: Mapping[str, float]) -> None:
        self.graph, self.plan, self.fill = graph, plan, fill

    def rewrite(self) -> None:
        positions, tokens, self.spread, self.visible = self._index_nodes()
        self.graph.insert_before(self.graph[0], positions)
        for value in self.plan.exits:
            self._unpack(value)
        for value, width in self.plan.entries.items():
            self._pack(value, width, tokens)
        for node in self.plan.region:
            for value in node.outputs:
                value.shape = None

    def _index_nodes(self) -> tuple[list[ir.Node], ir.Value, ir.Value, ir.Value]:
        """Nodes for: tokens (T,) flat positions kept; spread (B, S) row of the packed matrix; visible (B, S, 1)."""
        mask, graph = self.plan.mask, self.graph
        zero = add_initializer(graph, "pack_zero", np.array(0, dtype=np.int64))
        one = add_initializer(graph, "pack_one", np.array(1, dtype=np.int64))
        flat_shape = add_initializer(graph, "pack_flat", np.array([-1], dtype=np.int64))
        first_axis = add_initializer(graph, "pack_axis_0", np.array([0], dtype=np.int64))
        last_axis = add_initializer(graph, "pack_axis_2", np.array([2], dtype=np.int64))
        nodes: list[ir.Node] = []

        def emit(op_type: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
            nodes.append(new_node(op_type, inputs, **attributes))
            return nodes[-1].outputs[0]

        real = emit("Cast", mask, to=ir.DataType.BOOL.value)
        length = emit("Squeeze", emit("Shape", mask, start=1, end=2), first_axis)
        is_first = emit("Equal", emit("Range", zero, length, one), zero)
        kept = emit("Reshape", emit("Or", real, is_first), flat_shape)
        tokens = emit("Squeeze", emit("NonZero", kept), first_axis)
        tokens.shape, tokens.type = ir.Shape(["tokens"]), ir.TensorType(ir.DataType.INT64)
        count = emit("CumSum", emit("Cast", kept, to=ir.DataType.INT64.value), zero)
        spread = emit("Reshape", emit("Sub", count, one), emit("Shape", mask))
        if self.plan.even:
            spread = emit("Where", real, spread, emit("Slice", spread, *self._first_column()))
        visible = emit("Unsqueeze", real, last_axis)
        return nodes, tokens, spread, visible

    def _first_column(self) -> list[ir.Value]:
        """What ``Slice`` wants for the first of the second axis."""
        given = (("pack_axis_0", [0]), ("pack_column_end", [1]), ("pack_axis_1", [1]))
        return [add_initializer(self.graph, name, np.array(number, dtype=np.int64)) for name, number in given]

    def _pack(self, value: ir.Value, width: int, tokens: ir.Value) -> None:
        """Let the region read rows ``tokens`` of ``value``."""
        producer = value.producer()
        target = add_initializer(self.graph, f"pack_rows_{width}", np.array([-1, width], dtype=np.int64))
        rows = new_node("Reshape", [value, target], like=producer)
        packed = new_node("Gather", [rows.outputs[0], tokens], like=producer, axis=0)
        packed.outputs[0].type = value.type
        usages = [usage for usage in value.uses() if usage.node in self.plan.region]
        if producer is None:
            self.graph.insert_before(usages[0].node, [rows, packed])
        else:
            self.graph.insert_after(producer, [rows, packed])
        for usage in usages:
            usage.node.replace_input_with(usage.idx, packed.outputs[0])

    def _unpack(self, value: ir.Value) -> None:
        """Spread a packed value for its readers outside: attention, first-token readers, outputs."""
        producer = value.producer()
        assert producer is not None
        outside = [usage for usage in value.uses() if usage.node not in self.plan.region]
        attention = [usage for usage in outside if usage.node.op_type in BY_POSITION]
        first = [usage for usage in outside if _reads_first_token(usage.node)]
        rest = [usage for usage in outside if usage not in attention and usage not in first]
        if attention:
            spread = new_node("Gather", [value, self.spread], like=attention[0].node, axis=0)
            spread.outputs[0].type = value.type
            self.graph.insert_after(producer, spread)
            for usage in attention:
                usage.node.replace_input_with(usage.idx, spread.outputs[0])
        for usage in first:
            index = usage.node.inputs[1]
            rows = new_node("Gather", [self.spread, index], axis=1)
            self.graph.insert_before(usage.node, rows)
            usage.node.replace_input_with(1, rows.outputs[0])
            usage.node.attributes["axis"] = ir.AttrInt64("axis", 0)
        if rest or value.is_graph_output():
            self._spread_output(value, producer, rest)

    def _spread_output(self, value: ir.Value, producer: ir.Node, readers: list[Any]) -> None:
        output_type, shape = value.type, value.shape
        number = max(
            (self.fill.get(name, 0.0) for name in _outputs_behind(value, self.plan.region)), key=abs, default=0.0
        )
        dtype = np.float32 if output_type is None or value.dtype is None else value.dtype.numpy()
        fill = add_initializer(self.graph, "pack_fill", np.array(number, dtype=dtype))
        spread = new_node("Gather", [value, self.spread], axis=0)
        filled = new_node("Where", [self.visible, spread.outputs[0], fill])
        result = filled.outputs[0]
        result.type, result.shape = output_type, shape
        self.graph.insert_after(producer, [spread, filled])
        for usage in readers:
            usage.node.replace_input_with(usage.idx, result)
        if value.is_graph_output():
            name = value.name
            for index, output in enumerate(self.graph.outputs):
                if output is value:
                    self.graph.outputs[index] = result
            value.name, result.name = f"{name}_packed", name


def _outputs_behind(value: ir.Value, region: frozenset[ir.Node]) -> set[str]:
    """The graph outputs that ``value`` reaches without passing through the packed region."""
    names, pending = set(), [value]
    while pending:
        current = pending.pop()
        if current.is_graph_output() and current.name:
            names.add(current.name)
        pending.extend(output for usage in current.uses() if usage.node not in region for output in usage.node.outputs)
    return names
