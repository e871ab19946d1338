"""Fold a row that is added to a value into a constant behind it, so that the addition is no node."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from compactor.passes.base import NoMatch
from compactor.passes.graph.matching import Array, add_initializer, attribute, constant, linear_at


@dataclasses.dataclass(frozen=True)
class _Taker:
    """A node that adds something to a value already, or can: input ``index``, a constant of ``size`` elements."""

    node: ir.Node
    index: int
    size: int


def fold_shift(graph: ir.Graph, value: ir.Value, row: Array, *, reader: ir.Node) -> bool:
    """Add ``row`` (D,) to ``value`` by changing a constant behind it, where ``reader`` alone reads that.

    What takes it is the shift of a norm, the bias of a linear layer, a table of embeddings, or what is added already:
    the smallest where there are several.

    Returns:
        False, and nothing changed, where nothing fits.
    """
    taker = _find(value, row.shape[0], reader)
    if taker is None:
        return False
    node, index = taker.node, taker.index
    if node.op_type == "MatMul":
        layer = linear_at(node)
        layer.refill(layer.weight, row)
        return True
    old = constant(node.inputs[index]) if len(node.inputs) > index else np.zeros_like(row)
    assert old is not None
    total = (old.astype(np.float64) + row).astype(old.dtype)
    if len(node.inputs) <= index:
        node.resize_inputs(index + 1)
    node.replace_input_with(index, add_initializer(graph, f"{value.name}.shifted", total))
    return True


def _find(value: ir.Value, width: int, reader: ir.Node) -> _Taker | None:
    """The smallest constant that a row added to ``value`` can go into."""
    node = value.producer()
    if [usage.node for usage in value.uses()] != [reader] or value.is_graph_output() or node is None or node.domain:
        return None
    if node.op_type == "LayerNormalization" and attribute(node, "axis", -1) in (-1, 2):
        fits = len(node.inputs) < 3 or constant(node.inputs[2]) is not None
        return _Taker(node, 2, width) if fits else None
    if node.op_type == "MatMul":
        try:
            return _Taker(node, 1, width) if linear_at(node).weight.shape[1] == width else None
        except NoMatch:
            return None
    if node.op_type == "Gather":
        table = constant(node.inputs[0])
        is_table = table is not None and table.ndim == 2 and table.shape[1] == width
        return (
            _Taker(node, 0, table.size) if is_table and table is not None and not attribute(node, "axis", 0) else None
        )
    if node.op_type != "Add":
        return None
    for index, operand in enumerate(node.inputs):
        array = constant(operand)
        if array is not None:  # which is no operand of a linear layer's: its bias is this one
            return _Taker(node, index, array.size) if array.ndim and array.shape[-1] == width else None
    found = [_find(operand, width, node) for operand in node.inputs if operand is not None]
    return min((each for each in found if each is not None), key=lambda taker: taker.size, default=None)
