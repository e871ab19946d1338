"""Move scale between the neurons of a ReLU and the rows that read them.

    relu(x W1 A + b1 A) A^-1 W2 = relu(x W1 + b1) W2

because ``relu(a z) = a relu(z)`` for positive ``a``.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import onnx_ir as ir

from compactor.passes.base import Applied, RewritePass, RewriteResult
from compactor.passes.graph.blocks import feed_forward_blocks
from compactor.passes.graph.equalising import factors, norms, scaled


@dataclasses.dataclass(frozen=True)
class ScaleReluNeuronsPass(RewritePass):
    """Equalise every feed-forward block whose activation is one ``Relu``."""

    name: ClassVar[str] = "scale-relu-neurons"

    def call(self, model: ir.Model) -> RewriteResult:
        """Scale the main graph's neurons."""
        applied = []
        for block in feed_forward_blocks(model.graph):
            if [node.op_type for node in block.region] != ["Relu"]:
                continue
            (up,), down = block.inputs, block.output
            by = factors(norms(up.weight, 0, up.bias), norms(down.weight, axis=1))
            if (by == 1).all():
                continue
            up.refill(scaled(up.weight, by), None if up.bias is None else scaled(up.bias, by))
            down.refill(scaled(down.weight, 1 / by[:, None]), down.bias)
            applied.append(Applied(block.layer, "scaled-neuron", int((by != 1).sum())))
        return RewriteResult.of(model, applied)
