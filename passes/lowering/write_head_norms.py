"""Spell out norms of each head.

    HeadRMSNormalization(x; num_heads=H)   ==>   Reshape(RMSNormalization(Reshape(x, (-1, H, d))), Shape(x))

Queries and keys that are normalised head by head are (B, S, H*d) in the canonical dialect, or (T, H*d) once packed.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from compactor.passes.base import Applied, RewritePass, RewriteResult
from compactor.passes.graph.heads import HEAD_NORMS
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
class WriteHeadNormsPass(RewritePass):
    """Replace every ``HeadRMSNormalization`` and ``HeadLayerNormalization`` by the standard operator on heads."""

    name: ClassVar[str] = "write-head-norms"

    def call(self, model: ir.Model) -> RewriteResult:
        """Rewrite the main graph."""
        applied = []
        for node in tuple(model.graph):
            if node.domain == CANONICAL and node.op_type in HEAD_NORMS.values():
                _rewrite(model.graph, node)
                applied.append(Applied(layer_of(node), "written-head-norm", 1))
        model.graph.opset_imports.pop(CANONICAL, None)  # the last of its operators
        return RewriteResult.of(model, applied)


def _rewrite(graph: ir.Graph, node: ir.Node) -> None:
    x, result = node.inputs[0], node.outputs[0]
    weight = constant(node.inputs[1])
    assert x is not None and weight is not None
    target = np.array([-1, int(attribute(node, "num_heads", 0)), len(weight)], dtype=np.int64)
    nodes: list[ir.Node] = []

    def emit(op_type: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        nodes.append(new_node(op_type, inputs, like=node, **attributes))
        nodes[-1].outputs[0].type = result.type
        return nodes[-1].outputs[0]

    apart = emit("Reshape", x, add_initializer(graph, "heads_apart", target))
    op_type = next(standard for standard, ours in HEAD_NORMS.items() if ours == node.op_type)
    normed = emit(op_type, apart, *node.inputs[1:], axis=-1, epsilon=float(attribute(node, "epsilon", 1e-5)))
    sizes = emit("Shape", x)
    sizes.type = ir.TensorType(ir.DataType.INT64)
    merged = emit("Reshape", normed, sizes)
    merged.shape = result.shape
    graph.insert_before(node, nodes)
    redirect(result, merged)
    graph.remove(node, safe=True)
