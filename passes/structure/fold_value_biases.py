"""Drop the key bias and move the value bias behind the attention.

    softmax_j( q . (k_j + bk) ) = softmax_j( q . k_j )             bk shifts a whole row of logits
    sum_j p_j (v_j + bv) Wo + bo = sum_j p_j v_j Wo + (bo + bv Wo)  because sum_j p_j = 1

Both hold for every mask that leaves each query at least one key; one that may leave none keeps the value bias. A rotary
embedding turns ``bk`` by the position of the key, so that it moves logits: it stays in the channels that are turned,
in those that logits of keys and distances read, and in front of a norm. Afterwards a value channel whose weights are
zero is exactly zero, which is what the passes after this one look for.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from compactor.passes.base import Applied, NoMatch, Refused, RewritePass, RewriteResult
from compactor.passes.graph.additive_masks import may_hide_all
from compactor.passes.graph.blocks import AttentionBlock, attention_blocks
from compactor.passes.graph.liveness import repeat_heads
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
                kept = _mattering(block, key_bias)
                if not np.array_equal(kept, key_bias):
                    block.key.refill(block.key.weight, kept)
                    applied.append(Applied(block.layer, "key-bias", 1))
            if value_bias is not None and may_hide_all(node.inputs[3] if len(node.inputs) > 3 else None):
                refused.append(Refused(block.layer, "the mask may hide every key, so the value bias is no constant"))
            elif value_bias is not None and block.value_norm is not None:
                refused.append(Refused(block.layer, "a norm makes the value bias no constant"))
            elif value_bias is not None:
                block.value.refill(block.value.weight, None)
                row = repeat_heads(value_bias, block.kv_heads, block.heads)
                block.output.refill(block.output.weight, add_to_bias(block.output.bias, row, block.output.weight))
                applied.append(Applied(block.layer, "value-bias", 1))
        return RewriteResult.of(model, applied, refused)


def _mattering(block: AttentionBlock, bias: Array) -> Array:
    """A key bias in the channels that are normalised, that are turned or that distances read, 0 in the others."""
    matters = np.full(len(bias), block.key_norm is not None)
    if block.rotary is not None:
        matters |= np.tile(block.rotary.partners(len(bias) // block.kv_heads) >= 0, block.kv_heads)
    for term in block.key_terms:
        matters |= term.table.any(axis=0)
    return np.where(matters, bias, 0).astype(bias.dtype)
