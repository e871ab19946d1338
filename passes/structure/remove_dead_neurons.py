"""Remove feed-forward neurons that are constant or that nobody reads.

    y = b2 + sum over neurons n of  phi(x W1[:, n] + b1[n]) W2[n, :]

A neuron whose column of W1 is zero is the constant phi(b1[n]): it moves into the output bias, b2 += phi(b1[n]) W2[n].
A neuron whose row of W2 is zero is dropped. In a gated block, phi(g) * u, one exactly zero factor is enough.

Symbols: D model width, N feed-forward width; W1 is (D, N), W2 is (N, D).
Reference: Lagunas et al., "Block Pruning For Faster Transformers", 2021, section 3.2 ("dim" pruning).
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from compactor.passes.base import Applied, RewritePass, RewriteResult
from compactor.passes.graph.blocks import FeedForwardBlock, feed_forward_blocks
from compactor.passes.graph.matching import add_to_bias
from compactor.passes.graph.pointwise import evaluate


@dataclasses.dataclass(frozen=True)
class RemoveDeadNeuronsPass(RewritePass):
    """Shrink every feed-forward block to its live neurons, down to a width of zero.

    The activation may be any region of pointwise operators with scalar constants. Blocks whose inner values are used
    elsewhere, whose weights are not constants, or whose activation has a constant per neuron do not match.
    """

    name: ClassVar[str] = "remove-dead-neurons"

    def call(self, model: ir.Model) -> RewriteResult:
        """Remove the dead neurons of the main graph."""
        applied = []
        for block in feed_forward_blocks(model.graph):
            unread = ~block.output.weight.any(axis=1)
            value = _constants(block)
            constant = ~np.isnan(value) & ~unread
            live = ~(unread | constant)
            if live.all():
                continue
            folded = add_to_bias(block.output.bias, value[constant], block.output.weight[constant])
            block.output.refill(block.output.weight[live], folded)
            for layer in block.inputs:
                layer.refill(layer.weight[:, live], None if layer.bias is None else layer.bias[live])
            for node in block.region:
                node.outputs[0].shape = None
            applied.append(Applied(block.layer, "unread-neuron", int(unread.sum())))
            applied.append(Applied(block.layer, "constant-neuron", int(constant.sum())))
        return RewriteResult.of(model, applied)


def _constants(block: FeedForwardBlock) -> NDArray[np.float64]:
    """``(N,)``: the value of each neuron that no input can move, NaN for the others."""
    inputs = {}
    for layer in block.inputs:
        bias = np.zeros(block.width) if layer.bias is None else layer.bias.astype(np.float64)
        inputs[layer.output] = np.where(layer.weight.any(axis=0), np.nan, bias)
    return evaluate(block.region, inputs)
