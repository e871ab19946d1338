"""Let rotary embeddings read their cosines and sines by position, from tables that no example has of its own.

    RotaryEmbedding(x, cos(p f), sin(p f))  (1, S, r/2)   ==>   RotaryEmbedding(x, C, S, positions)   C, S (P, r/2)

Exporters write the angles with a batch of one, which ONNX Runtime refuses for any other. Here row p of C holds
``cos(p f)``, computed in float32 as the model does, for every position up to the model's longest text; where no length
limits it, or an angle is something else, the rows are computed in the graph, once for all layers.

Symbols: B batch, S sequence, r rotated channels of a head, f (r/2,) frequencies, P positions.
Reference: Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021, equation 34.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from compactor.passes.base import Applied, NoMatch, Refused, RewritePass, RewriteResult
from compactor.passes.graph.evaluating import evaluate, spelling
from compactor.passes.graph.matching import add_initializer, constant, layer_of, new_node, producer


@dataclasses.dataclass(frozen=True)
class TabulateRotaryPass(RewritePass):
    """Give each ``RotaryEmbedding`` tables and positions.

    One that has positions already stays. Left alone, with the reason: one whose caches are not of shape (1, S, r/2) and
    computed from a range of positions along the second axis of a graph input (B, S).

    Attributes:
        positions: P; None where nothing limits the length.
    """

    name: ClassVar[str] = "tabulate-rotary"
    positions: int | None = None

    def call(self, model: ir.Model) -> RewriteResult:
        """Rewrite the rotary embeddings of the main graph."""
        applied, refused = [], []
        writer = _Writer(model.graph, self.positions)
        for node in tuple(model.graph):
            has_places = len(node.inputs) > 3 and node.inputs[3] is not None
            if node.op_type != "RotaryEmbedding" or node.domain or has_places:
                continue
            try:
                for value in node.inputs[1:3]:
                    _check(value)
                tables = [writer.table(value) for value in node.inputs[1:3]]
                places = writer.places(node.inputs[1])
            except NoMatch as reason:
                refused.append(Refused(layer_of(node), str(reason)))
                continue
            node.resize_inputs(4)
            for index, value in enumerate((*tables, places), start=1):
                node.replace_input_with(index, value)
            applied.append(Applied(layer_of(node), "tabulated-rotary", 1))
        if applied:
            RemoveUnusedNodesPass()(model)
        return RewriteResult.of(model, applied, refused)


class _Writer:
    """Makes tables and positions, each once for all that read equal ones."""

    def __init__(self, graph: ir.Graph, positions: int | None) -> None:
        self._graph, self._positions = graph, positions
        self._tables: dict[bytes, ir.Value] = {}
        self._rows: dict[object, ir.Value] = {}
        self._places: dict[ir.Value, ir.Value] = {}

    def table(self, cache: ir.Value | None) -> ir.Value:
        """Rows by position (P or S, r/2) of a cache (1, S, r/2). Raises NoMatch."""
        span = _range_of(cache)
        assert cache is not None
        if self._positions is None:
            told = spelling(cache, {span.outputs[0]: None})
            if told not in self._rows:
                axis = add_initializer(self._graph, "rotary_axis", np.array([0], dtype=np.int64))
                squeeze = new_node("Squeeze", [cache, axis])
                squeeze.outputs[0].type = cache.type
                self._graph.insert_after(_node_of(cache), squeeze)
                self._rows[told] = squeeze.outputs[0]
            return self._rows[told]
        numbers: dict[ir.Value, NDArray[Any]] = {span.outputs[0]: np.arange(self._positions)}
        rows = np.ascontiguousarray(evaluate(cache, numbers)[0])
        key = rows.tobytes()
        if key not in self._tables:
            self._tables[key] = add_initializer(self._graph, "rotary_table", rows)
        return self._tables[key]

    def places(self, cache: ir.Value | None) -> ir.Value:
        """Positions (B, S) of every token. Raises NoMatch."""
        span = _range_of(cache)
        source = _length_of(span)
        if source not in self._places:
            shape = new_node("Shape", [source])
            expand = new_node("Expand", [span.outputs[0], shape.outputs[0]])
            expand.outputs[0].type, expand.outputs[0].shape = span.outputs[0].type, source.shape
            self._graph.insert_after(span, [shape, expand])
            self._places[source] = expand.outputs[0]
        return self._places[source]


def _node_of(value: ir.Value) -> ir.Node:
    node = value.producer()
    if node is None:
        raise NoMatch("the angles of the rotary embedding are an input or a constant")
    return node


def _range_of(cache: ir.Value | None) -> ir.Node:
    """The ``Range`` of positions 0, 1, 2, ... behind a cache."""
    found: dict[ir.Node, None] = {}
    pending = [cache]
    while pending:
        value = pending.pop()
        if value is None or constant(value) is not None:
            continue
        node = producer(value, "Range", "Cos", "Sin", "Mul", "MatMul", "Cast", "Unsqueeze", "Transpose")
        if node.op_type == "Range":
            found[node] = None
        else:
            pending += [node.inputs[0], *(node.inputs[1:] if node.op_type in ("Mul", "MatMul") else ())]
    start, step = (constant(next(iter(found)).inputs[i]) for i in (0, 2)) if len(found) == 1 else (None, None)
    if start is None or step is None or start.item() != 0 or step.item() != 1:
        raise NoMatch("the angles of the rotary embedding are no multiples of positions 0, 1, 2, ...")
    return next(iter(found))


def _check(cache: ir.Value | None) -> None:
    """Raises NoMatch unless a cache is (1, S, r/2), a row for each position of an input (B, S)."""
    span = _range_of(cache)
    _length_of(span)
    assert cache is not None
    shape = evaluate(cache, {span.outputs[0]: np.arange(3)}).shape
    if len(shape) != 3 or shape[:2] != (1, 3):
        raise NoMatch("the angles of the rotary embedding are not one row a position")


def _length_of(span: ir.Node) -> ir.Value:
    """The graph input (B, S) whose S is the length of a ``Range``."""
    value = producer(span.inputs[1], "Squeeze", "Gather").inputs[0]
    shape = producer(value, "Shape")
    source = shape.inputs[0]
    if source is None or not source.is_graph_input() or source.shape is None or len(source.shape) != 2:
        raise NoMatch("the length of the rotary embedding is not that of an input (B, S)")
    if span.outputs[0].shape is None or span.outputs[0].shape[0] != source.shape[1]:
        raise NoMatch("the rotary embedding does not run over the tokens of an input")
    return source
