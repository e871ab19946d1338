"""Drop the key bias and move the value bias behind the attention.

    softmax_j( q . (k_j + bk) ) = softmax_j( q . k_j )             bk shifts a whole row of logits
    sum_j p_j (v_j + bv) Wo + bo = sum_j p_j v_j Wo + (bo + bv Wo)  because sum_j p_j = 1

Both hold for every mask that leaves each query at least one key. Afterwards a value channel whose weights are zero is
exactly zero, which is what the passes after this one look for.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import onnx_ir as ir

from compactor.passes.base import Applied, NoMatch, Refused, RewritePass, RewriteResult
from compactor.passes.graph.blocks import attention_blocks
from compactor.passes.graph.matching import add_to_bias, layer_of


@dataclasses.dataclass(frozen=True)
class FoldValueBiasesPass(RewritePass):
    """Fold ``bv Wo`` into the output bias and drop ``bk``, for every canonical attention block."""

    name: ClassVar[str] = "fold-value-biases"

    def call(self, model: ir.Model) -> RewriteResult:
        """Fold the biases of the main graph's attention blocks."""
        applied, refused = [], []
        for node, block in attention_blocks(model.graph):
            if isinstance(block, NoMatch):
                refused.append(Refused(layer_of(node), str(block)))
                continue
            key_bias, value_bias = block.key.bias, block.value.bias
            if key_bias is not None:
                block.key.refill(block.key.weight, None)
                applied.append(Applied(block.layer, "key-bias", 1))
            if value_bias is not None:
                block.value.refill(block.value.weight, None)
                block.output.refill(
                    block.output.weight, add_to_bias(block.output.bias, value_bias, block.output.weight)
                )
                applied.append(Applied(block.layer, "value-bias", 1))
        return RewriteResult.of(model, applied, refused)
