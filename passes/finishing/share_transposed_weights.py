"""Keep one copy of a table that is read by row and multiplied with as well: tied embeddings.

    Gather(W, ids), MatMul(x, W^T stored)   ==>   Gather(W, ids), MatMul(x, Transpose(W))

The file then holds the table once. ONNX Runtime transposes it when it opens the graph, so that running costs the same.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from compactor.passes.base import Applied, RewritePass, RewriteResult
from compactor.passes.graph.matching import constant, new_node


@dataclasses.dataclass(frozen=True)
class ShareTransposedWeightsPass(RewritePass):
    """Compute each constant matrix that is a table's transpose from that table.

    Attributes:
        min_elements: Smaller ones are not worth a node.
    """

    name: ClassVar[str] = "share-transposed-weights"
    min_elements: int = 1_000_000

    def call(self, model: ir.Model) -> RewriteResult:
        """Share the main graph's tables."""
        graph, applied = model.graph, []
        tables = [value for value in graph.initializers.values() if self._is_large(value) and _is_table(value)]
        for value in tuple(graph.initializers.values()):
            if not self._is_large(value) or value in tables or value.is_graph_output():
                continue
            table = next((table for table in tables if _is_transpose(value, table)), None)
            if table is None:
                continue
            node = new_node("Transpose", [table], perm=(1, 0))
            node.outputs[0].type, node.outputs[0].shape = value.type, value.shape
            graph.insert_before(graph[0], node)
            value.replace_all_uses_with(node.outputs[0])
            graph.initializers.pop(str(value.name))
            applied.append(Applied(str(table.name), "shared-table", 1))
        return RewriteResult.of(model, applied)

    def _is_large(self, value: ir.Value) -> bool:
        tensor = value.const_value
        return tensor is not None and len(tensor.shape) == 2 and tensor.size >= self.min_elements


def _is_table(value: ir.Value) -> bool:
    """Whether it is read by row."""
    return any(usage.node.op_type == "Gather" and usage.idx == 0 for usage in value.uses())


def _is_transpose(value: ir.Value, table: ir.Value) -> bool:
    first, second = constant(value), constant(table)
    if first is None or second is None or first.dtype != second.dtype or first.shape != second.shape[::-1]:
        return False
    return bool((first[:, 0] == second[0]).all()) and np.array_equal(first, second.T)
