"""Quantize linear layers dynamically to int8.

    MatMul(x, W) + b   ==>   DynamicQuantizeMatMul(x, int8 W, scales, b)                     x read by one linear layer
                       ==>   DynamicQuantizeLinear(x), MatMulIntegerToFloat(..., b) per W    x read by several (Q, K, V)

Weights are signed, symmetric, one scale per output column. Activations are quantized at run time, one scale per
tensor; the projections that read the same activation share one quantization. ``operators="standard"`` writes the same
arithmetic in ai.onnx operators for runtimes without the com.microsoft domain.
"""

from __future__ import annotations

import collections
import dataclasses
from typing import ClassVar, Literal

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from compactor.passes.base import Applied, NoMatch, Refused, RewritePass, RewriteResult
from compactor.passes.graph.int8 import quantize_symmetric
from compactor.passes.graph.matching import (
    MICROSOFT,
    Array,
    add_initializer,
    attribute,
    constant,
    is_vector,
    layer_of,
    linear_from,
    new_node,
    redirect,
)


@dataclasses.dataclass(frozen=True)
class _Layer:
    """``output = input @ weight + bias``, whichever node it was written as."""

    node: ir.Node  # the MatMul or Gemm
    input: ir.Value
    weight: Array  # (in, out)
    bias: Array | None  # (out,)
    output: ir.Value


@dataclasses.dataclass(frozen=True)
class QuantizeLinearsPass(RewritePass):
    """Quantize every MatMul and Gemm with a constant float32 weight.

    Attributes:
        operators: ``contrib`` for ONNX Runtime's fused operators, ``standard`` for ai.onnx alone.
        min_elements: Smaller weights stay in float32; their bytes and time do not pay for the error.
        keep: Labels of sublayers that stay in float32.
    """

    name: ClassVar[str] = "quantize-linears"
    operators: Literal["contrib", "standard"] = "contrib"
    min_elements: int = 4096
    keep: tuple[str, ...] = ()

    def call(self, model: ir.Model) -> RewriteResult:
        """Quantize the main graph's linear layers."""
        by_input: dict[ir.Value, list[_Layer]] = collections.defaultdict(list)
        refused = []
        for node in model.graph:
            try:
                layer = _match(node)
            except NoMatch as reason:
                refused.append(Refused(layer_of(node), str(reason)))
                continue
            if layer is None:
                continue
            if layer_of(node) in self.keep:
                refused.append(Refused(layer_of(node), "kept in float32 by the recipe"))
            elif layer.weight.size < self.min_elements:
                refused.append(Refused(layer_of(node), f"a weight of {layer.weight.size} elements stays in float32"))
            else:
                by_input[layer.input].append(layer)
        emit = _emit_contrib if self.operators == "contrib" else _emit_standard
        applied = []
        for layers in by_input.values():
            emit(model.graph, layers)
            applied += [Applied(layer_of(layer.node), "int8-linear", 1) for layer in layers]
        if applied and self.operators == "contrib":
            model.graph.opset_imports.setdefault(MICROSOFT, 1)
        RemoveUnusedNodesPass()(model)
        return RewriteResult.of(model, applied, refused)


