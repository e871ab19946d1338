"""Streams: values that hold the same channels, so that one scale for each channel fits them all.

    u -> Add -> u' -> Gather of a token -> ...        one stream: x = s * u holds in all of it, or in none
    u -> Mul by a vector w (D,) -> v                  a link to another one: with x = s * u, the other's scale is s * w

A channel's scale is free where every writer of the stream has a constant to divide by it (the columns of a matrix or of
a table, the weights of a norm) and every reader has one to multiply by it (the rows of a matrix). Whatever else writes
or reads a stream pins it: there s is 1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from compactor.passes.base import NoMatch
from compactor.passes.graph.matching import Array, add_initializer, attribute, constant, is_vector, last_dim

Scale = NDArray[np.float64]
_NORMS = ("LayerNormalization", "RMSNormalization")


@dataclasses.dataclass(frozen=True)
class Slot:
    """A constant that channels go through: input ``index`` of ``node``, whose ``axis`` counts the channels."""

    node: ir.Node
    index: int
    axis: int = -1

    @property
    def array(self) -> Array:
        """The constant."""
        array = constant(self.node.inputs[self.index])
        assert array is not None
        return array

    def refill(self, array: Array) -> None:
        """Give the node another constant, in the type of the old one."""
        assert isinstance(self.node.graph, ir.Graph)
        old = self.node.inputs[self.index]
        assert old is not None
        new = add_initializer(self.node.graph, f"{old.name}.scaled", array.astype(self.array.dtype))
        self.node.replace_input_with(self.index, new)

    def scale(self, by: Scale) -> None:
        """Multiply the channels by ``by`` (D,), in float64, rounded once."""
        array = self.array.astype(np.float64)
        shape = [1] * max(array.ndim, 1)
        shape[self.axis] = -1
        self.refill(array * by.reshape(shape))


@dataclasses.dataclass(eq=False)
class Stream:
    """Values that share a scale.

    Attributes:
        width: D.
        writers: Constants whose channels are divided by the scale.
        readers: Constants whose channels are multiplied by it.
        pins: Why the scale is 1, where it has to be.
    """

    width: int
    writers: list[Slot] = dataclasses.field(default_factory=list)
    readers: list[Slot] = dataclasses.field(default_factory=list)
    pins: list[str] = dataclasses.field(default_factory=list)

    def rescale(self, scale: Scale, gain: Scale) -> None:
        """Divide what is written by the scale, which is to multiply it by ``gain``, and multiply what reads it."""
        if (gain != 1).any():
            for slot in self.writers:
                slot.scale(gain)
        if (scale != 1).any():
            for slot in self.readers:
                slot.scale(scale)


@dataclasses.dataclass(frozen=True, eq=False)
class Link:
    """A product with a constant vector (D,), from one stream into another."""

    slot: Slot
    source: Stream
    target: Stream

    @property
    def node(self) -> ir.Node:
        """The ``Mul``."""
        return self.slot.node

    @property
    def input(self) -> ir.Value:
        """What is scaled, ``(..., D)``."""
        value = self.node.inputs[1 - self.slot.index]
        assert value is not None
        return value

    @property
    def factors(self) -> Scale:
        """``(D,)``."""
        return np.asarray(self.slot.array.astype(np.float64).reshape(-1))


def scaling(node: ir.Node) -> Slot | None:
    """The vector that a ``Mul`` applies to the channels of an activation; None where it is no such product."""
    if node.op_type != "Mul" or node.domain or len(node.inputs) != 2:
        return None
    for index in (0, 1):
        array, value = constant(node.inputs[index]), node.inputs[1 - index]
        if array is None or array.size < 2 or value is None or constant(value) is not None:
            continue
        try:
            if is_vector(array, last_dim(value)) and last_dim(node.outputs[0]) == array.size:
                return Slot(node, index)
        except NoMatch:
            continue
    return None


def find_streams(graph: ir.Graph, nodes: Sequence[ir.Node]) -> list[Link]:
    """The links at ``nodes``, which are ``Mul`` by a vector, with the streams on both sides; changes nothing."""
    slots = {node: slot for node in nodes if (slot := scaling(node)) is not None}
    looked_up = (_table(node) for node in graph if node.op_type == "Gather")
    tables = [array for array in looked_up if array is not None]
    streams: dict[ir.Value, Stream] = {}

    def stream_of(value: ir.Value) -> Stream:
        if value not in streams:
            _Flood(graph, slots, tables, streams).fill(value)
        return streams[value]

    links = []
    for node, slot in slots.items():
        source = node.inputs[1 - slot.index]
        assert source is not None
        links.append(Link(slot, stream_of(source), stream_of(node.outputs[0])))
    return links


class _Flood:
    """Follows a stream from any of its values to all of them."""

    def __init__(
        self,
        graph: ir.Graph,
        links: Mapping[ir.Node, Slot],
        tables: Sequence[Array],
        streams: dict[ir.Value, Stream],
    ) -> None:
        self.graph, self.links, self.tables, self.streams = graph, links, tables, streams

    def fill(self, value: ir.Value) -> None:
        self.stream = Stream(last_dim(value))
        self.pending: list[ir.Value] = []
        self.reach(value)
        while self.pending:
            current = self.pending.pop()
            self.follow_writer(current)
            for usage in current.uses():
                self.follow_reader(current, usage.node, usage.idx)
            if current.is_graph_output():
                self.stream.pins.append(f"'{current.name}' is an output")

    def reach(self, value: ir.Value | None) -> None:
        """Count a value in; one of another width pins, because it is spread over the channels."""
        if value is None or value in self.streams:
            return
        shape = value.shape
        if shape is None or not shape or shape[-1] != self.stream.width:
            self.stream.pins.append(f"the width of '{value.name}' is another")
            return
        self.streams[value] = self.stream
        self.pending.append(value)

    def follow_writer(self, value: ir.Value) -> None:
        node, stream = value.producer(), self.stream
        if node in self.links:
            return
        if node is None or node.domain not in ("", "ai.onnx") or node.graph is not self.graph:
            stream.pins.append(f"'{value.name}' is written by no operator known here")
        elif node.op_type == "Add":
            self.follow_addition(node)
        elif _is_view(node):
            self.reach(node.inputs[0])
        elif node.op_type == "MatMul" and _matrix(node) is not None:
            stream.writers.append(Slot(node, 1))
        elif node.op_type == "Gather" and (table := _table(node)) is not None and table.shape[-1] == stream.width:
            if _is_shared(node.inputs[0]) or _is_tied(self.graph, table):
                stream.pins.append("a table of embeddings is read elsewhere as well")
            stream.writers.append(Slot(node, 0))
        elif node.op_type in _NORMS and _scales_last(node):
            stream.writers += [Slot(node, index) for index in range(1, len(node.inputs)) if node.inputs[index]]
        else:
            stream.pins.append(f"'{node.op_type}' writes it")

    def follow_addition(self, node: ir.Node) -> None:
        for index, operand in enumerate(node.inputs):
            array = constant(operand)
            if array is None:
                self.reach(operand)
            elif array.ndim and array.shape[-1] == self.stream.width:
                self.stream.writers.append(Slot(node, index))
            else:
                self.stream.pins.append("a number is added to all channels")

    def follow_reader(self, value: ir.Value, node: ir.Node, index: int) -> None:
        stream = self.stream
        if node in self.links:
            return
        if node.domain not in ("", "ai.onnx") or node.graph is not self.graph:
            stream.pins.append(f"'{node.op_type}' reads it")
        elif node.op_type == "Add" or (_is_view(node) and index == 0):
            self.reach(node.outputs[0])
        elif node.op_type in ("MatMul", "Gemm") and index == 0 and (weight := _matrix(node)) is not None:
            axis = 1 if attribute(node, "transB", 0) else 0
            if any(_is_same(weight if axis else weight.T, table) for table in self.tables):
                stream.pins.append("a matrix that reads it is a table of embeddings as well")
            stream.readers.append(Slot(node, 1, axis))
        else:
            stream.pins.append(f"'{node.op_type}' reads it")


def _matrix(node: ir.Node) -> Array | None:
    """The constant matrix of a product, (in, out), or (out, in) with ``transB``."""
    array = constant(node.inputs[1])
    plain = array is not None and array.ndim == 2 and not attribute(node, "transA", 0)
    return array if plain and attribute(node, "alpha", 1.0) == 1.0 else None


def _table(node: ir.Node) -> Array | None:
    """The constant table (V, D) whose rows a ``Gather`` looks up."""
    array = constant(node.inputs[0])
    return array if array is not None and array.ndim == 2 and attribute(node, "axis", 0) == 0 else None


def _is_shared(table: ir.Value | None) -> bool:
    return table is not None and len(table.uses()) > 1


def _is_tied(graph: ir.Graph, table: Array) -> bool:
    """Whether a product is with the table, transposed, which is then stored once."""
    products = ((node, _matrix(node)) for node in graph if node.op_type in ("MatMul", "Gemm") and not node.domain)
    return any(
        weight is not None and _is_same(weight if attribute(node, "transB", 0) else weight.T, table)
        for node, weight in products
    )


def _is_same(one: Array, other: Array) -> bool:
    return one.shape == other.shape and np.array_equal(one, other)


def _is_view(node: ir.Node) -> bool:
    """Whether the node hands rows on without touching their channels."""
    if node.op_type == "Identity":
        return True
    data = node.inputs[0] if node.inputs else None
    if node.op_type != "Gather" or data is None or constant(data) is not None or data.shape is None:
        return False
    axis = attribute(node, "axis", 0)
    return bool(0 <= axis < len(data.shape) - 1)


def _scales_last(node: ir.Node) -> bool:
    """Whether a norm's constants are vectors over the last axis."""
    width = last_dim(node.outputs[0]) if node.outputs[0].shape else 0
    arrays = [constant(value) for value in node.inputs[1:] if value is not None]
    vectors = bool(arrays) and all(array is not None and array.shape == (width,) for array in arrays)
    return vectors and attribute(node, "axis", -1) == -1
