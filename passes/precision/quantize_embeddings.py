"""Store large embedding tables in int8 with one scale per row.

    Gather(table, ids)   ==>   Cast(Gather(int8 table, ids)) * Gather(scales, ids)

A row is rounded as the column of a weight is, because it is one where a model's head is tied to the table, and both are
then stored once. Only the rows that are read are ever widened to float32.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from compactor.passes.base import Applied, Refused, RewritePass, RewriteResult
from compactor.passes.graph.int8 import quantize_weight
from compactor.passes.graph.int8_layers import add_switch, choose
from compactor.passes.graph.matching import add_initializer, attribute, constant, new_node


@dataclasses.dataclass(frozen=True)
class QuantizeEmbeddingsPass(RewritePass):
    """Quantize each float32 table of at least ``min_elements`` that a ``Gather`` reads by row.

    Attributes:
        min_elements: Smaller tables (positions, token types) stay in float32.
        keep: Names of tables that stay in float32.
        switched: Leave the float32 tables beside, and let a graph input for each choose.
    """

    name: ClassVar[str] = "quantize-embeddings"
    min_elements: int = 1_000_000
    keep: tuple[str, ...] = ()
    switched: bool = False

    def call(self, model: ir.Model) -> RewriteResult:
        """Quantize the main graph's embedding tables."""
        applied, refused = [], []
        switches: dict[str, ir.Value] = {}
        for node in tuple(model.graph):
            if node.op_type != "Gather" or node.domain or attribute(node, "axis", 0) != 0:
                continue
            table = constant(node.inputs[0])
            if table is None or table.ndim != 2 or table.dtype != np.float32 or table.size < self.min_elements:
                continue
            assert node.inputs[0] is not None
            name = str(node.inputs[0].name)
            if name in self.keep:
                refused.append(Refused(name, "kept in float32 by the recipe"))
                continue
            codes, scale = quantize_weight(table.T)
            rows = new_node("Gather", [add_initializer(model.graph, f"{name}.int8", codes.T), node.inputs[1]], axis=0)
            scales = new_node(
                "Gather", [add_initializer(model.graph, f"{name}.scale", scale[:, None]), node.inputs[1]], axis=0
            )
            real = new_node("Cast", [rows.outputs[0]], to=ir.DataType.FLOAT.value)
            product = new_node("Mul", [real.outputs[0], scales.outputs[0]])
            product.outputs[0].type, product.outputs[0].shape = node.outputs[0].type, node.outputs[0].shape
            model.graph.insert_before(node, [rows, scales, real, product])
            switch = add_switch(model.graph, name) if self.switched and name not in switches else switches.get(name)
            if switch is not None:
                switches[name] = switch
            choose(model.graph, node.outputs[0], product.outputs[0], switch)
            applied.append(Applied(name, "int8-embedding", 1))
        RemoveUnusedNodesPass()(model)
        return RewriteResult.of(model, applied, refused)
