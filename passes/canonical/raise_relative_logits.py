"""Raise logits that depend on how far apart two tokens are into one ``RelativeLogits`` node.

    GatherElements(x_h E_h^T, index)   ==>   RelativeLogits(x, E, index)[b, h, i, j] = x[b, i, h] . E[index[i, j], h]

Disentangled attention adds two such terms to its logits: content to position, of the queries, and position to content,
of the keys, turned round. Exporters project the table of positions in every run, copy it for every example and multiply
by all its rows; here it is a constant of the model. ``RelativeLogits`` is an operator of the canonical dialect alone:
``write-relative-logits`` spells it out for every target.

Symbols: B batch, S queries, T keys, H heads, d head width, R rows of the table.
Reference: He et al., "DeBERTa: Decoding-enhanced BERT with Disentangled Attention", 2021, equations 2 to 4.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from compactor.passes.base import Applied, NoMatch, Refused, RewritePass, RewriteResult
from compactor.passes.graph.evaluating import evaluate
from compactor.passes.graph.heads import scaled_heads
from compactor.passes.graph.matching import (
    CANONICAL,
    Array,
    add_initializer,
    attribute,
    constant,
    layer_of,
    new_node,
    producer,
    redirect,
    scalar,
    sole_consumer,
)

_BY_ROW = ("Add", "Div", "LayerNormalization", "MatMul", "Mul", "Reshape", "Transpose", "Unsqueeze")
"""Operators that treat the rows of a table one by one, where their other operands are constants."""


@dataclasses.dataclass(frozen=True)
class _Found:
    """``x`` (B, S, H*d), ``table`` (R, H*d) with all factors in it, ``index`` (1, .., S, T), and H.

    ``first`` is the number of the row that ``index`` counts from, where that depends on the length; ``scaled`` are the
    nodes behind that only multiply by a number.
    """

    x: ir.Value
    table: Array
    index: ir.Value
    heads: int
    first: ir.Value | None
    scaled: tuple[ir.Node, ...]


@dataclasses.dataclass(frozen=True)
class RaiseRelativeLogitsPass(RewritePass):
    """Replace each product with a table of positions, gathered by pairs of tokens, by ``RelativeLogits``.

    Left alone, with the reason: a product whose table depends on the input, whose operand is not heads split from one
    matrix, or whose numbers of rows differ from example to example or from head to head.
    """

    name: ClassVar[str] = "raise-relative-logits"

    def call(self, model: ir.Model) -> RewriteResult:
        """Raise the relative logits of the main graph."""
        applied, refused = [], []
        indices: dict[tuple[ir.Value, ir.Value | None], ir.Value] = {}
        for node in tuple(model.graph):
            if node.op_type != "GatherElements" or node.domain or not _has_four_axes(node):
                continue
            try:
                found = _match(node)
            except NoMatch as reason:
                refused.append(Refused(layer_of(node), f"relative logits: {reason}"))
                continue
            _rewrite(model.graph, node, found, indices)
            applied.append(Applied("graph", "raised-relative-logits", 1))
        if applied:
            RemoveUnusedNodesPass()(model)
        return RewriteResult.of(model, applied, refused)


def _has_four_axes(node: ir.Node) -> bool:
    shape = node.outputs[0].shape
    return shape is not None and len(shape) == 4 and attribute(node, "axis", 0) in (-1, 3)


def _match(node: ir.Node) -> _Found:
    product = producer(node.inputs[0], "MatMul")
    operand = scaled_heads(product.inputs[0])
    index = producer(node.inputs[1], "Expand").inputs[0]
    if index is None or index.shape is None or any(size != 1 for size in index.shape[:-2]):
        raise NoMatch("the distances differ between examples or heads")
    factors = product.inputs[1]
    assert factors is not None
    table, first = _table(factors)
    table = table.reshape(table.shape[-3:])
    if list(table.shape[:2]) != [operand.heads, operand.width]:
        raise NoMatch(f"the table of positions has shape {table.shape} for {operand.heads} heads of {operand.width}")
    scaled, factor = _factors(node.outputs[0])
    rows = (table.transpose(2, 0, 1) * (operand.factor * factor)).astype(table.dtype)
    return _Found(operand.source, rows.reshape(len(rows), -1), index, operand.heads, first, scaled)


def _factors(value: ir.Value) -> tuple[tuple[ir.Node, ...], float]:
    """The nodes behind ``value``, or behind its transpose, that only multiply by numbers, and their product."""
    nodes: list[ir.Node] = []
    factor = 1.0
    while True:
        try:
            reader = sole_consumer(value)
        except NoMatch:
            return tuple(nodes), factor
        number = scalar(reader.inputs[1]) if len(reader.inputs) == 2 and not reader.domain else None
        if reader.op_type in ("Mul", "Div") and number:
            nodes.append(reader)
            factor *= number if reader.op_type == "Mul" else 1 / number
        elif reader.op_type != "Transpose" or reader.domain:
            return tuple(nodes), factor
        value = reader.outputs[0]


def _table(value: ir.Value) -> tuple[Array, ir.Value | None]:
    """The (H, d, R) factors behind ``value``, and the row that the model's numbers count from."""
    try:
        return _three_axes(evaluate(value)), None
    except NoMatch:
        pass
    cut = value.producer()
    while cut is not None and cut.op_type != "Slice":
        others = [constant(other) for other in cut.inputs[1:] if other is not None]
        swapped = cut.op_type in ("Add", "Mul") and constant(cut.inputs[0]) is not None
        if cut.op_type not in _BY_ROW or (not swapped and any(other is None for other in others)):
            raise NoMatch(f"the table of positions depends on '{cut.op_type}'")
        source = cut.inputs[1 if swapped else 0]
        cut = source.producer() if source is not None else None
    rows = constant(cut.inputs[0]) if cut is not None else None
    if cut is None or rows is None or rows.ndim != 2:
        raise NoMatch("the table of positions depends on the input")
    given = map(scalar, cut.inputs[3:])  # the axis and the step, which are 0 and 1 where they are not given
    if any(number != usual for number, usual in zip(given, (0, 1), strict=False)):
        raise NoMatch("the table of positions depends on the input")
    whole, less = (_three_axes(evaluate(value, {cut.outputs[0]: some})) for some in (rows, rows[:-1]))
    if whole.shape[-1] != len(rows) or not np.allclose(whole[..., :-1], less, rtol=1e-4, atol=1e-6):
        raise NoMatch("the rows of the table of positions are not treated one by one")
    return whole, cut.inputs[1]


