"""Give ``Attention`` its bool mask as a float term, made once for all layers.

    Attention(Q, K, V, visible)   ==>   Attention(Q, K, V, Where(visible, 0, hidden))

ONNX Runtime's CPU kernel turns a bool mask into such a term by itself, in every layer anew. Agrees wherever a query
has a key to see.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import onnx_ir as ir

from compactor.passes.base import Applied, RewritePass, RewriteResult
from compactor.passes.graph.additive_masks import AdditiveMasks
from compactor.passes.graph.matching import layer_of


@dataclasses.dataclass(frozen=True)
class WriteMasksAsFloatsPass(RewritePass):
    """Replace the bool masks of ``Attention`` nodes with float32 queries; other masks stay as they are."""

    name: ClassVar[str] = "write-masks-as-floats"

    def call(self, model: ir.Model) -> RewriteResult:
        """Rewrite the main graph's masks."""
        masks = AdditiveMasks(model.graph, narrow=False, infinite=True)
        applied = []
        for node in tuple(model.graph):
            mask = node.inputs[3] if node.op_type == "Attention" and len(node.inputs) > 3 else None
            query = node.inputs[0] if mask is not None else None
            if mask is None or query is None or mask.dtype != ir.DataType.BOOL or query.dtype != ir.DataType.FLOAT:
                continue
            node.replace_input_with(3, masks.of(mask, ir.DataType.FLOAT))
            applied.append(Applied(layer_of(node), "mask-as-float", 1))
        return RewriteResult.of(model, applied)
