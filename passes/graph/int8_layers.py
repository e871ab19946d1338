"""Linear layers as the int8 passes see them, and their constants in int8."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Collection, Mapping

import numpy as np
import onnx_ir as ir

from compactor.passes.base import NoMatch, Refused
from compactor.passes.graph.int8 import quantize_weight
from compactor.passes.graph.matching import (
    Array,
    add_initializer,
    attribute,
    constant,
    is_vector,
    layer_of,
    redirect,
)


@dataclasses.dataclass(frozen=True)
class Int8Layer:
    """``output = input @ weight + bias``, whichever node it was written as.

    Attributes:
        node: The ``MatMul`` or ``Gemm``.
        input: ``(..., in)``.
        weight: ``(in, out)``.
        bias: ``(out,)``, or None.
        output: ``(..., out)``.
    """

    node: ir.Node
    input: ir.Value
    weight: Array
    bias: Array | None
    output: ir.Value

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

    def replace(self, graph: ir.Graph, nodes: list[ir.Node]) -> None:
        """Put ``nodes`` in the layer's place; the last one gives its output."""
        result = nodes[-1].outputs[0]
        result.type, result.shape = self.output.type, self.output.shape
        graph.insert_before(self.node, nodes)
        redirect(self.output, result)


def find_int8_layers(
    graph: ir.Graph, *, min_elements: int, keep: Collection[str]
) -> tuple[Mapping[ir.Value, list[Int8Layer]], list[Refused]]:
    """The layers that are to be quantized, by the activation that they read, and why others are not.

    Args:
        graph: The lowered graph in fp32.
        min_elements: Smaller weights stay in float32; their bytes and time do not pay for the error.
        keep: Labels of sublayers that stay in float32.
    """
    by_input: dict[ir.Value, list[Int8Layer]] = collections.defaultdict(list)
    refused = []
    for node in graph:
        try:
            layer = _match(node)
        except NoMatch as reason:
            refused.append(Refused(layer_of(node), str(reason)))
            continue
        if layer is None:
            continue
        if layer_of(node) in keep:
            refused.append(Refused(layer_of(node), "kept in float32 by the recipe"))
        elif layer.weight.size < max(min_elements, 1):
            refused.append(Refused(layer_of(node), f"a weight of {layer.weight.size} elements stays in float32"))
        else:
            by_input[layer.input].append(layer)
    return by_input, refused


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
        add = _bias_add(node, weight.shape[1])
        if add is None:
            return Int8Layer(node, source, weight, None, node.outputs[0])
        bias = next(array for v in add.inputs if (array := constant(v)) is not None)
        return Int8Layer(node, source, weight, bias.reshape(-1), add.outputs[0])
    if attribute(node, "alpha", 1.0) != 1.0 or attribute(node, "beta", 1.0) != 1.0 or attribute(node, "transA", 0):
        raise NoMatch("a scaled or transposed Gemm is not quantized")
    matrix = weight.T if attribute(node, "transB", 0) else weight
    shift = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if len(node.inputs) > 2 and (shift is None or shift.size != matrix.shape[1]):
        raise NoMatch("the bias of the Gemm is not a constant vector")
    return Int8Layer(node, source, matrix, None if shift is None else shift.reshape(-1), node.outputs[0])


def _bias_add(matmul: ir.Node, width: int) -> ir.Node | None:
    """The ``Add`` of a constant (width,) vector that is the only reader of ``matmul``."""
    users = list(matmul.outputs[0].uses())
    if len(users) != 1 or users[0].node.op_type != "Add" or matmul.outputs[0].is_graph_output():
        return None
    bias = constant(users[0].node.inputs[1 - users[0].idx])
    return users[0].node if bias is not None and is_vector(bias, width) else None
