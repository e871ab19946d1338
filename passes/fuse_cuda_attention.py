"""Write attention as ONNX Runtime's fused operator for CUDA.

    Attention(Q, K, V, mask)   ==>   com.microsoft::MultiHeadAttention(Q, K, V, attention_bias = mask as a float term)

The mask goes in as ``attention_bias`` and never as ``key_padding_mask``. On CUDA, the (B, S) padding mask is served by
the unfused kernel alone; with a bias the memory-efficient one stays eligible, in fp16 where the sequence length and
both head widths are multiples of 8 (the widths may differ). Without a mask, flash attention is eligible where Q.K and V
are equally wide. A mask of lengths alone keeps more kernels eligible, but cannot say left padding or holes.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from compactor.passes._additive import AdditiveMasks, check_mask
from compactor.passes._base import Applied, NoMatch, Refused, RewritePass, RewriteResult
from compactor.passes._match import MICROSOFT, attribute, is_read, layer_of, new_node, redirect


@dataclasses.dataclass(frozen=True)
class FuseCudaAttentionPass(RewritePass):
    """Replace each 3-D ``Attention`` by ``MultiHeadAttention``.

    Left alone, with the reason: an attention that is not in the 3-D form with its scale pinned, whose query heads share
    keys, with a soft cap, a cache or exposed logits, or with a mask that is not (B or 1, H or 1, S, S).
    """

    name: ClassVar[str] = "fuse-cuda-attention"

    def call(self, model: ir.Model) -> RewriteResult:
        """Fuse every attention of the main graph."""
        masks = AdditiveMasks(model.graph, narrow=False)
        applied, refused = [], []
        for node in tuple(model.graph):
            if node.op_type != "Attention" or node.domain:
                continue
            try:
                _check(node)
            except NoMatch as reason:
                refused.append(Refused(layer_of(node), str(reason)))
                continue
            _rewrite(model.graph, node, masks)
            applied.append(Applied(layer_of(node), "fused-attention", 1))
        if applied:
            model.graph.opset_imports.setdefault(MICROSOFT, 1)
            RemoveUnusedNodesPass()(model)
        return RewriteResult.of(model, applied, refused)


def _check(node: ir.Node) -> None:
    heads = int(attribute(node, "q_num_heads", 0))
    if not heads or attribute(node, "scale", None) is None:
        raise NoMatch("the attention is not in the 3-D form with a pinned scale")
    if attribute(node, "kv_num_heads", heads) != heads:
        raise NoMatch("query heads share key/value heads (grouped-query attention)")
    if attribute(node, "softcap", 0.0):
        raise NoMatch("the logits have a soft cap")
    if any(value is not None for value in node.inputs[4:]) or any(map(is_read, node.outputs[1:])):
        raise NoMatch("the attention keeps a key/value cache or exposes its logits")
    mask = _mask(node)
    check_mask(mask, heads, ir.DataType.FLOAT)
    if mask is not None and mask.shape is not None and (len(mask.shape) != 4 or 1 in mask.shape[2:]):
        raise NoMatch(f"the mask has shape {mask.shape}, not (batch, heads, queries, keys) spelled out")


def _mask(node: ir.Node) -> ir.Value | None:
    return node.inputs[3] if len(node.inputs) > 3 else None


def _rewrite(graph: ir.Graph, node: ir.Node, masks: AdditiveMasks) -> None:
    mask = _mask(node)
    fused = new_node(
        "MultiHeadAttention",
        [*node.inputs[:3], *((None, None, masks.of(mask, ir.DataType.FLOAT)) if mask is not None else ())],
        like=node,
        domain=MICROSOFT,
        num_heads=int(attribute(node, "q_num_heads", 0)),
        scale=float(attribute(node, "scale", 0.0)),
        **({"unidirectional": 1} if attribute(node, "is_causal", 0) else {}),
    )
    fused.name = node.name
    result = node.outputs[0]
    fused.outputs[0].type, fused.outputs[0].shape = result.type, result.shape
    graph.insert_before(node, fused)
    redirect(result, fused.outputs[0])
    graph.remove(node, safe=True)
