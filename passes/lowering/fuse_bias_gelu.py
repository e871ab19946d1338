"""Fuse a bias and the Gelu after it.

    Gelu(x + b)                      ==>   com.microsoft::BiasGelu(x, b)
    Gelu(x + b; approximate=tanh)    ==>   com.microsoft::FastGelu(x, b)

For CUDA, where the widest activation of the model is then read and written once. The exact Gelu stays exact.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from compactor.passes.base import Applied, NoMatch, Refused, RewritePass, RewriteResult
from compactor.passes.graph.matching import (
    MICROSOFT,
    attribute,
    constant,
    layer_of,
    new_node,
    producer,
    redirect,
    sole_consumer,
)


@dataclasses.dataclass(frozen=True)
class FuseBiasGeluPass(RewritePass):
    """Fuse each ``Gelu`` with the ``Add`` of a constant vector before it.

    Left alone, with the reason: a Gelu that no such Add feeds, and one whose Add is read elsewhere.
    """

    name: ClassVar[str] = "fuse-bias-gelu"

    def call(self, model: ir.Model) -> RewriteResult:
        """Fuse the main graph's activations."""
        applied, refused = [], []
        for node in tuple(model.graph):
            if node.op_type != "Gelu" or node.domain:
                continue
            try:
                source, bias = _match(node)
            except NoMatch as reason:
                refused.append(Refused(layer_of(node), str(reason)))
                continue
            op_type = "FastGelu" if attribute(node, "approximate", "none") == "tanh" else "BiasGelu"
            fused = new_node(op_type, [source, bias], like=node, domain=MICROSOFT)
            fused.outputs[0].type, fused.outputs[0].shape = node.outputs[0].type, node.outputs[0].shape
            model.graph.insert_before(node, fused)
            redirect(node.outputs[0], fused.outputs[0])
            model.graph.remove(node, safe=True)
            applied.append(Applied(layer_of(node), "fused-gelu", 1))
        if applied:
            model.graph.opset_imports.setdefault(MICROSOFT, 1)
            RemoveUnusedNodesPass()(model)
        return RewriteResult.of(model, applied, refused)


def _match(gelu: ir.Node) -> tuple[ir.Value, ir.Value]:
    add = producer(gelu.inputs[0], "Add")
    sole_consumer(add.outputs[0])
    for index in (0, 1):
        source, bias = add.inputs[index], add.inputs[1 - index]
        vector = constant(bias)
        if source is not None and bias is not None and vector is not None and vector.ndim == 1 and vector.size > 1:
            return source, bias
    raise NoMatch("the Add before it has no constant vector")
