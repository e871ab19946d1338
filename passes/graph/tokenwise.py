"""Which values hold one row per token, and which operators treat every row alone.

A value is *token-wise* when it is (B, S, W) and each (b, s) row depends on no other row of any token-wise operand. Such
a value can be computed on any subset of the rows, which is what token packing does.
"""

from __future__ import annotations

import onnx_ir as ir

from compactor.passes.graph.heads import HEAD_NORMS
from compactor.passes.graph.masks import zeroes_padding
from compactor.passes.graph.matching import CANONICAL, attribute, constant, same_size
from compactor.passes.graph.pointwise import is_pointwise

SPREAD = ("Attention", "RotaryEmbedding")
"""Operators that need the place of every token, so that they work on (B, S, W), and give one row a token."""

BY_POSITION = (*SPREAD, "RelativeLogits")
"""Operators that read rows (B, S, W) by the places of tokens, whatever they give."""

_VARIADIC = ("Sum", "Max", "Min", "Where", "Cast", "Identity", "Clip")


def token_shape(value: ir.Value, mask: ir.Value) -> bool:
    """Whether the known shape of ``value`` is (B, S, W), with the symbols of ``mask`` (B, S)."""
    shape, reference = value.shape, mask.shape
    if shape is None or reference is None or len(shape) != 3:
        return False
    return all(same_size(shape[axis], reference[axis]) for axis in (0, 1))


def token_wise_nodes(graph: ir.Graph, mask: ir.Value) -> set[ir.Node]:
    """The nodes of the graph that work on token-wise values row by row.

    The result of an ``Attention`` has one row per token, but the node itself mixes rows; a ``RotaryEmbedding`` turns
    each row by its place.
    """
    rows: set[ir.Value] = set()
    nodes: set[ir.Node] = set()
    for node in graph:
        operands = [value for value in node.inputs if value is not None and constant(value) is None]
        if not node.outputs:
            continue
        if zeroes_padding(node):  # left where padding is, for whoever adds up rows behind it
            rows.add(node.outputs[0])
            continue
        if node.op_type in SPREAD and operands and operands[0] in rows:
            rows.add(node.outputs[0])
        elif operands and all(v in rows or token_shape(v, mask) for v in operands) and _treats_rows_alone(node):
            nodes.add(node)
            rows.update((*operands, *node.outputs))
        elif token_shape(node.outputs[0], mask):
            rows.add(node.outputs[0])
    return nodes


def _treats_rows_alone(node: ir.Node) -> bool:
    if node.domain == CANONICAL:
        return node.op_type in HEAD_NORMS.values()
    if node.domain not in ("", "ai.onnx"):
        return False
    constants = [array for value in node.inputs if value is not None and (array := constant(value)) is not None]
    if node.op_type == "MatMul":
        weight = constant(node.inputs[1])
        return weight is not None and weight.ndim == 2
    if node.op_type in ("LayerNormalization", "RMSNormalization"):
        return bool(attribute(node, "axis", -1) == -1)  # counted from the front, it is another axis once packed
    if is_pointwise(node) or node.op_type in _VARIADIC:
        return all(array.ndim == 0 or (array.ndim <= 2 and array.size == array.shape[-1]) for array in constants)
    return False
