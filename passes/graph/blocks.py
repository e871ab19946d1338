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
from compactor.passes.graph.liveness import HeadLiveness, head_liveness
from compactor.passes.graph.matching import (
    LAYER_KEY,
    Linear,
    attribute,
    constant,
    linear_from,
    linear_into,
    sole_consumer,
)
from compactor.passes.graph.pointwise import is_pointwise


@dataclasses.dataclass(frozen=True)
class Rotary:
    """The two ``RotaryEmbedding`` nodes (3-D) of an attention, which read the same tables by position."""

    query: ir.Node
    key: ir.Node

    @property
    def nodes(self) -> tuple[ir.Node, ir.Node]:
        """Both."""
        return self.query, self.key

    @property
    def tables(self) -> tuple[ir.Value, ir.Value]:
        """Cosines and sines, ``(P, r/2)``."""
        cosines, sines = self.query.inputs[1:3]
        assert cosines is not None and sines is not None
        return cosines, sines

    def pairs(self, width: int) -> NDArray[np.int64]:
        """``(r/2, 2)``: the channels of a head of ``width`` that are turned together, by their column in the tables."""
        rotated = int(attribute(self.query, "rotary_embedding_dim", 0)) or width
        numbers = np.arange(rotated, dtype=np.int64)
        return numbers.reshape(-1, 2) if attribute(self.query, "interleaved", 0) else numbers.reshape(2, -1).T

    def lay_out(self, pairs: NDArray[np.int64]) -> NDArray[np.int64]:
        """The channels of ``pairs`` (n, 2) in the order in which a head holds them, (2n,)."""
        return pairs.reshape(-1) if attribute(self.query, "interleaved", 0) else pairs.T.reshape(-1)

    def pin(self, width: int) -> None:
        """State how many channels of a head of ``width`` are turned, so that others can stand behind them."""
        for node in self.nodes:
            if not attribute(node, "rotary_embedding_dim", 0):
                node.attributes["rotary_embedding_dim"] = ir.AttrInt64("rotary_embedding_dim", width)

    def partners(self, width: int) -> NDArray[np.int64]:
        """``(width,)``: the channel that each is turned with, -1 for one that is not turned."""
        found = np.full(width, -1, dtype=np.int64)
        first, second = self.pairs(width).T
        found[first], found[second] = second, first
        return found


@dataclasses.dataclass(frozen=True)
class AttentionBlock:
    """One canonical (3-D) attention block.

    Attributes:
        node: The ``Attention`` node: ``q_num_heads`` heads, explicit ``scale``.
        query: ``(D, H*d)`` projection.
        key: ``(D, H*d)`` projection.
        value: ``(D, H*dv)`` projection.
        output: ``(H*dv, D)`` projection, the only reader of the attention's output.
        per_head_mask: Whether the mask carries a value per head on axis 1.
        rotary: What turns queries and keys by their positions, where anything does.
    """

    node: ir.Node
    query: Linear
    key: Linear
    value: Linear
    output: Linear
    per_head_mask: bool
    rotary: Rotary | None = None

    @property
    def heads(self) -> int:
        """H."""
        return int(attribute(self.node, "q_num_heads", 0))

    @property
    def scale(self) -> float:
        """The factor of the logits."""
        return float(attribute(self.node, "scale", 0.0))

    @property
    def liveness(self) -> HeadLiveness:
        """What can change the output."""
        return head_liveness(
            self.query.weight,
            self.query.bias,
            self.key.weight,
            self.value.weight,
            self.output.weight,
            heads=self.heads,
            key_bias=self.key.bias,
            partners=None if self.rotary is None else self.rotary.partners(self.query.weight.shape[1] // self.heads),
        )

    @property
    def live_heads(self) -> NDArray[np.bool_]:
        """``(H,)`` bool: heads with a live value channel; a bias that was not folded keeps its head alive."""
        live = self.liveness.heads
        if self.value.bias is not None:
            live = live | self.value.bias.reshape(self.heads, -1).any(axis=1)
        return live

    @property
    def layer(self) -> str:
        """The label of the sublayer."""
        return self.node.metadata_props.get(LAYER_KEY, self.node.name or "attention")

    @property
    def nodes(self) -> tuple[ir.Node, ...]:
        """Every node of the block."""
        rotary = () if self.rotary is None else self.rotary.nodes
        return (self.node, *rotary, *self.query.nodes, *self.key.nodes, *self.value.nodes, *self.output.nodes)


def match_attention(node: ir.Node) -> AttentionBlock:
    """The block around a 3-D ``Attention`` node. Raises NoMatch; changes nothing."""
    heads = attribute(node, "q_num_heads", 0)
    if not heads:
        raise NoMatch("the attention is not in the 3-D form")
    if attribute(node, "kv_num_heads", heads) != heads:
        raise NoMatch("query heads share key/value heads (grouped-query attention)")
    if attribute(node, "scale", None) is None:
        raise NoMatch("the scale is not pinned")
    if attribute(node, "softcap", 0.0):
        raise NoMatch("a soft cap makes the logits' row shift visible")
    if any(value is not None for value in node.inputs[4:]) or any(
        value.uses() or value.is_graph_output() for value in node.outputs[1:]
    ):
        raise NoMatch("the attention keeps a key/value cache or exposes its logits")
    rotary = _rotary(node)
    operands = node.inputs[:3] if rotary is None else [rotary.query.inputs[0], rotary.key.inputs[0], node.inputs[2]]
    query, key, value = (
        _projection(role, operand) for role, operand in zip(("query", "key", "value"), operands, strict=True)
    )
    try:
        output = linear_from(node.outputs[0])
    except NoMatch as reason:
        raise NoMatch(f"output projection: {reason}") from None
    mask = node.inputs[3] if len(node.inputs) > 3 else None
    return AttentionBlock(node, query, key, value, output, per_head_mask=_is_per_head(mask, heads), rotary=rotary)


def _rotary(node: ir.Node) -> Rotary | None:
    """What turns the queries and keys of an attention. Raises NoMatch where it does not turn both alike."""
    query, key = (_turning(value) for value in node.inputs[:2])
    if query is None and key is None:
        return None
    if query is None or key is None:
        raise NoMatch("a rotary embedding turns the queries or the keys alone")
    names = ("interleaved", "rotary_embedding_dim")
    if list(query.inputs[1:]) != list(key.inputs[1:]) or any(
        attribute(query, name, 0) != attribute(key, name, 0) for name in names
    ):
        raise NoMatch("rotary embeddings turn the queries and the keys in different ways")
    for turned in (query, key):
        sole_consumer(turned.outputs[0])
    return Rotary(query, key)


def _turning(value: ir.Value | None) -> ir.Node | None:
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == "RotaryEmbedding" and not node.domain else None


def _projection(role: str, operand: ir.Value | None) -> Linear:
    try:
        layer = linear_into(operand)
        sole_consumer(layer.output)
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
