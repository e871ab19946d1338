"""Give every query head keys and values of its own, for kernels that know no sharing.

    Attention(Q (B, S, H*d), K, V (B, S, G*d))   ==>   Attention(Q, K, V (B, S, H*d)), each head of K and V H/G times

The columns of the key and value projections are repeated, which is exact; ONNX Runtime's ``MultiHeadAttention`` and the
spelled-out form want it so. The CPU's ``Attention`` takes shared heads as they are.

Symbols: B batch, S sequence, H query heads, G key/value heads, d head width.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import onnx_ir as ir

from compactor.passes.base import Applied, RewritePass, RewriteResult
from compactor.passes.graph.blocks import AttentionBlock, attention_blocks
from compactor.passes.graph.liveness import repeat_heads


@dataclasses.dataclass(frozen=True)
class RepeatSharedHeadsPass(RewritePass):
    """Repeat the key and value heads that query heads share, in the weights."""

    name: ClassVar[str] = "repeat-shared-heads"

    def call(self, model: ir.Model) -> RewriteResult:
        """Rewrite the main graph's attention blocks."""
        applied = []
        for _, block in attention_blocks(model.graph):
            if not isinstance(block, AttentionBlock) or not block.shared:
                continue
            heads, kv_heads = block.heads, block.kv_heads
            for layer in (block.key, block.value):
                bias = None if layer.bias is None else repeat_heads(layer.bias, kv_heads, heads)
                layer.refill(repeat_heads(layer.weight, kv_heads, heads), bias)
            block.set_heads(heads, heads)
            applied.append(Applied(block.layer, "repeated-head", heads - kv_heads))
        return RewriteResult.of(model, applied)
