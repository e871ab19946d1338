"""Quantize linear layers dynamically to int8, with a scale for each token.

    s = max |x| / 127                            a number for each row of x
    MatMul(x, W) + b   ==>   MatMulIntegerToFloat(QuantizeLinear(x, s), int8 W, scales) * s + b

No code of a row depends on another row: an example has the same answer alone and in any batch, whatever its padding.
Weights are signed, symmetric, one scale per output column, as in ``quantize-linears``. What reads the same activation
shares its codes. Behind a Gelu, whose values end at -0.17, and a Relu the zero point lies low, so that their positive
side has nearly all codes, and the largest value alone tells the scale.

A row is a block of ``QuantizeLinear`` (opset 21), whose kernel is as fast for a scale a row as for one in all.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from compactor.passes.base import Applied, RewritePass, RewriteResult
from compactor.passes.graph.int8_layers import MIN_ELEMENTS, Int8Layer, add_switch, find_int8_layers
from compactor.passes.graph.matching import MICROSOFT, Array, add_initializer, layer_of, new_node

_LOWEST = {"Gelu": -0.1701, "Relu": 0.0}
"""The least value that an activation has, a little rounded down."""
_SYMMETRIC, _TOP = 128, 255  # the zero point in the middle, and the last code
_LOW = 26  # the zero point of values that go down to the lowest of a Gelu: a ninth of the codes


@dataclasses.dataclass(frozen=True)
class QuantizeLinearsByTokenPass(RewritePass):
    """Quantize every MatMul and Gemm with a constant float32 weight, in ONNX Runtime's operators of opset 21.

    Attributes:
        min_elements: Smaller weights stay in float32; their bytes and time do not pay for the error.
        keep: Labels of sublayers, and units (``graph/int8_layers.py``), that stay in float32.
        switched: Leave the float32 layers beside, and let a graph input for each unit choose.
    """

    name: ClassVar[str] = "quantize-linears-by-token"
    min_elements: int = MIN_ELEMENTS
    keep: tuple[str, ...] = ()
    switched: bool = False

    def call(self, model: ir.Model) -> RewriteResult:
        """Quantize the main graph's linear layers."""
        by_unit, refused = find_int8_layers(model.graph, min_elements=self.min_elements, keep=self.keep)
        applied = []
        shared = _Shared(model.graph)
        for unit, layers in by_unit.items():
            _emit(model.graph, layers, shared, add_switch(model.graph, unit) if self.switched else None)
            applied += [Applied(layer_of(layer.node), "int8-linear", 1) for layer in layers]
        if applied:
            model.graph.opset_imports.setdefault(MICROSOFT, 1)
        RemoveUnusedNodesPass()(model)
        return RewriteResult.of(model, applied, refused)


def _emit(graph: ir.Graph, layers: list[Int8Layer], shared: _Shared, switch: ir.Value | None) -> None:
    rows = _Rows(layers[0], shared)
    graph.insert_before(layers[0].node, rows.nodes)
    for layer in layers:
        weight, scale, bias = layer.constants(graph)
        inputs = [rows.codes, weight, shared.constant(np.float32(1)), scale, rows.zero_point]
        product = new_node("MatMulIntegerToFloat", inputs, like=layer.node, domain=MICROSOFT)
        nodes = [product, new_node("Mul", [product.outputs[0], rows.scale], like=layer.node)]
        if bias is not None:
            nodes.append(new_node("Add", [nodes[-1].outputs[0], bias], like=layer.node))
        layer.replace(graph, nodes, switch)


class _Shared:
    """What the layers of a graph have in common, each of it once."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self._constants: dict[tuple[str, str], ir.Value] = {}
        self.zero_points: dict[tuple[int, str], ir.Value] = {}

    def constant(self, number: Array | np.generic) -> ir.Value:
        """A small constant."""
        array = np.asarray(number)
        key = (array.dtype.str, repr(array.tolist()))
        if key not in self._constants:
            self._constants[key] = add_initializer(self.graph, "int8_constant", array)
        return self._constants[key]


class _Rows:
    """The nodes that quantize the rows of an activation.

    Attributes:
        nodes: In order.
        codes: As the activation in shape, uint8.
        scale: ``(..., 1)``: of each row.
        zero_point: The code of zero, a constant.
    """

    def __init__(self, layer: Int8Layer, shared: _Shared) -> None:
        self.nodes: list[ir.Node] = []
        source = layer.input
        self._like, self._shared = layer.node, shared
        producer = source.producer()
        lowest = _LOWEST.get(producer.op_type) if producer is not None and not producer.domain else None
        zero = _SYMMETRIC if lowest is None else _LOW if lowest < 0 else 0
        self.zero_point = shared.constant(np.uint8(zero))
        self.scale = self._scales(source, lowest, zero)
        zeros = self._zero_points(source, zero)
        self.codes = self._node("QuantizeLinear", source, self.scale, zeros, axis=-1, block_size=layer.weight.shape[0])

    def _scales(self, source: ir.Value, lowest: float | None, zero: int) -> ir.Value:
        last = self._shared.constant(np.array([-1], np.int64))
        largest = self._node("ReduceMax", source, last, keepdims=1)
        if lowest is None:  # two reductions read the activation; max |x| would write a copy of it first
            least = self._node("ReduceMin", source, last, keepdims=1)
            largest = self._node("Max", largest, self._node("Neg", least))
        scales = self._node("Mul", largest, self._shared.constant(np.float32(1 / (_TOP - zero))))
        if lowest:  # small values leave room for the lowest
            scales = self._node("Max", scales, self._shared.constant(np.float32(-lowest / zero)))
        return scales

    def _zero_points(self, source: ir.Value, zero: int) -> ir.Value:
        """``(..., 1)``; matrices of the same rows, as packing makes them, share one."""
        rows = source.shape[0] if source.shape is not None and len(source.shape) == 2 else None
        known = rows.value if isinstance(rows, ir.SymbolicDim) else None
        if known is not None and (zero, known) in self._shared.zero_points:
            return self._shared.zero_points[zero, known]
        value = ir.tensor(np.array([zero], np.uint8))
        made = self._node("ConstantOfShape", self._node("Shape", self.scale), value=value)
        if known is not None:
            self._shared.zero_points[zero, known] = made
        return made

    def _node(self, op_type: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        node = new_node(op_type, inputs, like=self._like, **attributes)
        self.nodes.append(node)
        return node.outputs[0]