def _three_axes(table: Array) -> Array:
    if not 3 <= table.ndim <= 4 or table.size != np.prod(table.shape[-3:]):
        raise NoMatch(f"the table of positions has shape {table.shape}")
    return table


def _rewrite(
    graph: ir.Graph, node: ir.Node, found: _Found, indices: dict[tuple[ir.Value, ir.Value | None], ir.Value]
) -> None:
    wanted = (found.index, found.first)
    if wanted not in indices:
        indices[wanted] = _plain_index(graph, node, *wanted)
    result = node.outputs[0]
    raised = new_node(
        "RelativeLogits",
        [found.x, add_initializer(graph, "position_table", found.table), indices[wanted]],
        like=node,
        domain=CANONICAL,
        num_heads=found.heads,
    )
    raised.outputs[0].type, raised.outputs[0].shape = result.type, result.shape
    graph.opset_imports.setdefault(CANONICAL, 1)
    graph.insert_before(node, raised)
    redirect(result, raised.outputs[0])
    for scaled in found.scaled:
        assert scaled.inputs[0] is not None
        redirect(scaled.outputs[0], scaled.inputs[0])


def _plain_index(graph: ir.Graph, node: ir.Node, index: ir.Value, first: ir.Value | None) -> ir.Value:
    """(S, T): the row of the whole table for each pair of tokens."""
    assert index.shape is not None
    sizes = index.shape
    if len(sizes) > 2:
        axes = add_initializer(graph, "index_axes", np.arange(len(sizes) - 2, dtype=np.int64))
        squeeze = new_node("Squeeze", [index, axes])
        graph.insert_before(node, squeeze)
        index = squeeze.outputs[0]
    if first is not None:
        add = new_node("Add", [index, first])
        graph.insert_before(node, add)
        index = add.outputs[0]
    index.type, index.shape = ir.TensorType(ir.DataType.INT64), ir.Shape(list(sizes[-2:]))
    return index
