"""Quantize linear layers dynamically to int8.

    MatMul(x, W) + b   ==>   DynamicQuantizeMatMul(x, int8 W, scales, b)                     x read by one linear layer
                       ==>   DynamicQuantizeLinear(x), MatMulIntegerToFloat(..., b) per W    x read by several (Q, K, V)

Weights are signed, symmetric, one scale per output column. Activations are quantized at run time, one scale per
tensor; the projections that read the same activation share one quantization. ``operators="standard"`` writes the same
arithmetic in ai.onnx operators for runtimes without the com.microsoft domain.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from compactor.passes.base import Applied, RewritePass, RewriteResult
from compactor.passes.graph.int8_layers import MIN_ELEMENTS, Int8Layer, add_switch, find_int8_layers
from compactor.passes.graph.matching import MICROSOFT, layer_of, new_node


@dataclasses.dataclass(frozen=True)
class QuantizeLinearsPass(RewritePass):
    """Quantize every MatMul and Gemm with a constant float32 weight.

    Attributes:
        operators: ``contrib`` for ONNX Runtime's fused operators, ``standard`` for ai.onnx alone.
        min_elements: Smaller weights stay in float32; their bytes and time do not pay for the error.
        keep: Labels of sublayers, and units (``graph/int8_layers.py``), that stay in float32.
        switched: Leave the float32 layers beside, and let a graph input for each unit choose.
    """

    name: ClassVar[str] = "quantize-linears"
    operators: Literal["contrib", "standard"] = "contrib"
    min_elements: int = MIN_ELEMENTS
    keep: tuple[str, ...] = ()
    switched: bool = False

    def call(self, model: ir.Model) -> RewriteResult:
        """Quantize the main graph's linear layers."""
        by_unit, refused = find_int8_layers(model.graph, min_elements=self.min_elements, keep=self.keep)
        emit = _emit_contrib if self.operators == "contrib" else _emit_standard
        applied = []
        for unit, layers in by_unit.items():
            emit(model.graph, layers, add_switch(model.graph, unit) if self.switched else None)
            applied += [Applied(layer_of(layer.node), "int8-linear", 1) for layer in layers]
        if applied and self.operators == "contrib":
            model.graph.opset_imports.setdefault(MICROSOFT, 1)
        RemoveUnusedNodesPass()(model)
        return RewriteResult.of(model, applied, refused)


def _emit_contrib(graph: ir.Graph, layers: list[Int8Layer], switch: ir.Value | None) -> None:
    first = layers[0]
    shared = new_node("DynamicQuantizeLinear", [first.input], like=first.node, outputs=3)
    if len(layers) > 1:
        graph.insert_before(first.node, shared)
    for layer in layers:
        weight, scale, bias = layer.constants(graph)
        if len(layers) > 1:
            values, value_scale, zero_point = shared.outputs
            inputs = [values, weight, value_scale, scale, zero_point, None, bias]
            node = new_node("MatMulIntegerToFloat", inputs, like=layer.node, domain=MICROSOFT)
        else:
            node = new_node(
                "DynamicQuantizeMatMul", [layer.input, weight, scale, None, bias], like=layer.node, domain=MICROSOFT
            )
        layer.replace(graph, [node], switch)


def _emit_standard(graph: ir.Graph, layers: list[Int8Layer], switch: ir.Value | None) -> None:
    first = layers[0]
    shared = new_node("DynamicQuantizeLinear", [first.input], like=first.node, outputs=3)
    graph.insert_before(first.node, shared)
    values, value_scale, zero_point = shared.outputs
    for layer in layers:
        weight, scale, bias = layer.constants(graph)
        product = new_node("MatMulInteger", [values, weight, zero_point], like=layer.node)
        real = new_node("Cast", [product.outputs[0]], like=layer.node, to=ir.DataType.FLOAT.value)
        factor = new_node("Mul", [scale, value_scale], like=layer.node)
        scaled = new_node("Mul", [real.outputs[0], factor.outputs[0]], like=layer.node)
        nodes = [product, real, factor, scaled]
        if bias is not None:
            nodes.append(new_node("Add", [scaled.outputs[0], bias], like=layer.node))
        layer.replace(graph, nodes, switch)
