"""Label the nodes of every sublayer with the place it has in the original model.

Later passes narrow or delete blocks; the label (node metadata ``compactor.layer``) is how counts, refusals, the
manifest and a profile by layer still speak of ``layers.3.attention``.
"""

from __future__ import annotations

import collections
import dataclasses
from typing import ClassVar

import onnx_ir as ir

from compactor.passes.base import Applied, NoMatch, RewritePass, RewriteResult
from compactor.passes.graph.blocks import AttentionBlock, FeedForwardBlock, attention_blocks, feed_forward_blocks
from compactor.passes.graph.matching import ENCODER_STATES, LAYER_KEY, sole_consumer


@dataclasses.dataclass(frozen=True)
class LabelLayersPass(RewritePass):
    """Number attention blocks in graph order; a feed-forward block takes the number of the attention before it.

    An attention over ``encoder_hidden_states`` is a ``cross_attention`` and has the number of the attention before it.

    Attributes:
        stack: What the labels begin with, such as ``decoder``; nothing where the model has one stack.
    """

    name: ClassVar[str] = "label-layers"
    stack: str = ""

    def call(self, model: ir.Model) -> RewriteResult:
        """Label the main graph."""
        blocks: dict[ir.Node, AttentionBlock | FeedForwardBlock | None] = {}
        for node, attention in attention_blocks(model.graph):
            blocks[node] = attention if isinstance(attention, AttentionBlock) else None
        for block in feed_forward_blocks(model.graph):
            blocks[block.output.matmul] = block
        index = -1
        taken: collections.Counter[str] = collections.Counter()
        applied = []
        for node in model.graph:
            if node not in blocks:
                continue
            found = blocks[node]
            kind = _kind(node, found)
            index += kind == "attention"
            label = f"{self.stack}.layers.{max(index, 0)}.{kind}".lstrip(".")
            taken[label] += 1
            if taken[label] > 1:
                label += f"_{taken[label]}"
            members = (*found.nodes, *_residual(found)) if found is not None else (node,)
            renamed = any(member.metadata_props.get(LAYER_KEY) != label for member in members)
            for member in members:
                member.metadata_props[LAYER_KEY] = label
            applied.append(Applied(label, "labelled-sublayer", int(renamed)))
        return RewriteResult.of(model, applied)


def _kind(node: ir.Node, block: AttentionBlock | FeedForwardBlock | None) -> str:
    if node.op_type != "Attention":
        return "feed_forward"
    reads_encoder = isinstance(block, AttentionBlock) and block.key.input.name == ENCODER_STATES
    return "cross_attention" if reads_encoder else "attention"


def _residual(block: AttentionBlock | FeedForwardBlock) -> list[ir.Node]:
    """The addition behind a block and, in a post-norm model, the LayerNormalization behind that."""
    try:
        add = sole_consumer(block.output.output)
    except NoMatch:
        return []
    if add.op_type != "Add":
        return []
    users = list(add.outputs[0].uses())
    norms = [usage.node for usage in users if usage.node.op_type == "LayerNormalization"]
    return [add, *norms] if len(users) == 1 else [add]
