"""Write rotary embeddings as ONNX Runtime's own operator, which its CUDA provider has in every opset.

    RotaryEmbedding(x, C, S, p)   ==>   com.microsoft::RotaryEmbedding(x, p, C, S)

Symbols: x (B, S, H*d), C and S (P, r/2), p (B, S).
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import onnx_ir as ir

from compactor.passes.base import Applied, Refused, RewritePass, RewriteResult
from compactor.passes.graph.matching import MICROSOFT, attribute, layer_of, new_node, redirect


@dataclasses.dataclass(frozen=True)
class FuseCudaRotaryPass(RewritePass):
    """Replace each 3-D ``RotaryEmbedding`` that reads tables by position; others are left alone, with the reason."""

    name: ClassVar[str] = "fuse-cuda-rotary"

    def call(self, model: ir.Model) -> RewriteResult:
        """Replace the rotary embeddings of the main graph."""
        applied, refused = [], []
        for node in tuple(model.graph):
            if node.op_type != "RotaryEmbedding" or node.domain:
                continue
            if not attribute(node, "num_heads", 0) or len(node.inputs) < 4 or node.inputs[3] is None:
                reason = "the rotary embedding is not in the 3-D form, or does not read its tables by position"
                refused.append(Refused(layer_of(node), reason))
                continue
            source, cosines, sines, places = node.inputs[:4]
            names = ("interleaved", "num_heads", "rotary_embedding_dim")
            options = {name: attribute(node, name, 0) for name in names}
            fused = new_node(
                "RotaryEmbedding", [source, places, cosines, sines], like=node, domain=MICROSOFT,
                **{name: value for name, value in options.items() if value},
            )  # fmt: skip
            fused.name = node.name
            fused.outputs[0].type, fused.outputs[0].shape = node.outputs[0].type, node.outputs[0].shape
            model.graph.insert_before(node, fused)
            redirect(node.outputs[0], fused.outputs[0])
            model.graph.remove(node, safe=True)
            applied.append(Applied(layer_of(fused), "fused-rotary", 1))
        if applied:
            model.graph.opset_imports.setdefault(MICROSOFT, 1)
        return RewriteResult.of(model, applied, refused)
