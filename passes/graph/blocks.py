"""Views of the canonical graph: attention and feed-forward blocks as frozen records of their nodes.

Blocks are found by following the graph, never by module names. Finding changes nothing; a place that does not match
raises ``NoMatch`` with the reason. All refusals happen here, before the first edit of a pass.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from compactor.passes.base import NoMatch
from compactor.passes.graph.heads import HEAD_NORMS
from compactor.passes.graph.liveness import HeadLiveness, head_liveness, repeat_heads
from compactor.passes.graph.matching import (
    CANONICAL,
    LAYER_KEY,
    Array,
    Linear,
    add_initializer,
    attribute,
    constant,
    linear_from,
    linear_into,
    sole_consumer,
)
from compactor.passes.graph.pointwise import is_pointwise
from compactor.passes.graph.rotary import Rotary, match_rotary


@dataclasses.dataclass(frozen=True)
class RelativeTerm:
    """A ``RelativeLogits`` node whose result is added to the logits, turned round where it is of the keys.

    Attributes:
        node: ``num_heads`` heads; reads x (B, S, H*d), its table (R, H*d) and the rows for pairs of tokens.
        way: The nodes that add it to the mask, each of which has the head axis.
    """

    node: ir.Node
    way: tuple[ir.Node, ...]

    @property
    def table(self) -> Array:
        """``(R, H*d)``."""
        array = constant(self.node.inputs[1])
        assert array is not None
        return array

    def refill(self, table: Array, heads: int) -> None:
        """Give the term a new table (R, H*d) of ``heads`` heads."""
        assert isinstance(self.node.graph, ir.Graph)
        self.node.replace_input_with(1, add_initializer(self.node.graph, "position_table", table))
        self.node.attributes["num_heads"] = ir.AttrInt64("num_heads", heads)
        for node in (self.node, *self.way):
            value = node.outputs[0]
            if value.shape is not None:
                value.shape = ir.Shape([heads if axis == 1 else size for axis, size in enumerate(value.shape)])


@dataclasses.dataclass(frozen=True)
class AttentionBlock:
    """One canonical (3-D) attention block.

    Attributes:
        node: The ``Attention`` node: ``q_num_heads`` heads, explicit ``scale``.
        query: ``(D, H*d)`` projection.
        key: ``(D, G*d)`` projection; G is H unless query heads share keys and values.
        value: ``(D, G*dv)`` projection.
        output: ``(H*dv, D)`` projection, the only reader of the attention's output.
        per_head_mask: Whether the mask carries a value per head on axis 1 that does not come from this block.
        rotary: What turns queries and keys by their positions, where anything does.
        query_norm: The norm of each head of the queries, in front of ``rotary``, where there is one.
        key_norm: The same of the keys.
        value_norm: The same of the values, an RMSNorm.
        query_terms: Logits of the queries and the distances, which the mask adds.
        key_terms: Logits of the keys and the distances.
    """

    node: ir.Node
    query: Linear
    key: Linear
    value: Linear
    output: Linear
    per_head_mask: bool
    rotary: Rotary | None = None
    query_terms: tuple[RelativeTerm, ...] = ()
    key_terms: tuple[RelativeTerm, ...] = ()
    query_norm: ir.Node | None = None
    key_norm: ir.Node | None = None
    value_norm: ir.Node | None = None

    @property
    def terms(self) -> tuple[RelativeTerm, ...]:
        """The logits of distances."""
        return (*self.query_terms, *self.key_terms)

    @property
    def heads(self) -> int:
        """H."""
        return int(attribute(self.node, "q_num_heads", 0))

    @property
    def kv_heads(self) -> int:
        """G."""
        return int(attribute(self.node, "kv_num_heads", self.heads))

    @property
    def shared(self) -> bool:
        """Whether query heads share keys and values (grouped-query attention)."""
        return self.kv_heads != self.heads

    def set_heads(self, heads: int, kv_heads: int) -> None:
        """Write new counts into the attributes of all nodes that have them. Weights are the caller's."""
        for name, number in (("q_num_heads", heads), ("kv_num_heads", kv_heads)):
            self.node.attributes[name] = ir.AttrInt64(name, number)
        normed = ((self.query_norm, heads), (self.key_norm, kv_heads), (self.value_norm, kv_heads))
        turned = () if self.rotary is None else ((self.rotary.query, heads), (self.rotary.key, kv_heads))
        for node, number in (*normed, *turned):
            if node is not None:
                node.attributes["num_heads"] = ir.AttrInt64("num_heads", number)
                node.outputs[0].shape = None
        self.node.outputs[0].shape = None

    @property
    def scale(self) -> float:
        """The factor of the logits."""
        return float(attribute(self.node, "scale", 0.0))

    @property
    def liveness(self) -> HeadLiveness:
        """What can change the output."""
        found = head_liveness(
            self.query.weight,
            self.query.bias,
            self.key.weight,
            self.value.weight,
            self.output.weight,
            heads=self.heads,
            kv_heads=self.kv_heads,
            key_bias=self.key.bias,
            partners=None if self.rotary is None else self.rotary.partners(self.query.weight.shape[1] // self.heads),
            query_table=_stacked(self.query_terms),
            key_table=_stacked(self.key_terms),
        )
        if self.normed:
            found = dataclasses.replace(found, qk=np.ones_like(found.qk))
        if self.value_norm is None:
            return found
        driven = self.value.weight.any(axis=0) | (False if self.value.bias is None else self.value.bias != 0)
        groups = np.asarray(driven).reshape(self.kv_heads, -1).any(axis=1).repeat(self.heads // self.kv_heads)
        alive = groups & self.output.weight.reshape(self.heads, -1).any(axis=1)
        return dataclasses.replace(found, v=np.broadcast_to(np.asarray(alive)[:, None], found.v.shape))

    @property
    def normed(self) -> bool:
        """Whether a norm makes every channel of a head's queries or keys depend on the others, so that all stay."""
        return self.query_norm is not None or self.key_norm is not None

    @property
    def live_heads(self) -> NDArray[np.bool_]:
        """``(H,)`` bool: heads with a live value channel; a bias that was not folded, and is read, keeps its head."""
        live = self.liveness.heads
        if self.value.bias is not None:
            bias = repeat_heads(self.value.bias, self.kv_heads, self.heads)
            read = (bias != 0) & self.output.weight.any(axis=1)
            live = live | read.reshape(self.heads, -1).any(axis=1)
        return live

    @property
    def layer(self) -> str:
        """The label of the sublayer."""
        return self.node.metadata_props.get(LAYER_KEY, self.node.name or "attention")

    @property
    def nodes(self) -> tuple[ir.Node, ...]:
        """Every node of the block."""
        rotary = () if self.rotary is None else self.rotary.nodes
        terms = [node for term in self.terms for node in (term.node, *term.way)]
        norms = [node for node in (self.query_norm, self.key_norm, self.value_norm) if node is not None]
        layers = [node for each in (self.query, self.key, self.value, self.output) for node in each.nodes]
        return (self.node, *rotary, *norms, *terms, *layers)


def _stacked(terms: tuple[RelativeTerm, ...]) -> Array | None:
    """All tables, one below the other."""
    return np.concatenate([term.table for term in terms]) if terms else None


def match_attention(node: ir.Node) -> AttentionBlock:
    """The block around a 3-D ``Attention`` node. Raises NoMatch; changes nothing."""
    heads = attribute(node, "q_num_heads", 0)
    if not heads:
        raise NoMatch("the attention is not in the 3-D form")
    if attribute(node, "scale", None) is None:
        raise NoMatch("the scale is not pinned")
    if attribute(node, "softcap", 0.0):
        raise NoMatch("a soft cap makes the logits' row shift visible")
    if any(value is not None for value in node.inputs[4:]) or any(
        value.uses() or value.is_graph_output() for value in node.outputs[1:]
    ):
        raise NoMatch("the attention keeps a key/value cache or exposes its logits")
    rotary = match_rotary(node)
    operands = node.inputs[:3] if rotary is None else [rotary.query.inputs[0], rotary.key.inputs[0], node.inputs[2]]
    norms = [_head_norm(operand) for operand in operands]
    operands = [each if norm is None else norm.inputs[0] for each, norm in zip(operands, norms, strict=True)]
    if norms[2] is not None and norms[2].op_type != HEAD_NORMS["RMSNormalization"]:
        raise NoMatch("a norm of the values moves zeros")
    mask = node.inputs[3] if len(node.inputs) > 3 else None
    found = _relative_terms(mask)
    of_query, of_key = (tuple(t for t, turned in found if turned is side) for side in (False, True))
    query, key, value = (
        _projection(role, operand, terms)
        for role, operand, terms in zip(("query", "key", "value"), operands, (of_query, of_key, ()), strict=True)
    )
    kv_heads = attribute(node, "kv_num_heads", heads)
    widths = [layer.weight.shape[1] // count for layer, count in ((query, heads), (key, kv_heads))]
    if heads % kv_heads or widths[0] != widths[1]:
        raise NoMatch(f"{heads} query heads of {widths[0]} channels, {kv_heads} key heads of {widths[1]}")
    try:
        output = linear_from(node.outputs[0])
    except NoMatch as reason:
        raise NoMatch(f"output projection: {reason}") from None
    if found and kv_heads != heads:
        raise NoMatch("query heads share keys beside logits of distances")
    per_head = not found and _is_per_head(mask, heads)
    return AttentionBlock(node, query, key, value, output, per_head, rotary, of_query, of_key, *norms)


def _head_norm(value: ir.Value | None) -> ir.Node | None:
    """The norm of each head that gives ``value``, which nobody else reads."""
    node = value.producer() if value is not None else None
    if value is None or node is None or node.domain != CANONICAL or node.op_type not in HEAD_NORMS.values():
        return None
    sole_consumer(value)
    return node


def _relative_terms(mask: ir.Value | None) -> list[tuple[RelativeTerm, bool]]:
    """The ``RelativeLogits`` that a mask adds, and whether each is turned round. Raises NoMatch."""
    found: list[tuple[RelativeTerm, bool]] = []
    others: list[ir.Value] = []
    pending: list[tuple[ir.Value | None, tuple[ir.Node, ...], bool]] = [(mask, (), False)]
    while pending:
        value, way, turned = pending.pop()
        node = value.producer() if value is not None else None
        if value is None:
            continue
        if node is not None and node.op_type == "RelativeLogits" and node.domain == CANONICAL:
            results = [each.outputs[0] for each in (node, *way)]
            shared = any(len(result.uses()) != 1 or result.is_graph_output() for result in results)
            if shared or constant(node.inputs[1]) is None:
                raise NoMatch("logits of distances are used outside the block")
            found.append((RelativeTerm(node, way), turned))
        elif node is not None and node.op_type == "Add" and not node.domain and not turned:
            pending += [(operand, (*way, node), False) for operand in node.inputs]
        elif _turns_round(node) and not turned:
            assert node is not None
            pending.append((node.inputs[0], (*way, node), True))
        else:
            others.append(value)
    if found and any(v.shape is None or (len(v.shape) > 2 and v.shape[-3] != 1) for v in others):
        raise NoMatch("the mask has values per head beside logits of distances")
    return found


def _turns_round(node: ir.Node | None) -> bool:
    return node is not None and node.op_type == "Transpose" and tuple(attribute(node, "perm", ())) == (0, 1, 3, 2)


def _projection(role: str, operand: ir.Value | None, terms: tuple[RelativeTerm, ...]) -> Linear:
    try:
        layer = linear_into(operand)
        own = {term.node for term in terms}
        readers = [usage.node for usage in layer.output.uses()]
        if layer.output.is_graph_output() or len([node for node in readers if node not in own]) != 1:
            raise NoMatch(f"'{layer.output.name}' is used outside the block")
        if own - set(readers):
            raise NoMatch("logits of distances are of another value")
    except NoMatch as reason:
        raise NoMatch(f"{role} projection: {reason}") from None
    return layer


def _is_per_head(mask: ir.Value | None, heads: int) -> bool:
    if mask is None:
        return False
    if mask.shape is None:
        raise NoMatch("the shape of the attention mask is not known")
    if len(mask.shape) < 4:
        return len(mask.shape) == 3 and mask.shape[0] not in (1,)
    size = mask.shape[1]
    if size == 1:
        return False
    if size == heads and len(mask.shape) == 4:
        return True
    raise NoMatch(f"the attention mask has {size} values on its head axis for {heads} heads")


@dataclasses.dataclass(frozen=True)
class FeedForwardBlock:
    """One feed-forward block: linear layers into a pointwise region, one linear layer out of it.

    Attributes:
        inputs: ``(D, N)`` projections into the region: one, or two for a gated (GLU-style) block.
        region: The pointwise nodes between, in graph order.
        output: ``(N, D)`` projection.
    """

    inputs: tuple[Linear, ...]
    region: tuple[ir.Node, ...]
    output: Linear

    @property
    def width(self) -> int:
        """N."""
        return int(self.output.weight.shape[0])

    @property
    def layer(self) -> str:
        """The label of the sublayer."""
        return self.output.matmul.metadata_props.get(LAYER_KEY, self.output.matmul.name or "feed_forward")

    @property
    def nodes(self) -> tuple[ir.Node, ...]:
        """Every node of the block."""
        return (*(node for layer in self.inputs for node in layer.nodes), *self.region, *self.output.nodes)


def match_feed_forward(matmul: ir.Node) -> FeedForwardBlock:
    """The block whose output projection is ``matmul``. Raises NoMatch; changes nothing."""
    value = matmul.inputs[0]
    if value is None or value.producer() is None or not is_pointwise(value.producer()):
        raise NoMatch("no activation feeds it")
    output = linear_from(value)
    width = output.weight.shape[0]
    region: dict[ir.Node, None] = {}
    inputs: dict[ir.Node, Linear] = {}
    pending = [value]
    while pending:
        current = pending.pop()
        array = constant(current)
        if array is not None:
            if array.size != 1:
                raise NoMatch("the activation has a constant per neuron")
            continue
        node = current.producer()
        if node is None:
            raise NoMatch("the activation reads a graph input")
        layer = _linear_of_width(current, width)
        if layer is not None:
            inputs[layer.matmul] = layer
        elif is_pointwise(node):
            if node not in region:
                region[node] = None
                pending.extend(v for v in node.inputs if v is not None)
        else:
            raise NoMatch(f"the activation reads '{node.op_type}'")
    if not region or not inputs:
        raise NoMatch("no activation between two linear layers")
    inside = {*region, matmul}
    for current in (*(layer.output for layer in inputs.values()), *(node.outputs[0] for node in region)):
        if current.is_graph_output() or any(usage.node not in inside for usage in current.uses()):
            raise NoMatch(f"'{current.name}' is used outside the block")
    ordered = tuple(node for node in _graph(matmul) if node in region)
    return FeedForwardBlock(tuple(inputs.values()), ordered, output)


def _linear_of_width(value: ir.Value, width: int) -> Linear | None:
    try:
        layer = linear_into(value)
    except NoMatch:
        return None
    return layer if layer.weight.shape[1] == width else None


def _graph(node: ir.Node) -> ir.Graph:
    assert isinstance(node.graph, ir.Graph)
    return node.graph


def attention_blocks(graph: ir.Graph) -> Iterator[tuple[ir.Node, AttentionBlock | NoMatch]]:
    """Every ``Attention`` node with its block, or the reason it has none. Safe to edit while iterating."""
    for node in tuple(graph):
        if node.op_type == "Attention" and node.domain == "":
            try:
                yield node, match_attention(node)
            except NoMatch as reason:
                yield node, reason


def feed_forward_blocks(graph: ir.Graph) -> Iterator[FeedForwardBlock]:
    """Every feed-forward block. Safe to edit while iterating."""
    for node in tuple(graph):
        if node.op_type == "MatMul" and node.graph is not None:
            try:
                yield match_feed_forward(node)
            except NoMatch:
                continue
