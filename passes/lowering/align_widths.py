"""Pad widths up with zeros to a multiple that the target's kernels like.

fp16 tensor cores want multiples of 8; int8 kernels on CPU write whole cache lines where a width is a multiple of 16,
and read them where it is one of 64. Padding is exact: a zero Q.K channel adds nothing to the logits, a zero V
channel meets a zero row of Wo, and a zero neuron meets a zero row of W2.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from compactor.passes.base import Applied, RewritePass, RewriteResult
from compactor.passes.graph.blocks import AttentionBlock, attention_blocks, feed_forward_blocks
from compactor.passes.graph.matching import Array, Linear


@dataclasses.dataclass(frozen=True)
class AlignWidthsPass(RewritePass):
    """Round head widths and feed-forward widths up.

    Attributes:
        head: Multiple for the Q.K and V width of a head; 1 leaves them.
        neurons: Multiple for feed-forward widths; 1 leaves them.
        waste: Largest share of neurons that may be added; None sets no limit. A block that would grow more is rounded
            to a half or a quarter of the multiple, or left alone. A multiple of that quarter is good enough and stays.
        same: Also give Q.K and V the same width, which fused GPU kernels ask for.
    """

    name: ClassVar[str] = "align-widths"
    head: int = 1
    neurons: int = 1
    waste: float | None = None
    same: bool = False

    def call(self, model: ir.Model) -> RewriteResult:
        """Pad the main graph's blocks."""
        applied = []
        for _, block in attention_blocks(model.graph):
            if not isinstance(block, AttentionBlock):
                continue
            heads, kv_heads = block.heads, block.kv_heads
            qk, v = block.query.weight.shape[1] // heads, block.value.weight.shape[1] // kv_heads
            new_qk, new_v = _round_up(qk, self.head), _round_up(v, self.head)
            if self.same:
                new_qk = new_v = max(new_qk, new_v)
            if block.normed:  # a mean over a head's channels counts zeros too
                new_qk = qk
            if block.value_norm is not None:
                new_v = v
            if new_qk > qk:
                if block.rotary is not None:
                    block.rotary.pin(qk)
                    for node in block.rotary.nodes:
                        node.outputs[0].shape = None
                _widen_columns(block.query, heads, new_qk)
                _widen_columns(block.key, kv_heads, new_qk)
                for term in block.terms:
                    term.refill(_pad(term.table, heads, new_qk), heads)
            if new_v > v:
                _widen_columns(block.value, kv_heads, new_v)
                block.output.refill(_pad(block.output.weight.T, heads, new_v).T, block.output.bias)
            if new_qk > qk or new_v > v:
                block.node.outputs[0].shape = None
                applied.append(Applied(block.layer, "padded-channel", (new_qk - qk + new_v - v) * heads))
        for feed_forward in feed_forward_blocks(model.graph):
            width = self._neurons(feed_forward.width)
            extra = width - feed_forward.width
            if extra:
                for layer in feed_forward.inputs:
                    _widen_columns(layer, 1, width)
                feed_forward.output.refill(_pad(feed_forward.output.weight.T, 1, width).T, feed_forward.output.bias)
                for node in feed_forward.region:
                    node.outputs[0].shape = None
                applied.append(Applied(feed_forward.layer, "padded-neuron", extra))
        return RewriteResult.of(model, applied)

    def _neurons(self, width: int) -> int:
        """The width that ``width`` neurons are padded to."""
        if self.waste is None:
            return _round_up(width, self.neurons)
        multiples = [max(self.neurons // part, 1) for part in (1, 2, 4)]
        if width % multiples[-1] == 0:
            return width
        limit = width * (1 + self.waste)
        return next((padded for m in multiples if (padded := _round_up(width, m)) <= limit), width)


def _round_up(width: int, multiple: int) -> int:
    return -(-width // multiple) * multiple


def _pad(matrix: Array, heads: int, width: int) -> Array:
    """Widen every head's slice of the last axis to ``width`` with zeros."""
    split = matrix.reshape(*matrix.shape[:-1], heads, -1)
    padding = [(0, 0)] * (split.ndim - 1) + [(0, width - split.shape[-1])]
    return np.pad(split, padding).reshape(*matrix.shape[:-1], heads * width)


def _widen_columns(layer: Linear, heads: int, width: int) -> None:
    layer.refill(_pad(layer.weight, heads, width), None if layer.bias is None else _pad(layer.bias, heads, width))
