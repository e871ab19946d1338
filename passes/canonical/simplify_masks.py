"""Write every padding mask in one plain form, and drop masks that hide nothing.

    any spelling of "key j of example b is padding"   ==>   Expand(Unsqueeze(Cast(attention_mask, bool)), (B, 1, S, S))

In a decoder it is ``encoder_attention_mask`` that cross-attention reads, and the mask is (B, 1, S, keys).

Exporters spell the mask differently in every release (additive, boolean, gathered through an index grid); the later
passes and ONNX Runtime meet one. The forms differ only for an example without any real token, which has no defined
output. A mask that hides more than padding by the lowest float gets a number with which a query that sees no key weighs
all alike in ONNX Runtime, too. See ``graph/masks.py`` for how a mask is recognised.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from compactor.passes.base import Applied, RewritePass, RewriteResult
from compactor.passes.graph.additive_masks import EVEN_LOGIT
from compactor.passes.graph.masks import PADDING_MASK, PADDING_MASKS, summarize, weighs_hidden_evenly
from compactor.passes.graph.matching import add_initializer, constant, layer_of, new_node

# Operators that a float mask comes through, and which of their operands hold its numbers.
_PARTS = {"Add": (0, 1), "Expand": (0,), "Gather": (0,), "Identity": (0,), "Reshape": (0,), "Where": (1, 2)}


@dataclasses.dataclass(frozen=True)
class SimplifyMasksPass(RewritePass):
    """Replace recognised padding masks of ``Attention`` nodes by the plain one; drop all-visible ones.

    A mask that is anything else (causal, a bias per head, a float per position) is left as it is.
    """

    name: ClassVar[str] = "simplify-masks"

    def call(self, model: ir.Model) -> RewriteResult:
        """Simplify the masks of the main graph."""
        applied = []
        even = _EvenMasks(model.graph)
        plain: ir.Value | None = None
        for node in tuple(model.graph):
            if node.op_type != "Attention" or node.domain or len(node.inputs) < 4 or node.inputs[3] is None:
                continue
            mask = node.inputs[3]
            summary = summarize(mask)
            if summary is None:
                if weighs_hidden_evenly(mask) and even.of(mask) is not mask:
                    node.replace_input_with(3, even.of(mask))
                    applied.append(Applied(layer_of(node), "even-mask", 1))
                continue
            if summary.keeps_everything:
                node.replace_input_with(3, None)
                node.resize_inputs(3)
                applied.append(Applied(layer_of(node), "visible-mask", 1))
            elif summary.is_padding_mask and not _is_plain(node.inputs[3]):
                plain = plain or _plain_mask(model.graph)
                node.replace_input_with(3, plain)
                applied.append(Applied(layer_of(node), "padding-mask", 1))
        RemoveUnusedNodesPass()(model)
        return RewriteResult.of(model, applied)


def _is_plain(mask: ir.Value) -> bool:
    """Whether ``mask`` is already spelled Expand(Unsqueeze(Cast(attention_mask)))."""
    value: ir.Value | None = mask
    for op_type in ("Expand", "Unsqueeze", "Cast"):
        node = value.producer() if value is not None else None
        if node is None or node.op_type != op_type:
            return False
        value = node.inputs[0]
    return value is not None and value.name in PADDING_MASKS and mask.dtype == ir.DataType.BOOL


def _plain_mask(graph: ir.Graph) -> ir.Value:
    """(B, 1, S, K) bool, True where the key is a real token; ONNX Runtime wants the query axis spelled out."""
    source = next(value for value in graph.inputs if value.name in PADDING_MASKS)
    queries = source
    if source.name != PADDING_MASK:  # a decoder's queries are its own tokens
        queries = next(value for value in graph.inputs if value.name == "input_ids")
    assert source.shape is not None and queries.shape is not None
    batch, keys_length, length = source.shape[0], source.shape[1], queries.shape[1]
    visible = new_node("Cast", [source], to=ir.DataType.BOOL.value)
    axes = add_initializer(graph, "mask_axes", np.array([1, 2], dtype=np.int64))
    keys = new_node("Unsqueeze", [visible.outputs[0], axes])
    size = new_node("Shape", [queries], start=1, end=2)
    one = add_initializer(graph, "mask_one", np.array([1], dtype=np.int64))
    target = new_node("Concat", [one, one, size.outputs[0], one], axis=0)
    mask = new_node("Expand", [keys.outputs[0], target.outputs[0]])
    for node, dtype, shape in (
        (visible, ir.DataType.BOOL, [batch, keys_length]),
        (keys, ir.DataType.BOOL, [batch, 1, 1, keys_length]),
        (size, ir.DataType.INT64, [1]),
        (target, ir.DataType.INT64, [4]),
        (mask, ir.DataType.BOOL, [batch, 1, length, keys_length]),
    ):
        node.outputs[0].type, node.outputs[0].shape = ir.TensorType(dtype), ir.Shape(shape)
    mask.outputs[0].name = "padding_mask"
    graph.insert_before(graph[0], [visible, keys, size, target, mask])
    return mask.outputs[0]


class _EvenMasks:
    """Masks as they are, but for the numbers by which they hide, which become EVEN_LOGIT; each is written once.

    The old ones stay for readers that are no attention. Two that are added stay more than one, as they were.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._written: dict[ir.Value, ir.Value] = {}

    def of(self, mask: ir.Value) -> ir.Value:
        """The mask to read instead; itself where no number changes."""
        if mask not in self._written:
            self._written[mask] = self._write(mask)
        return self._written[mask]

    def _write(self, mask: ir.Value) -> ir.Value:
        array, node = constant(mask), mask.producer()
        if array is not None:
            even = np.maximum(array, np.asarray(EVEN_LOGIT, array.dtype))
            return mask if np.array_equal(even, array) else add_initializer(self._graph, "even_logit", even)
        if node is None or node.domain:
            return mask
        if node.op_type in _PARTS:
            operands = list(node.inputs)
            for index in _PARTS[node.op_type]:
                operand = operands[index]
                operands[index] = None if operand is None else self.of(operand)
            if operands == list(node.inputs):
                return mask
            options = {name: each.value for name, each in node.attributes.items()}
            return self._insert(node, new_node(node.op_type, operands, like=node, **options))
        summary = summarize(mask)
        if summary is None or min(summary.padded, summary.real) >= EVEN_LOGIT or mask.dtype is None:
            return mask
        number = add_initializer(self._graph, "even_logit", np.array(EVEN_LOGIT, mask.dtype.numpy()))
        return self._insert(node, new_node("Max", [mask, number], like=node))

    def _insert(self, node: ir.Node, written: ir.Node) -> ir.Value:
        result, old = written.outputs[0], node.outputs[0]
        result.type, result.shape = old.type, old.shape
        self._graph.insert_after(node, written)
        return result
