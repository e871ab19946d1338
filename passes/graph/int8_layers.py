"""Linear layers as the int8 passes see them, and their constants in int8.

A *unit* is what is quantized or not as a whole: the linear layers of a sublayer that read the same activation. Units
of a sublayer are counted in the order of the graph: ``layers.3.feed_forward#1`` is its down-projection.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Collection, Mapping

import numpy as np
import onnx_ir as ir

from compactor.passes.base import NoMatch, Refused
from compactor.passes.graph.int8 import quantize_weight
from compactor.passes.graph.matching import (
    LAYER_KEY,
    Array,
    add_initializer,
    attribute,
    constant,
    layer_of,
    linear_at,
    new_node,
    redirect,
)

MIN_ELEMENTS = 4096
"""Smaller weights stay in float32; their bytes and time do not pay for the error."""

SWITCH = "int8:"
"""What the names of the inputs begin with that choose the type of a unit."""


@dataclasses.dataclass(frozen=True)
class Int8Layer:
    """``output = input @ weight + bias``, whichever node it was written as.

    Attributes:
        node: The ``MatMul`` or ``Gemm``, whose first input is ``(..., in)``.
        weight: ``(in, out)``.
        bias: ``(out,)``, or None.
        output: ``(..., out)``.
    """

    node: ir.Node
    weight: Array
    bias: Array | None
    output: ir.Value

    @property
    def input(self) -> ir.Value:
        """``(..., in)``."""
        value = self.node.inputs[0]
        assert value is not None
        return value

    def constants(self, graph: ir.Graph) -> tuple[ir.Value, ir.Value, ir.Value | None]:
        """New initializers: the int8 weight (in, out), its scales (out,), the bias (out,)."""
        weight = self.node.inputs[1]
        assert weight is not None
        quantized, scale = quantize_weight(self.weight)
        bias = None if self.bias is None else add_initializer(graph, f"{weight.name}.bias", self.bias)
        return (
            add_initializer(graph, f"{weight.name}.int8", quantized),
            add_initializer(graph, f"{weight.name}.scale", scale),
            bias,
        )

    def replace(self, graph: ir.Graph, nodes: list[ir.Node], switch: ir.Value | None = None) -> None:
        """Put ``nodes`` in the layer's place; the last one gives its output.

        Args:
            graph: The layer's.
            nodes: In order.
            switch: A bool that chooses between them and the layer, which then stays; None removes it.
        """
        result = nodes[-1].outputs[0]
        result.type, result.shape = self.output.type, self.output.shape
        graph.insert_before(self.node, nodes)
        choose(graph, self.output, result, switch)


def choose(graph: ir.Graph, old: ir.Value, new: ir.Value, switch: ir.Value | None) -> None:
    """Make every reader of ``old`` read ``new`` instead, or where there is a switch, the one that it chooses."""
    if switch is None:
        redirect(old, new)
        return
    producer = old.producer()
    assert producer is not None
    chosen = new_node("Where", [switch, new, old], like=producer)
    chosen.outputs[0].type, chosen.outputs[0].shape = old.type, old.shape
    graph.insert_after(producer, chosen)
    redirect(old, chosen.outputs[0])
    chosen.replace_input_with(2, old)


def add_switch(graph: ir.Graph, unit: str) -> ir.Value:
    """A graph input for a unit, a bool: whether it is int8."""
    switch = ir.Value(name=f"{SWITCH}{unit}", type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([]))
    graph.inputs.append(switch)
    return switch


def find_int8_layers(
    graph: ir.Graph, *, min_elements: int, keep: Collection[str]
) -> tuple[Mapping[str, list[Int8Layer]], list[Refused]]:
    """The layers that are to be quantized, by their unit, and why others are not.

    Args:
        graph: The lowered graph in fp32.
        min_elements: Smaller weights stay in float32; their bytes and time do not pay for the error.
        keep: Labels of sublayers, and units, that stay in float32.
    """
    by_unit: dict[str, list[Int8Layer]] = collections.defaultdict(list)
    names: dict[tuple[str, ir.Value], str] = {}
    counts: collections.Counter[str] = collections.Counter()
    refused = []
    for node in graph:
        try:
            layer = _match(node)
        except NoMatch as reason:
            refused.append(Refused(layer_of(node), str(reason)))
            continue
        if layer is None:
            continue
        if layer.weight.size < max(min_elements, 1):
            refused.append(Refused(layer_of(node), f"a weight of {layer.weight.size} elements stays in float32"))
            continue
        sublayer = node.metadata_props.get(LAYER_KEY, "model")
        if (sublayer, layer.input) not in names:
            names[sublayer, layer.input] = f"{sublayer}#{counts[sublayer]}"
            counts[sublayer] += 1
        unit = names[sublayer, layer.input]
        if unit in keep or layer_of(node) in keep:
            refused.append(Refused(layer_of(node), "kept in float32 by the recipe"))
        else:
            by_unit[unit].append(layer)
    return by_unit, refused


def _match(node: ir.Node) -> Int8Layer | None:
    """The linear layer at ``node``; None for any other operator. Raises NoMatch where it cannot be quantized."""
    if node.domain or node.op_type not in ("MatMul", "Gemm"):
        return None
    weight, source = constant(node.inputs[1]), node.inputs[0]
    if weight is None or source is None or constant(source) is not None:
        return None  # a product of two activations is attention's business
    if weight.ndim != 2 or weight.dtype != np.float32:
        raise NoMatch(f"a weight of type {weight.dtype} and {weight.ndim} axes is not quantized")
    if node.op_type == "MatMul":
        add = linear_at(node).add
        if add is None:
            return Int8Layer(node, weight, None, node.outputs[0])
        bias = next(array for v in add.inputs if (array := constant(v)) is not None)
        return Int8Layer(node, weight, bias.reshape(-1), add.outputs[0])
    if attribute(node, "alpha", 1.0) != 1.0 or attribute(node, "beta", 1.0) != 1.0 or attribute(node, "transA", 0):
        raise NoMatch("a scaled or transposed Gemm is not quantized")
    matrix = weight.T if attribute(node, "transB", 0) else weight
    shift = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if len(node.inputs) > 2 and (shift is None or shift.size != matrix.shape[1]):
        raise NoMatch("the bias of the Gemm is not a constant vector")
    return Int8Layer(node, matrix, None if shift is None else shift.reshape(-1), node.outputs[0])
