"""Store large embedding tables in int8 with one scale per row.

    Gather(table, ids)   ==>   Cast(Gather(int8 table, ids)) * Gather(scales, ids)

A row is rounded to 1/254 of its largest entry. Only the rows that are read are ever widened to float32.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from compactor.passes.base import Applied, RewritePass, RewriteResult
from compactor.passes.graph.int8 import quantize_symmetric
from compactor.passes.graph.matching import add_initializer, attribute, constant, new_node, redirect


@dataclasses.dataclass(frozen=True)
class QuantizeEmbeddingsPass(RewritePass):
    """Quantize each float32 table of at least ``min_elements`` that a ``Gather`` reads by row.

    Attributes:
        min_elements: Smaller tables (positions, token types) stay in float32.
    """

    name: ClassVar[str] = "quantize-embeddings"
    min_elements: int = 1_000_000

    def call(self, model: ir.Model) -> RewriteResult:
        """Quantize the main graph's embedding tables."""
        applied = []
        for node in tuple(model.graph):
            if node.op_type != "Gather" or node.domain or attribute(node, "axis", 0) != 0:
                continue
            table = constant(node.inputs[0])
            if table is None or table.ndim != 2 or table.dtype != np.float32 or table.size < self.min_elements:
                continue
            assert node.inputs[0] is not None
            name = node.inputs[0].name
            quantized, scale = quantize_symmetric(table, axis=1)
            rows = new_node("Gather", [add_initializer(model.graph, f"{name}.int8", quantized), node.inputs[1]], axis=0)
            scales = new_node(
                "Gather", [add_initializer(model.graph, f"{name}.scale", scale[:, None]), node.inputs[1]], axis=0
            )
            real = new_node("Cast", [rows.outputs[0]], to=ir.DataType.FLOAT.value)
            product = new_node("Mul", [real.outputs[0], scales.outputs[0]])
            product.outputs[0].type, product.outputs[0].shape = node.outputs[0].type, node.outputs[0].shape
            model.graph.insert_before(node, [rows, scales, real, product])
            redirect(node.outputs[0], product.outputs[0])
            applied.append(Applied(str(name), "int8-embedding", 1))
        RemoveUnusedNodesPass()(model)
        return RewriteResult.of(model, applied)
