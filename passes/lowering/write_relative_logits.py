"""Spell out logits that depend on the distance between two tokens.

    RelativeLogits(x, E, index)   ==>   GatherElements(x_h E_h^T[:, lo:hi], index - lo)

Only the rows of the table that the length of the text can reach are multiplied: lo and hi are the least and the
greatest number in ``index``. What depends on the length alone is computed once for all layers.

Symbols: B batch, S queries, T keys, H heads, d head width, R rows of the table.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from compactor.passes.base import Applied, RewritePass, RewriteResult
from compactor.passes.graph.heads import SWAP
from compactor.passes.graph.matching import (
    CANONICAL,
    add_initializer,
    attribute,
    constant,
    layer_of,
    new_node,
    redirect,
)


@dataclasses.dataclass(frozen=True)
class WriteRelativeLogitsPass(RewritePass):
    """Replace every ``RelativeLogits`` by MatMul and GatherElements, which every runtime knows."""

    name: ClassVar[str] = "write-relative-logits"

    def call(self, model: ir.Model) -> RewriteResult:
        """Rewrite the main graph."""
        applied = []
        writer = _Writer(model.graph)
        for node in tuple(model.graph):
            if node.op_type == "RelativeLogits" and node.domain == CANONICAL:
                writer.write(node)
                applied.append(Applied(layer_of(node), "written-relative-logits", 1))
        if applied:
            RemoveUnusedNodesPass()(model)
        return RewriteResult.of(model, applied)


class _Writer:
    """Writes nodes, and once what several of them share."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._spans: dict[ir.Value, tuple[ir.Value, ir.Value, ir.Value]] = {}
        self._indices: dict[tuple[ir.Value, int], ir.Value] = {}

    def write(self, node: ir.Node) -> None:
        """Replace one node."""
        x, table, index = node.inputs
        heads = int(attribute(node, "num_heads", 0))
        rows = constant(table)
        assert x is not None and index is not None and rows is not None
        factors = np.ascontiguousarray(rows.reshape(len(rows), heads, -1).transpose(1, 2, 0))
        first, end, numbers = self._span(node, index)
        result = node.outputs[0]

        def emit(op_type: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
            return self._emit(node, result.type, op_type, *inputs, **attributes)

        split = emit("Transpose", emit("Reshape", x, self._numbers(f"split_{heads}_heads", 0, 0, heads, -1)), perm=SWAP)
        reached = emit(
            "Slice", add_initializer(self._graph, "position_factors", factors), first, end, self._numbers("axis", 2)
        )
        product = emit("MatMul", split, reached)
        if (index, heads) not in self._indices:
            batch = self._emit(node, None, "Shape", x, start=0, end=1)
            sizes = self._emit(node, None, "Shape", index)
            shape = self._emit(node, None, "Concat", batch, self._numbers("heads", heads), sizes, axis=0)
            self._indices[index, heads] = self._emit(node, numbers.type, "Expand", numbers, shape)
        gathered = emit("GatherElements", product, self._indices[index, heads], axis=3)
        gathered.shape = result.shape
        redirect(result, gathered)
        self._graph.remove(node, safe=True)

    def _span(self, node: ir.Node, index: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
        """The first row of the table in ``index`` (S, T), the one behind the last, and ``index`` counted from it."""
        if index not in self._spans:
            one = self._numbers("one", 1)
            least, most = (
                self._emit(node, None, "Reshape", self._emit(node, None, op_type, index, keepdims=0), one)
                for op_type in ("ReduceMin", "ReduceMax")
            )
            numbers = self._emit(node, None, "Sub", index, least)
            numbers = self._emit(node, None, "Cast", numbers, to=ir.DataType.INT32.value)  # half of what they take up
            numbers.type = ir.TensorType(ir.DataType.INT32)
            self._spans[index] = least, self._emit(node, None, "Add", most, one), numbers
        return self._spans[index]

    def _numbers(self, name: str, *values: int) -> ir.Value:
        return add_initializer(self._graph, f"relative_{name}", np.array(values, dtype=np.int64))

    def _emit(
        self, before: ir.Node, type_: ir.TypeProtocol | None, op_type: str, *inputs: ir.Value, **attributes: Any
    ) -> ir.Value:
        """The result of a new node in front of ``before``; of whole numbers without a type."""
        written = new_node(op_type, inputs, like=before if type_ is not None else None, **attributes)
        written.outputs[0].type = type_ or ir.TensorType(ir.DataType.INT64)
        self._graph.insert_before(before, written)
        return written.outputs[0]
