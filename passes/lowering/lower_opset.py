"""Write the graph in an older version of the standard operators, which more runtimes read.

    Gelu(x)                      ==>   0.5 * x * (1 + Erf(x / sqrt 2))        below opset 20
    RMSNormalization(x, w)       ==>   x / Sqrt(Mean(x * x) + epsilon) * w    below opset 23
    ReduceMean(x, axes)          ==>   ReduceMean(x; axes)                    below opset 18
    Cast(x; to, saturate)        ==>   Cast(x; to)                            below opset 19

Most operators only gained element types since; those need no change.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from compactor.passes.base import Applied, NoMatch, Refused, RewritePass, RewriteResult
from compactor.passes.graph.matching import add_initializer, attribute, constant, layer_of, new_node, redirect

OLDEST = 17  # LayerNormalization is the newest operator that no model can do without
IR_VERSIONS = {17: 8, 18: 8, 19: 9, 20: 9, 21: 10, 22: 10}

# Operators by the opset that brought them. Gelu and RMSNormalization are rewritten, the others are refused.
INTRODUCED: Mapping[str, int] = {
    "AffineGrid": 20,
    "Attention": 23,
    "BitCast": 26,
    "BitwiseAnd": 18,
    "BitwiseNot": 18,
    "BitwiseOr": 18,
    "BitwiseXor": 18,
    "CausalConvWithState": 27,
    "CenterCropPad": 18,
    "Col2Im": 18,
    "CumProd": 26,
    "DeformConv": 19,
    "Gelu": 20,
    "GroupNormalization": 18,
    "ImageDecoder": 20,
    "LinearAttention": 27,
    "Mish": 18,
    "RMSNormalization": 23,
    "RegexFullMatch": 20,
    "RotaryEmbedding": 23,
    "StringConcat": 20,
    "StringSplit": 20,
    "SwiGLU": 28,
    "Swish": 24,
    "TensorScatter": 24,
}

# Attributes that older versions lack, by operator: since which opset, and the value that does what they always did.
ADDED_ATTRIBUTES: Mapping[str, Mapping[str, tuple[int, object]]] = {
    "AveragePool": {"dilations": (19, None)},
    "Cast": {"saturate": (19, 1), "round_mode": (24, "up")},
    "CastLike": {"saturate": (19, 1), "round_mode": (24, "up")},
    "DequantizeLinear": {"block_size": (21, 0), "output_dtype": (23, 0)},
    "LpPool": {"ceil_mode": (18, 0), "dilations": (18, None)},
    "QuantizeLinear": {"saturate": (19, 1), "block_size": (21, 0), "output_dtype": (21, 0), "precision": (23, 0)},
    "Range": {"stash_type": (27, None)},
    "Resize": {"antialias": (18, 0), "axes": (18, None), "keep_aspect_ratio_policy": (18, "stretch")},
    "SpaceToDepth": {"mode": (28, "DCR")},
}

_AXES_BECAME_INPUT_AT_18 = frozenset(
    f"Reduce{kind}" for kind in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")
)


@dataclasses.dataclass(frozen=True)
class LowerOpsetPass(RewritePass):
    """Set the version of the ai.onnx operators down to ``opset``; other domains stay.

    All or nothing: when one node says what the older version cannot, the graph is left alone and every such node is
    named with its reason. Run ``DecomposeAttentionPass`` first. Attributes whose value is what the older version always
    did are dropped.

    Attributes:
        opset: 17 is read by every runtime still in use; the oldest offered.
    """

    name: ClassVar[str] = "lower-opset"
    opset: int = OLDEST

    def __post_init__(self) -> None:
        if self.opset not in IR_VERSIONS:
            raise ValueError(f"opset {self.opset} is not offered: choose {min(IR_VERSIONS)} to {max(IR_VERSIONS)}")

    def call(self, model: ir.Model) -> RewriteResult:
        """Lower the main graph."""
        if model.graph.opset_imports.get("", 0) <= self.opset:
            return RewriteResult.of(model, ())
        plans: list[tuple[ir.Node, str, Callable[[], None]]] = []
        refused = []
        for node in model.graph:
            if node.domain not in ("", "ai.onnx"):
                continue
            try:
                plans += [(node, rule, edit) for rule, edit in _plan(model.graph, node, self.opset)]
            except NoMatch as reason:
                refused.append(Refused(layer_of(node), str(reason)))
        if model.functions:
            refused.append(Refused("graph", "the model defines functions"))
        if refused:
            return RewriteResult.of(model, (), refused)
        for _, _, edit in plans:
            edit()
        model.graph.opset_imports[""] = self.opset
        model.ir_version = min(model.ir_version, IR_VERSIONS[self.opset])
        RemoveUnusedNodesPass()(model)
        applied = [Applied(layer_of(node), rule, 1) for node, rule, _ in plans]
        return RewriteResult.of(model, [*applied, Applied("graph", f"opset-{self.opset}", 1)])


_Plan = list[tuple[str, Callable[[], None]]]


def _plan(graph: ir.Graph, node: ir.Node, opset: int) -> _Plan:
    """The edits that ``node`` needs. Raises NoMatch when it cannot be written in ``opset``; changes nothing."""
    if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
        raise NoMatch(f"{node.op_type} holds a graph of its own")
    if node.op_type == "Gelu" and opset < 20:
        return [("spelled-out-gelu", lambda: _write_gelu(graph, node))]
    if node.op_type == "RMSNormalization" and opset < 23 and attribute(node, "axis", -1) == -1:
        return [("spelled-out-norm", lambda: _write_norm(graph, node, opset))]
    if INTRODUCED.get(node.op_type, 0) > opset:
        raise NoMatch(f"{node.op_type} is newer than opset {opset}: it came with opset {INTRODUCED[node.op_type]}")
    plan = _dropped_attributes(node, opset)
    if opset < 18:
        if node.op_type in _AXES_BECAME_INPUT_AT_18:
            plan += _plan_axes(node)
        elif node.op_type == "Split":
            plan += _plan_split(node)
        elif node.op_type == "Pad" and len(node.inputs) > 3 and node.inputs[3] is not None:
            raise NoMatch("Pad takes its axes as an input, which opset 17 does not know")
        elif node.op_type.startswith("Scatter") and attribute(node, "reduction", "none") in ("max", "min"):
            raise NoMatch(f"{node.op_type} reduces by {attribute(node, 'reduction', '')}, which opset 17 does not know")
    if opset < 20 and node.op_type == "DFT":
        raise NoMatch("DFT took its axis as an attribute before opset 20")
    return plan


def _dropped_attributes(node: ir.Node, opset: int) -> _Plan:
    plan: _Plan = []
    for name, (since, neutral) in ADDED_ATTRIBUTES.get(node.op_type, {}).items():
        if since <= opset or name not in node.attributes:
            continue
        value = node.attributes[name].value
        if value != neutral:
            raise NoMatch(f"{node.op_type} has {name}={value}, which is newer than opset {opset}")
        plan.append(("dropped-attribute", lambda name=name: _drop(node, name)))  # type: ignore[misc]
    return plan


def _drop(node: ir.Node, name: str) -> None:
    del node.attributes[name]


def _plan_axes(node: ir.Node) -> _Plan:
    if len(node.inputs) < 2 or node.inputs[1] is None:
        if attribute(node, "noop_with_empty_axes", 0):
            raise NoMatch(f"{node.op_type} without axes does nothing, which opset 17 cannot say")
        node_says_so = "noop_with_empty_axes" in node.attributes
        return [("dropped-attribute", lambda: _drop(node, "noop_with_empty_axes"))] if node_says_so else []
    axes = constant(node.inputs[1])
    if axes is None or axes.size == 0:
        raise NoMatch(f"the axes of {node.op_type} are not constant")
    axes_list = [int(axis) for axis in axes.reshape(-1)]

    def edit() -> None:
        node.resize_inputs(1)
        node.attributes["axes"] = ir.AttrInt64s("axes", axes_list)
        node.attributes.pop("noop_with_empty_axes", None)

    return [("axes-as-attribute", edit)]


def _plan_split(node: ir.Node) -> _Plan:
    if "num_outputs" not in node.attributes:
        return []
    source, axis = node.inputs[0], attribute(node, "axis", 0)
    size = source.shape[axis] if source is not None and source.shape is not None else None
    if not isinstance(size, int) or size % len(node.outputs):
        raise NoMatch(f"Split into {len(node.outputs)} outputs is not known to be even")
    return [("dropped-attribute", lambda: _drop(node, "num_outputs"))]


def _write_gelu(graph: ir.Graph, node: ir.Node) -> None:
    x, result = node.inputs[0], node.outputs[0]
    assert x is not None
    dtype = np.float32 if result.dtype is None else result.dtype.numpy()
    nodes: list[ir.Node] = []

    def number(name: str, value: float) -> ir.Value:
        return add_initializer(graph, f"gelu_{name}", np.array(value, dtype=dtype))

    def emit(op_type: str, *inputs: ir.Value) -> ir.Value:
        nodes.append(new_node(op_type, inputs, like=node))
        nodes[-1].outputs[0].type, nodes[-1].outputs[0].shape = result.type, result.shape
        return nodes[-1].outputs[0]

    if attribute(node, "approximate", "none") == "tanh":
        cube = emit("Mul", emit("Mul", x, x), x)
        inner = emit("Add", x, emit("Mul", cube, number("cubic", 0.044715)))
        share = emit("Tanh", emit("Mul", inner, number("tanh_scale", math.sqrt(2 / math.pi))))
    else:
        share = emit("Erf", emit("Div", x, number("sqrt_2", math.sqrt(2))))
    final = emit("Mul", emit("Mul", x, emit("Add", share, number("one", 1))), number("half", 0.5))
    graph.insert_before(node, nodes)
    redirect(result, final)
    graph.remove(node, safe=True)


def _write_norm(graph: ir.Graph, node: ir.Node, opset: int) -> None:
    x, weight = node.inputs[:2]
    result = node.outputs[0]
    assert x is not None and weight is not None
    dtype = np.float32 if result.dtype is None else result.dtype.numpy()
    nodes: list[ir.Node] = []

    def emit(op_type: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        nodes.append(new_node(op_type, inputs, like=node, **attributes))
        nodes[-1].outputs[0].type = result.type
        return nodes[-1].outputs[0]

    square = emit("Mul", x, x)
    if opset < 18:
        mean = emit("ReduceMean", square, axes=[-1])
    else:
        mean = emit("ReduceMean", square, add_initializer(graph, "norm_axis", np.array([-1], dtype=np.int64)))
    epsilon = add_initializer(graph, "norm_epsilon", np.array(attribute(node, "epsilon", 1e-5), dtype=dtype))
    final = emit("Mul", emit("Div", x, emit("Sqrt", emit("Add", mean, epsilon))), weight)
    final.shape = result.shape
    graph.insert_before(node, nodes)
    redirect(result, final)
    graph.remove(node, safe=True)
