"""Remove sublayers of which nothing is left but a bias.

    x + sublayer(x) = x + b              when every head is dead, or no neuron is left
    x + norm(sublayer(x)) = x + norm(b)  where a norm stands behind the sublayer, too (Gemma)

The bias is folded onward into whatever produced ``x`` (the shift of a LayerNormalization, the bias of a linear layer,
a constant embedding), and the sublayer is no node at all; where ``x`` is read elsewhere too, ``x + b`` stays, as it
does where both ``x`` and the sum are inputs or outputs of the graph.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from compactor.passes.base import Applied, NoMatch, Refused, RewritePass, RewriteResult
from compactor.passes.graph.blocks import AttentionBlock, attention_blocks, feed_forward_blocks
from compactor.passes.graph.matching import Array, Linear, add_initializer, attribute, constant, redirect, sole_consumer
from compactor.passes.graph.shifting import fold_shift

_NORMS = ("LayerNormalization", "RMSNormalization")


@dataclasses.dataclass(frozen=True)
class RemoveEmptySublayersPass(RewritePass):
    """Replace emptied attention and feed-forward blocks by their bias, folded onward where possible.

    Left alone, with the reason: an emptied block whose output does not feed a residual addition.
    """

    name: ClassVar[str] = "remove-empty-sublayers"

    def call(self, model: ir.Model) -> RewriteResult:
        """Remove the emptied sublayers of the main graph."""
        applied, refused = [], []
        empty = [
            (block.layer, block.output)
            for _, block in attention_blocks(model.graph)
            if isinstance(block, AttentionBlock) and not block.live_heads.any()
        ]
        empty += [(block.layer, block.output) for block in feed_forward_blocks(model.graph) if block.width == 0]
        reduced = []
        for layer, output in empty:
            try:
                reduced.append((layer, _replace_by_bias(model.graph, output)))
            except NoMatch as reason:
                refused.append(Refused(layer, str(reason)))
        RemoveUnusedNodesPass()(model)  # what only the emptied blocks read must not count as a reader below
        for layer, residual in reduced:
            folded = _fold_residual(model.graph, residual)
            applied.append(Applied(layer, "empty-sublayer-folded" if folded else "empty-sublayer-bias-kept", 1))
        return RewriteResult.of(model, applied, refused)


def _replace_by_bias(graph: ir.Graph, output: Linear) -> ir.Node:
    """Let the residual addition behind ``output`` add its bias (D,) instead. Returns the addition."""
    bias = np.zeros(output.weight.shape[1], output.weight.dtype) if output.bias is None else np.asarray(output.bias)
    result = output.output
    residual = sole_consumer(result)
    normed = residual.outputs[0]
    is_norm = residual.op_type in _NORMS and attribute(residual, "axis", -1) in (-1, 2)
    if is_norm and len(normed.uses()) == 1 and not normed.is_graph_output():  # of a constant row, it makes another
        result, bias = normed, _normed(residual, bias)
        residual = sole_consumer(result)
    if residual.op_type != "Add":
        raise NoMatch(f"the output of the emptied block feeds '{residual.op_type}', not a residual addition")
    index = 0 if residual.inputs[0] is result else 1
    stream = residual.inputs[1 - index]
    if stream is result or constant(stream) is not None:
        raise NoMatch("the output of the emptied block feeds no residual addition")
    residual.replace_input_with(index, add_initializer(graph, f"{residual.outputs[0].name}.bias", bias))
    return residual


def _normed(norm: ir.Node, row: Array) -> Array:
    """What a norm makes of a row (D,), computed in float64 and rounded once. Raises NoMatch."""
    weight, shift = (constant(norm.inputs[n]) if len(norm.inputs) > n else np.zeros(1) for n in (1, 2))
    if weight is None or shift is None:
        raise NoMatch("the norm behind the emptied block has weights that are no constants")
    x = row.astype(np.float64)
    if norm.op_type == "LayerNormalization":
        x -= x.mean()
    root = np.sqrt((x * x).mean() + float(attribute(norm, "epsilon", 1e-5)))
    return np.asarray((x / root * weight + shift).astype(row.dtype))


def _fold_residual(graph: ir.Graph, residual: ir.Node) -> bool:
    """Fold the constant operand of ``residual`` into its stream. Returns whether the addition is gone."""
    index = 0 if constant(residual.inputs[0]) is not None else 1
    bias, stream = constant(residual.inputs[index]), residual.inputs[1 - index]
    assert bias is not None and stream is not None
    if residual.outputs[0].is_graph_output() and (stream.is_graph_output() or stream.is_graph_input()):
        return False  # one value cannot carry two names of the model's signature
    if bias.any() and not fold_shift(graph, stream, bias, reader=residual):
        return False
    redirect(residual.outputs[0], stream)
    graph.remove(residual, safe=True)
    return True