def _match(node: ir.Node) -> _Layer | None:
    """The linear layer at ``node``; None for any other operator. Raises NoMatch where it cannot be quantized."""
    if node.domain or node.op_type not in ("MatMul", "Gemm"):
        return None
    weight, source = constant(node.inputs[1]), node.inputs[0]
    if weight is None or source is None or constant(source) is not None:
        return None  # a product of two activations is attention's business
    if weight.ndim != 2 or weight.dtype != np.float32:
        raise NoMatch(f"a weight of type {weight.dtype} and {weight.ndim} axes is not quantized")
    if node.op_type == "MatMul":
        try:
            linear = linear_from(source) if len(source.uses()) == 1 else None
        except NoMatch:
            linear = None
        add = linear.add if linear is not None else _bias_add(node, weight.shape[1])
        if add is None:
            return _Layer(node, source, weight, None, node.outputs[0])
        bias = next(array for v in add.inputs if (array := constant(v)) is not None)
        return _Layer(node, source, weight, bias.reshape(-1), add.outputs[0])
    if attribute(node, "alpha", 1.0) != 1.0 or attribute(node, "beta", 1.0) != 1.0 or attribute(node, "transA", 0):
        raise NoMatch("a scaled or transposed Gemm is not quantized")
    matrix = weight.T if attribute(node, "transB", 0) else weight
    shift = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if len(node.inputs) > 2 and (shift is None or shift.size != matrix.shape[1]):
        raise NoMatch("the bias of the Gemm is not a constant vector")
    return _Layer(node, source, matrix, None if shift is None else shift.reshape(-1), node.outputs[0])


def _bias_add(matmul: ir.Node, width: int) -> ir.Node | None:
    """The ``Add`` of a constant (width,) vector that is the only reader of ``matmul``."""
    users = list(matmul.outputs[0].uses())
    if len(users) != 1 or users[0].node.op_type != "Add" or matmul.outputs[0].is_graph_output():
        return None
    bias = constant(users[0].node.inputs[1 - users[0].idx])
    return users[0].node if bias is not None and is_vector(bias, width) else None


def _constants(graph: ir.Graph, layer: _Layer) -> tuple[ir.Value, ir.Value, ir.Value | None]:
    """int8 weight (in, out), scales (out,), bias (out,)."""
    weight = layer.node.inputs[1]
    assert weight is not None
    quantized, scale = quantize_symmetric(layer.weight, axis=0)
    bias = None if layer.bias is None else add_initializer(graph, f"{weight.name}.bias", layer.bias)
    return (
        add_initializer(graph, f"{weight.name}.int8", quantized),
        add_initializer(graph, f"{weight.name}.scale", scale),
        bias,
    )


def _emit_contrib(graph: ir.Graph, layers: list[_Layer]) -> None:
    first = layers[0]
    shared = new_node("DynamicQuantizeLinear", [first.input], like=first.node, outputs=3)
    if len(layers) > 1:
        graph.insert_before(first.node, shared)
    for layer in layers:
        weight, scale, bias = _constants(graph, layer)
        if len(layers) > 1:
            values, value_scale, zero_point = shared.outputs
            inputs = [values, weight, value_scale, scale, zero_point, None, bias]
            node = new_node("MatMulIntegerToFloat", inputs, like=layer.node, domain=MICROSOFT)
        else:
            node = new_node(
                "DynamicQuantizeMatMul", [layer.input, weight, scale, None, bias], like=layer.node, domain=MICROSOFT
            )
        _replace(graph, layer, [node])


def _emit_standard(graph: ir.Graph, layers: list[_Layer]) -> None:
    first = layers[0]
    shared = new_node("DynamicQuantizeLinear", [first.input], like=first.node, outputs=3)
    graph.insert_before(first.node, shared)
    values, value_scale, zero_point = shared.outputs
    for layer in layers:
        weight, scale, bias = _constants(graph, layer)
        product = new_node("MatMulInteger", [values, weight, zero_point], like=layer.node)
        real = new_node("Cast", [product.outputs[0]], like=layer.node, to=ir.DataType.FLOAT.value)
        factor = new_node("Mul", [scale, value_scale], like=layer.node)
        scaled = new_node("Mul", [real.outputs[0], factor.outputs[0]], like=layer.node)
        nodes = [product, real, factor, scaled]
        if bias is not None:
            nodes.append(new_node("Add", [scaled.outputs[0], bias], like=layer.node))
        _replace(graph, layer, nodes)


def _replace(graph: ir.Graph, layer: _Layer, nodes: list[ir.Node]) -> None:
    result = nodes[-1].outputs[0]
    result.type, result.shape = layer.output.type, layer.output.shape
    graph.insert_before(layer.node, nodes)
    redirect(layer.output, result)
