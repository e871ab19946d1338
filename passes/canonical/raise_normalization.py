"""Raise a norm that is spelled out into one ``LayerNormalization`` or ``RMSNormalization`` node.

    (x - mean(x)) / sqrt(mean((x - mean(x))^2) + e) * w + b   ==>   LayerNormalization(x, w, b; epsilon=e)
    x / sqrt(mean(x^2) + e) * w                               ==>   RMSNormalization(x, w; epsilon=e)

Models with a norm of their own (DeBERTa, T5) export this way. As one node it is fused, packed and folded into like any
other; ONNX Runtime would recognise some spellings by itself, after the passes that need to know.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from compactor.passes.base import Applied, NoMatch, RewritePass, RewriteResult
from compactor.passes.graph.matching import (
    Array,
    add_initializer,
    attribute,
    constant,
    is_vector,
    last_dim,
    layer_of,
    new_node,
    producer,
    redirect,
    scalar,
    sole_consumer,
)


@dataclasses.dataclass(frozen=True)
class _Norm:
    """The value that is normalised, the weight (D,), the shift (D,) of a LayerNorm, e, and the last node."""

    x: ir.Value
    weight: Array | None
    shift: Array | None
    epsilon: float
    last: ir.Node
    centred: bool


@dataclasses.dataclass(frozen=True)
class RaiseNormalizationPass(RewritePass):
    """Replace norms over the last axis that are written as means, squares and roots.

    The mean of squares is found as ``ReduceMean`` of ``Pow`` 2 or of a product with itself; the root stands below a
    division, or its reciprocal or a power of -1/2 in a product. What is anything else is left as it is.
    """

    name: ClassVar[str] = "raise-normalization"

    def call(self, model: ir.Model) -> RewriteResult:
        """Raise every spelled-out norm of the main graph."""
        applied = []
        for node in tuple(model.graph):
            is_root = node.op_type == "Sqrt" or (node.op_type == "Pow" and scalar(node.inputs[1]) == -0.5)
            if not is_root or node.domain:
                continue
            try:
                found = _match(node)
            except NoMatch:
                continue
            _rewrite(model.graph, found)
            applied.append(Applied(layer_of(node), "raised-norm", 1))
        if applied:
            RemoveUnusedNodesPass()(model)
        return RewriteResult.of(model, applied)


def _match(root: ir.Node) -> _Norm:
    variance = producer(root.inputs[0], "Add")
    mean, epsilon = _other(variance)
    source = _squared(_mean_of(mean))
    quotient = _quotient(root, source)
    x, centred = source, False
    difference = source.producer()
    if difference is not None and difference.op_type == "Sub" and not difference.domain:
        whole = difference.inputs[0]
        if whole is not None and _is_mean_of(difference.inputs[1], whole):
            x, centred = whole, True
    last, weight = _applied(quotient, "Mul", last_dim(x))
    shift = None
    if centred:
        last, shift = _applied(last, "Add", last_dim(x))
    return _Norm(x, weight, shift, epsilon, last, centred)


def _other(node: ir.Node) -> tuple[ir.Value, float]:
    """The operand that is no number, and the number."""
    for index in (0, 1):
        number, value = scalar(node.inputs[1 - index]), node.inputs[index]
        if number is not None and value is not None:
            return value, number
    raise NoMatch("no number is added")


def _mean_of(value: ir.Value | None) -> ir.Value:
    node = producer(value, "ReduceMean")
    axes = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if axes is None or axes.size != 1 or not attribute(node, "keepdims", 1) or node.inputs[0] is None:
        raise NoMatch("the mean is not over the last axis")
    source = node.inputs[0]
    rank = len(source.shape) if source.shape is not None else 0
    if int(axes.item()) not in (-1, rank - 1):
        raise NoMatch("the mean is not over the last axis")
    return source


def _is_mean_of(value: ir.Value | None, source: ir.Value) -> bool:
    try:
        return _mean_of(value) is source
    except NoMatch:
        return False


def _squared(value: ir.Value) -> ir.Value:
    node = producer(value, "Pow", "Mul")
    base = node.inputs[0]
    twice = scalar(node.inputs[1]) == 2 if node.op_type == "Pow" else node.inputs[1] is base
    if base is None or not twice:
        raise NoMatch("no square")
    return base


def _quotient(root: ir.Node, source: ir.Value) -> ir.Node:
    """The node that divides ``source`` by the root."""
    node = sole_consumer(root.outputs[0])
    if root.op_type == "Pow":
        if node.op_type == "Mul" and any(_is_same(operand, source) for operand in node.inputs):
            return node
    elif node.op_type == "Reciprocal" or (node.op_type == "Div" and scalar(node.inputs[0]) == 1):
        inverse = node.outputs[0]
        node = sole_consumer(inverse)
        if node.op_type == "Mul" and any(_is_same(operand, source) for operand in node.inputs):
            return node
    elif node.op_type == "Div" and _is_same(node.inputs[0], source) and node.inputs[1] is root.outputs[0]:
        return node
    raise NoMatch("the root does not divide what it is of")


def _is_same(value: ir.Value | None, source: ir.Value) -> bool:
    """Whether ``value`` is ``source``, or another difference of the same value and its mean."""
    if value is source:
        return True
    nodes = [each.producer() if each is not None else None for each in (value, source)]
    wholes = [node.inputs[0] for node in nodes if node is not None and node.op_type == "Sub" and not node.domain]
    if len(wholes) != 2 or wholes[0] is None or wholes[0] is not wholes[1]:
        return False
    return all(node is not None and _is_mean_of(node.inputs[1], wholes[0]) for node in nodes)


def _applied(node: ir.Node, op_type: str, width: int) -> tuple[ir.Node, Array | None]:
    """The reader of ``node`` that applies a vector (D,) by ``op_type``, and the vector; else ``node`` and None."""
    try:
        reader = sole_consumer(node.outputs[0])
    except NoMatch:
        return node, None
    if reader.op_type == op_type and not reader.domain:
        for operand in reader.inputs:
            array = constant(operand)
            if array is not None and is_vector(array, width):
                return reader, array.reshape(-1)
    return node, None


def _rewrite(graph: ir.Graph, found: _Norm) -> None:
    dtype = np.float32 if found.x.dtype is None else found.x.dtype.numpy()
    weight = np.ones(last_dim(found.x), dtype) if found.weight is None else found.weight
    inputs = [found.x, add_initializer(graph, "norm_weight", weight)]
    if found.shift is not None:
        inputs.append(add_initializer(graph, "norm_shift", found.shift))
    op_type = "LayerNormalization" if found.centred else "RMSNormalization"
    result = found.last.outputs[0]
    node = new_node(op_type, inputs, like=found.last, axis=-1, epsilon=found.epsilon)
    node.outputs[0].type, node.outputs[0].shape = result.type, result.shape
    graph.insert_before(found.last, node)
    redirect(result, node.outputs[0])
