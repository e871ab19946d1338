"""Drop the key bias and move the value bias behind the attention.

    softmax_j( q . (k_j + bk) ) = softmax_j( q . k_j )             bk shifts a whole row of logits
    sum_j p_j (v_j + bv) Wo + bo = sum_j p_j v_j Wo + (bo + bv Wo)  because sum_j p_j = 1

Both hold for every mask that leaves each query at least one key; one that may leave none keeps the value bias. A rotary
embedding turns ``bk`` by the position of the key, so that it moves logits: it stays in the channels that are turned.
Afterwards a value channel whose weights are zero is
exactly zero, which is what the passes after this one look for.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from compactor.passes.base import Applied, NoMatch, Refused, RewritePass, RewriteResult
from compactor.passes.graph.additive_masks import may_hide_all
from compactor.passes.graph.blocks import AttentionBlock, attention_blocks
from compactor.passes.graph.matching import Array, add_to_bias, layer_of


@dataclasses.dataclass(frozen=True)
class FoldValueBiasesPass(RewritePass):
    """Fold ``bv Wo`` into the output bias and drop ``bk``, for every canonical attention block.

    A value bias stays, with the reason, where the mask may hide every key from a query.
    """

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
                kept = _turned(block, key_bias)
                if not np.array_equal(kept, key_bias):
                    block.key.refill(block.key.weight, kept)
                    applied.append(Applied(block.layer, "key-bias", 1))
            if value_bias is not None and may_hide_all(node.inputs[3] if len(node.inputs) > 3 else None):
                refused.append(Refused(block.layer, "the mask may hide every key, so the value bias is no constant"))
            elif value_bias is not None:
                block.value.refill(block.value.weight, None)
                block.output.refill(
                    block.output.weight, add_to_bias(block.output.bias, value_bias, block.output.weight)
                )
                applied.append(Applied(block.layer, "value-bias", 1))
        return RewriteResult.of(model, applied, refused)


def _turned(block: AttentionBlock, bias: Array) -> Array:
    """A key bias in the channels that a rotary embedding turns, 0 in the others."""
    if block.rotary is None:
        return np.zeros_like(bias)
    turned = block.rotary.partners(len(bias) // block.heads) >= 0
    return np.where(np.tile(turned, block.heads), bias, 0).astype(bias.dtype)
