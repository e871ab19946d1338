"""Move scale between the channels of the values and the rows of the output projection.

    (P (x Wv A)) A^-1 Wo = (P (x Wv)) Wo            the probabilities P mix tokens, never channels

The columns of ``Wv`` have int8 scales of their own, so that only the attention's result and ``Wo`` notice.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from compactor.passes.base import Applied, NoMatch, Refused, RewritePass, RewriteResult
from compactor.passes.graph.blocks import attention_blocks
from compactor.passes.graph.equalising import factors, norms, scaled
from compactor.passes.graph.liveness import repeat_heads


@dataclasses.dataclass(frozen=True)
class ScaleValuesPass(RewritePass):
    """Equalise the value channels of every canonical attention block; query heads that share them scale together."""

    name: ClassVar[str] = "scale-values"

    def call(self, model: ir.Model) -> RewriteResult:
        """Scale the main graph's values."""
        applied, refused = [], []
        for _, block in attention_blocks(model.graph):
            if isinstance(block, NoMatch):
                continue
            if block.value_norm is not None:
                refused.append(Refused(block.layer, "a norm takes the scale of the values away"))
                continue
            value, output, groups = block.value, block.output, block.kv_heads
            rows = norms(output.weight, axis=1).reshape(groups, block.heads // groups, -1)
            by = factors(norms(value.weight, 0, value.bias), np.sqrt(np.square(rows).sum(axis=1)).reshape(-1))
            if (by == 1).all():
                continue
            value.refill(scaled(value.weight, by), None if value.bias is None else scaled(value.bias, by))
            read = repeat_heads(by, groups, block.heads)[:, None]
            output.refill(scaled(output.weight, np.reciprocal(read)), output.bias)
            applied.append(Applied(block.layer, "scaled-value-channel", int((by != 1).sum())))
        return RewriteResult.of(model, applied, refused)
