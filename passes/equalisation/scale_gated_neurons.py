"""Move scale between the values of a gated feed-forward and the rows that read its neurons.

    (phi(x Wg) * (x Wu A)) A^-1 W2 = (phi(x Wg) * (x Wu)) W2

How large a neuron is follows from the columns of both projections, for inputs of variance one: the mean square of
``phi`` by Gauss-Hermite quadrature, times that of the value.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from compactor.passes.base import Applied, NoMatch, Refused, RewritePass, RewriteResult
from compactor.passes.graph.blocks import FeedForwardBlock, feed_forward_blocks
from compactor.passes.graph.equalising import factors, norms, scaled
from compactor.passes.graph.matching import Linear
from compactor.passes.graph.pointwise import evaluate

_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(15)


@dataclasses.dataclass(frozen=True)
class ScaleGatedNeuronsPass(RewritePass):
    """Equalise every feed-forward block in which a projection is only multiplied by the activation of another."""

    name: ClassVar[str] = "scale-gated-neurons"

    def call(self, model: ir.Model) -> RewriteResult:
        """Scale the main graph's gated neurons."""
        applied, refused = [], []
        for block in feed_forward_blocks(model.graph):
            if len(block.inputs) != 2:
                continue
            try:
                value, gate = _value_and_gate(block)
            except NoMatch as reason:
                refused.append(Refused(block.layer, str(reason)))
                continue
            size = norms(value.weight, 0, value.bias) * _gate_size(block, value, gate)
            by = factors(size, norms(block.output.weight, axis=1))
            if (by == 1).all():
                continue
            value.refill(scaled(value.weight, by), None if value.bias is None else scaled(value.bias, by))
            block.output.refill(scaled(block.output.weight, 1 / by[:, None]), block.output.bias)
            applied.append(Applied(block.layer, "scaled-neuron", int((by != 1).sum())))
        return RewriteResult.of(model, applied, refused)


def _value_and_gate(block: FeedForwardBlock) -> tuple[Linear, Linear]:
    """The projection that is a factor of the result, and the other. Raises NoMatch where neither is one."""
    product = block.region[-1]
    for value, gate in (block.inputs, block.inputs[::-1]):
        users = [usage.node for usage in value.output.uses()]
        if product.op_type == "Mul" and users == [product]:
            return value, gate
    raise NoMatch("no projection is a plain factor of the neurons")


def _gate_size(block: FeedForwardBlock, value: Linear, gate: Linear) -> NDArray[np.float64]:
    """``(N,)``: the root of the mean square of each neuron's other factor."""
    spread = norms(gate.weight, 0)
    shift = np.zeros(block.width) if gate.bias is None else gate.bias.astype(np.float64)
    total = np.zeros(block.width)
    for node, weight in zip(_NODES, _WEIGHTS, strict=True):
        factor = evaluate(block.region, {gate.output: shift + spread * node, value.output: np.ones(block.width)})
        total += weight * np.square(factor)
    return np.asarray(np.sqrt(total / _WEIGHTS.sum()))
