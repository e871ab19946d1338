"""Write the residual addition before a LayerNormalization as ``Sum``.

    LayerNormalization(Add(x, y))   ==>   LayerNormalization(Sum(x, y))

ONNX Runtime fuses ``Add`` + ``LayerNormalization`` into ``SkipLayerNormalization`` at session start, which on its CPU
provider is about three times slower than the pair. ``Sum`` computes the same and is left alone by that fusion.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import onnx_ir as ir

from compactor.passes.base import Applied, RewritePass, RewriteResult
from compactor.passes.graph.matching import constant, layer_of


@dataclasses.dataclass(frozen=True)
class WriteResidualsAsSumPass(RewritePass):
    """Turn each ``Add`` of two activations that a ``LayerNormalization`` reads into ``Sum``.

    Attributes:
        packed: Leave alone those that token packing made (T, D) matrices, which carry no shape: ONNX Runtime does not
            fuse them, and runs ``Add`` on all threads, ``Sum`` on one.
    """

    name: ClassVar[str] = "write-residuals-as-sum"
    packed: bool = False

    def call(self, model: ir.Model) -> RewriteResult:
        """Rewrite the main graph's residuals."""
        applied = []
        for node in model.graph:
            if node.op_type != "Add" or node.domain or any(constant(value) is not None for value in node.inputs):
                continue
            if self.packed and node.outputs[0].shape is None:
                continue
            if any(usage.node.op_type == "LayerNormalization" for usage in node.outputs[0].uses()):
                node.op_type = "Sum"
                applied.append(Applied(layer_of(node), "residual-as-sum", 1))
        return RewriteResult.of(model, applied)
