"""Compute in float16, with float32 at the border and where float16 is too coarse.

    float32 inputs ==Cast==> float16 weights and activations ==Cast==> float32 outputs

What stays in float32, with Casts around it: operators that are not known to be safe in float16 (reductions, Softmax
outside attention, exponentials), computations on positions that end in integers or angles, and every node with a
constant that float16 cannot hold. Additive masks keep their meaning: "minus infinity", however it was spelled, becomes
a number that float16 holds and that softmax still turns into 0. Normalisations keep their statistics in float32.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from compactor.passes.base import Applied, Refused, RewritePass, RewriteResult
from compactor.passes.graph.additive_masks import HIDDEN_LOGIT
from compactor.passes.graph.masks import HIDDEN
from compactor.passes.graph.matching import Array, add_initializer, attribute, constant, layer_of, new_node

_HALF, _SINGLE = ir.DataType.FLOAT16, ir.DataType.FLOAT
_LARGEST = float(np.finfo(np.float16).max)

# Operators that compute in float16 as well as their neighbours do; the fused ones accumulate in float32 by themselves.
_SAFE = frozenset(
    {
        *("Add", "Sub", "Mul", "Div", "Sum", "Neg", "Abs", "Min", "Max", "Clip", "Where", "Sqrt", "Erf"),
        *("Gelu", "Relu", "LeakyRelu", "Elu", "Selu", "Tanh", "Sigmoid", "HardSigmoid", "HardSwish", "Softplus"),
        *("MatMul", "Gemm", "Conv", "Attention", "LayerNormalization", "RMSNormalization", "MaxPool"),
        *("Concat", "Split", "Slice", "Gather", "GatherElements", "GatherND", "Reshape", "Transpose", "Expand", "Tile"),
        *("Squeeze", "Unsqueeze", "Flatten", "Pad", "Cast", "Identity"),
        *("MultiHeadAttention", "SkipLayerNormalization", "BiasGelu", "FastGelu"),
    }
)
_NEUTRAL = frozenset({"Shape", "Size"})  # read an activation of either type
_LOOKUPS = frozenset({"Gather", "GatherElements", "GatherND"})


@dataclasses.dataclass(frozen=True)
class ConvertToFloat16Pass(RewritePass):
    """Convert the graph to float16. Needs known value types: run shape inference first.

    Graph inputs and outputs keep their types, but for the caches of a decoder, which are float16. The whole graph is
    left alone, with the reason, when a node holds a graph of its own or a type is not known.

    Attributes:
        keep: Labels of sublayers that stay in float32.
    """

    name: ClassVar[str] = "convert-to-float16"
    keep: tuple[str, ...] = ()

    def call(self, model: ir.Model) -> RewriteResult:
        """Convert the main graph."""
        graph = model.graph
        for node in graph:
            if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
                return RewriteResult.of(model, (), (Refused("graph", f"'{node.op_type}' holds a graph of its own"),))
            for value in node.outputs:
                if value.dtype is None and (value.uses() or value.is_graph_output()):
                    return RewriteResult.of(model, (), (Refused("graph", f"the type of '{value.name}' is not known"),))
        coarse = _position_nodes(graph)
        half: dict[ir.Node, None] = {}
        refused: list[Refused] = []
        for node in graph:
            if not _computes_floats(node) or node in coarse:
                continue
            reason = "kept in float32 by the recipe" if layer_of(node) in self.keep else _reason_to_stay(node)
            if reason is None:
                half[node] = None
            else:
                refused.append(Refused(layer_of(node), reason))
        applied = []
        if half:
            for value in graph.inputs:
                if _is_cache(value) and _is_float(value):
                    value.type = ir.TensorType(_HALF)
            constants = _Converter(graph, half).convert()
            applied = [Applied("graph", "float16-operator", len(half)), Applied("graph", "float16-constant", constants)]
            RemoveUnusedNodesPass()(model)
        return RewriteResult.of(model, applied, refused)


def _is_cache(value: ir.Value) -> bool:
    """Whether it goes from one step of a decoder to the next, and nowhere else; see ``attach-caches``."""
    return str(value.name).startswith(("past_key_values.", "present."))


def _is_float(value: ir.Value | None) -> bool:
    return value is not None and value.dtype == _SINGLE


def _computes_floats(node: ir.Node) -> bool:
    """Whether ``node`` has a float32 result that could be float16. A Cast that already leaves float16 does not."""
    if node.op_type == "Cast" and node.inputs[0] is not None and node.inputs[0].dtype == _HALF:
        return False
    return any(map(_is_float, node.outputs))


def _reason_to_stay(node: ir.Node) -> str | None:
    if node.op_type not in _SAFE or (node.op_type == "Cast" and _is_float(node.inputs[0])):
        return f"{node.op_type} computes in float32"
    for value in node.inputs:
        array = constant(value)
        if array is not None and array.dtype == np.float32 and _to_half(array) is None:
            assert value is not None
            return f"'{value.name}' holds numbers that float16 cannot"
    return None


def _to_half(array: Array) -> Array | None:
    """``array`` in float16; None where it would overflow, or where a lone number would vanish."""
    finite = np.where(array <= HIDDEN, np.float32(HIDDEN_LOGIT), array)
    if np.abs(finite).max(initial=0) > _LARGEST:
        return None
    half = finite.astype(np.float16)
    return None if half.size == 1 and finite.any() and not half.any() else half


def _position_nodes(graph: ir.Graph) -> Collection[ir.Node]:
    """Nodes that compute on positions alone, on the way to an integer, a comparison or an unsafe operator.

    Relative-position buckets and rotary angles: positions of a few hundred times a frequency lose their fraction in
    float16.
    """
    from_integers: set[ir.Node] = set()
    for node in graph:
        floats = [value for value in node.inputs if value is not None and _is_float(value) and constant(value) is None]
        if node.op_type not in _LOOKUPS and all(value.producer() in from_integers for value in floats):
            from_integers.add(node)
    found: set[ir.Node] = set()
    for node in reversed(tuple(graph)):
        readers = [usage.node for value in node.outputs for usage in value.uses()]
        if node in from_integers and _computes_floats(node) and any(_wants_single(r, found) for r in readers):
            found.add(node)
    return found


def _wants_single(reader: ir.Node, found: Collection[ir.Node]) -> bool:
    if reader in found:
        return True
    if reader.op_type in _NEUTRAL:
        return False
    if reader.op_type == "Cast":
        return attribute(reader, "to", 0) not in (_SINGLE, _HALF)
    return reader.op_type not in _SAFE


class _Converter:
    """Changes the types of ``half`` nodes and puts Casts where the two types meet. Every check is behind us."""

    def __init__(self, graph: ir.Graph, half: Collection[ir.Node]) -> None:
        self.graph, self.half = graph, half
        self._constants: dict[ir.Value, ir.Value] = {}
        self._casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}

    def convert(self) -> int:
        """Convert; returns the number of constants written in float16."""
        reads = [
            (node, i, value)
            for node in self.graph
            for i, value in enumerate(node.inputs)
            if value is not None and (_is_float(value) or (value.is_graph_input() and value.dtype == _HALF))
        ]
        for node in self.half:
            if node.op_type == "Cast":
                node.attributes["to"] = ir.AttrInt64("to", _HALF.value)
            elif node.op_type.endswith("LayerNormalization") and not node.domain:
                node.attributes["stash_type"] = ir.AttrInt64("stash_type", 1)
            for value in node.outputs:
                if _is_float(value):
                    value.type = ir.TensorType(_HALF)
        for node, index, value in reads:
            if node in self.half:
                node.replace_input_with(index, self._as(value, _HALF))
            elif node.op_type not in _NEUTRAL and not (node.op_type == "Cast" and value.dtype == _HALF):
                node.replace_input_with(index, self._as(value, _SINGLE))
        for index, output in enumerate(tuple(self.graph.outputs)):
            if output.dtype == _HALF and output.producer() in self.half and not _is_cache(output):
                self.graph.outputs[index] = self._output(output)
        return len(self._constants)

    def _as(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        array = constant(value)
        if array is not None and dtype == _HALF:
            if value not in self._constants:
                half = _to_half(array)
                assert half is not None, "pass developer: the node should have stayed in float32"
                self._constants[value] = add_initializer(self.graph, f"{value.name}.fp16", half)
            return self._constants[value]
        return value if value.dtype == dtype else self._cast(value, dtype)

    def _cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        if (value, dtype) not in self._casts:
            cast = new_node("Cast", [value], like=value.producer(), to=dtype.value)
            cast.outputs[0].type, cast.outputs[0].shape = ir.TensorType(dtype), value.shape
            producer = value.producer()
            if producer is None:
                self.graph.insert_before(self.graph[0], cast)
            else:
                self.graph.insert_after(producer, cast)
            self._casts[value, dtype] = cast.outputs[0]
        return self._casts[value, dtype]

    def _output(self, value: ir.Value) -> ir.Value:
        """The float32 form of a float16 graph output, under its name."""
        name = value.name
        value.name = f"{name}_fp16"
        cast = self._cast(value, _SINGLE)
        cast.name = name
        return cast
