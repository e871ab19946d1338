"""Attention masks as terms added to the logits, the one spelling that every attention kernel reads.

    Expand(visible: bool)  ==>  Where(visible, 0, HIDDEN_LOGIT)

Masks are shared by the layers of a model, so each is spelled out once a graph.

A query that sees no key at all gets zeros from a bool mask, in PyTorch as in ONNX Runtime, and the mean of something
from an added number that is finite. Where padding is all that hides, such a query belongs to a text without tokens;
a mask that is more (a window and padding) has them, among the padded ones, and their zeros are kept.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from compactor.passes.base import NoMatch
from compactor.passes.graph.masks import hides_padding, summarize
from compactor.passes.graph.matching import add_initializer, constant, new_node

# Half of float16's lowest: exp() of it is 0 in every float type, and a logit or a second mask on top stays finite.
HIDDEN_LOGIT = float(np.finfo(np.float16).min) / 2

# Swallows any logit in float32 and float64, so that a query which sees no key weighs all alike, as it does in PyTorch
# where the lowest float hides; ONNX Runtime's Attention gives zeros for the lowest float itself.
EVEN_LOGIT = -1e30


def check_mask(mask: ir.Value | None, heads: int, dtype: ir.DataType) -> None:
    """Raise NoMatch unless ``mask`` is absent, or of bool or ``dtype`` with axes that are known to fit the logits."""
    if mask is None:
        return
    if mask.dtype not in (ir.DataType.BOOL, dtype):
        raise NoMatch(f"the mask is of type {mask.dtype}")
    if mask.shape is None or not 2 <= len(mask.shape) <= 4:
        raise NoMatch(f"the mask has shape {mask.shape}")
    if len(mask.shape) > 2 and mask.shape[-3] not in (1, heads):
        raise NoMatch(f"the mask has {mask.shape[-3]} values on its head axis for {heads} heads")


def may_hide_all(mask: ir.Value | None) -> bool:
    """Whether a mask hides padding and more, so that it may hide every key from a query of a text that has tokens."""
    return mask is not None and mask.dtype == ir.DataType.BOOL and summarize(mask) is None and hides_padding(mask)


class AdditiveMasks:
    """Float forms of the masks of one graph, made on first use and placed right behind the mask.

    Attributes:
        narrow: Read a mask before its ``Expand``, for kernels that broadcast; otherwise keep all its axes.
        infinite: Whether the kernel gives zeros for a query whose logits are all minus infinity, so that this is what
            a mask that may hide all keys adds.
    """

    def __init__(self, graph: ir.Graph, *, narrow: bool, infinite: bool = False) -> None:
        self.graph, self.narrow, self.infinite = graph, narrow, infinite
        self._made: dict[ir.Value, ir.Value] = {}
        self._seeing: dict[ir.Value, ir.Value] = {}

    def of(self, mask: ir.Value, dtype: ir.DataType) -> ir.Value:
        """The form of ``mask`` that is added to logits of ``dtype``."""
        source = _before_expand(mask) if self.narrow else mask
        if source.dtype != ir.DataType.BOOL:
            return source
        if source not in self._made:
            hidden = -np.inf if self.infinite and may_hide_all(source) else HIDDEN_LOGIT
            node = hide_where_false(self.graph, source, dtype, hidden)
            node.outputs[0].name = f"{source.name}_additive"
            producer = source.producer()
            if producer is not None:
                self.graph.insert_after(producer, node)
            else:
                self.graph.insert_before(self.graph[0], node)
            self._made[source] = node.outputs[0]
        return self._made[source]

    def seeing(self, mask: ir.Value, dtype: ir.DataType) -> ir.Value:
        """(B or 1, H or 1, S): 1 for a query that sees a key, 0 for one that sees none; of a bool mask (..., S, T)."""
        if mask not in self._seeing:
            numbers = new_node("Cast", [mask], to=dtype.value)
            last = add_initializer(self.graph, "last_axis", np.array([-1], dtype=np.int64))
            most = new_node("ReduceMax", [numbers.outputs[0], last], keepdims=0)
            most.outputs[0].type = ir.TensorType(dtype)
            producer = mask.producer()
            if producer is not None:
                self.graph.insert_after(producer, [numbers, most])
            else:
                self.graph.insert_before(self.graph[0], [numbers, most])
            self._seeing[mask] = most.outputs[0]
        return self._seeing[mask]


def hide_where_false(graph: ir.Graph, visible: ir.Value, dtype: ir.DataType, number: float = HIDDEN_LOGIT) -> ir.Node:
    """``Where(visible, 0, number)``, not placed yet."""
    zero, hidden = (
        add_initializer(graph, name, np.array(value, dtype=dtype.numpy()))
        for name, value in (("visible_logit", 0), ("hidden_logit", number))
    )
    node = new_node("Where", [visible, zero, hidden])
    node.outputs[0].type, node.outputs[0].shape = ir.TensorType(dtype), visible.shape
    return node


def _before_expand(mask: ir.Value) -> ir.Value:
    """What ``Expand`` made ``mask`` from, if it has as many axes: the addition broadcasts as ``Expand`` would."""
    node = mask.producer()
    if node is None or node.op_type != "Expand" or node.domain:
        return mask
    source = node.inputs[0]
    if source is None or constant(source) is not None or source.shape is None or source.dtype is None:
        return mask
    return source if mask.shape is not None and len(source.shape) == len(mask.shape) else mask
