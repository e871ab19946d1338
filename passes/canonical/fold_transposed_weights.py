"""Store a weight the way it is multiplied.

    MatMul(x, Transpose(W))   ==>   MatMul(x, W^T stored)

Exporters fold the transposition of a weight by themselves, but for a table that something else reads too: the head of a
model with tied embeddings. In the canonical graph every weight of a linear layer is a constant (in, out).
``share-transposed-weights`` makes one of the two again, at the end.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from compactor.passes.base import Applied, RewritePass, RewriteResult
from compactor.passes.graph.matching import add_initializer, attribute, constant, layer_of


@dataclasses.dataclass(frozen=True)
class FoldTransposedWeightsPass(RewritePass):
    """Replace the transpose of a constant matrix that a ``MatMul`` multiplies with by a constant."""

    name: ClassVar[str] = "fold-transposed-weights"

    def call(self, model: ir.Model) -> RewriteResult:
        """Fold the main graph's weights."""
        applied = []
        for node in tuple(model.graph):
            if node.op_type != "Transpose" or node.domain or tuple(attribute(node, "perm", (1, 0))) != (1, 0):
                continue
            weight, value = constant(node.inputs[0]), node.outputs[0]
            if weight is None or weight.ndim != 2 or value.is_graph_output():
                continue
            readers = [usage for usage in value.uses() if usage.node.op_type == "MatMul" and usage.idx == 1]
            if not readers:
                continue
            assert node.inputs[0] is not None
            stored = add_initializer(model.graph, f"{node.inputs[0].name}.transposed", weight.T)
            for usage in readers:
                usage.node.replace_input_with(1, stored)
            applied.append(Applied(layer_of(readers[0].node), "stored-transposed", len(readers)))
        RemoveUnusedNodesPass()(model)
        return RewriteResult.of(model, applied)
