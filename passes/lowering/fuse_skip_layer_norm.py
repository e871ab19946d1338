"""Fuse a residual addition, the bias before it and the normalisation after it.

    LayerNormalization(r + (MatMul + b))   ==>   com.microsoft::SkipLayerNormalization(MatMul, r, gamma, beta, b)

For CUDA, where one kernel then reads and writes each activation once. (On the CPU provider the pair is faster: see
``write_residuals_as_sum.py``.) Where the sum itself is read again, as in pre-normalised models, it is the fused node's
fourth output.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from compactor.passes.base import Applied, NoMatch, Refused, RewritePass, RewriteResult
from compactor.passes.graph.matching import MICROSOFT, attribute, constant, is_read, layer_of, new_node, redirect


@dataclasses.dataclass(frozen=True)
class FuseSkipLayerNormPass(RewritePass):
    """Fuse each ``Add`` or ``Sum`` of two activations that a ``LayerNormalization`` reads. Needs current shapes.

    Left alone, with the reason: a normalisation over other axes than the last, in another precision than float32 or
    with its statistics exposed, a gain or shift that is not a constant vector, and operands that are not known to be of
    one (B, S, D) shape.
    """

    name: ClassVar[str] = "fuse-skip-layer-norm"

    def call(self, model: ir.Model) -> RewriteResult:
        """Fuse the main graph's residuals."""
        applied, refused = [], []
        for node in tuple(model.graph):
            if node.op_type != "LayerNormalization" or node.domain:
                continue
            total = node.inputs[0].producer() if node.inputs[0] is not None else None
            if total is None or not _adds_two_activations(total):
                continue
            layer = layer_of(total)
            try:
                _check(node, total)
            except NoMatch as reason:
                refused.append(Refused(layer, str(reason)))
                continue
            _rewrite(model.graph, node, total)
            applied.append(Applied(layer, "fused-residual", 1))
        if applied:
            model.graph.opset_imports.setdefault(MICROSOFT, 1)
            RemoveUnusedNodesPass()(model)
        return RewriteResult.of(model, applied, refused)


def _adds_two_activations(node: ir.Node) -> bool:
    return (
        node.op_type in ("Add", "Sum")
        and node.domain == ""
        and len(node.inputs) == 2
        and all(value is not None and constant(value) is None for value in node.inputs)
    )


def _check(norm: ir.Node, total: ir.Node) -> None:
    left, right = (value.shape if value is not None else None for value in total.inputs)
    if left is None or right is None or len(left) != 3 or left != right or not isinstance(left[2], int):
        raise NoMatch(f"the residual adds shapes {left} and {right}, not known to be one (B, S, D)")
    if attribute(norm, "axis", -1) not in (-1, 2):
        raise NoMatch("the normalisation is not over the last axis")
    if attribute(norm, "stash_type", 1) != 1:
        raise NoMatch("the normalisation does not keep its statistics in float32")
    if any(map(is_read, norm.outputs[1:])):
        raise NoMatch("the statistics of the normalisation are read")
    for value in norm.inputs[1:]:
        vector = constant(value)
        if vector is None or vector.shape != (left[2],):
            raise NoMatch("the gain or shift of the normalisation is not a constant vector")


def _rewrite(graph: ir.Graph, norm: ir.Node, total: ir.Node) -> None:
    branch, skip, bias = _take_bias(total)
    beta = norm.inputs[2] if len(norm.inputs) > 2 else None
    result, summed = norm.outputs[0], total.outputs[0]
    read_again = len(summed.uses()) > 1 or summed.is_graph_output()
    fused = new_node(
        "SkipLayerNormalization",
        [branch, skip, norm.inputs[1], beta, bias] if bias is not None else [branch, skip, norm.inputs[1], beta],
        like=total,
        domain=MICROSOFT,
        outputs=4 if read_again else 1,
        epsilon=float(attribute(norm, "epsilon", 1e-5)),
    )
    fused.outputs[0].type, fused.outputs[0].shape = result.type, result.shape
    graph.insert_after(total, fused)  # not at the normalisation: other readers of the sum may stand before it
    redirect(result, fused.outputs[0])
    graph.remove(norm, safe=True)
    if read_again:
        for statistic in fused.outputs[1:3]:
            statistic.name = ""  # not computed
        again = fused.outputs[3]
        again.type, again.shape = summed.type, summed.shape
        redirect(summed, again)


def _take_bias(total: ir.Node) -> tuple[ir.Value, ir.Value, ir.Value | None]:
    """The branch without its bias, the other operand, and the bias, if one operand ends in ``Add(x, vector)``."""
    left, right = total.inputs
    assert left is not None and right is not None and left.shape is not None
    for branch, skip in ((right, left), (left, right)):
        add = branch.producer()
        if add is None or add.op_type != "Add" or add.domain or len(branch.uses()) != 1 or branch.is_graph_output():
            continue
        for index in (0, 1):
            vector, source = constant(add.inputs[1 - index]), add.inputs[index]
            if vector is not None and vector.shape == (left.shape[2],) and source is not None and source.producer():
                return source, skip, add.inputs[1 - index]
    return left, right, None
