"""Attention and feed-forward sublayers that the passes did not see as such, and so left as they are.

An export of a model with such blocks is right, but not compact: who ships it should know. A block is looked for by what
it cannot do without: an ``Attention`` operator or a softmax that weighs values, an activation between two matrices.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import onnx_ir as ir

from compactor.passes.base import NoMatch
from compactor.passes.canonical.normalize_attention import NormalizeAttentionPass
from compactor.passes.canonical.raise_attention import RaiseAttentionPass
from compactor.passes.canonical.raise_rotary import RaiseRotaryPass
from compactor.passes.graph.blocks import attention_blocks, match_feed_forward
from compactor.passes.graph.matching import attribute, constant, layer_of
from compactor.passes.graph.pointwise import is_pointwise

_PASSES = (RaiseAttentionPass.name, RaiseRotaryPass.name, NormalizeAttentionPass.name)
_LINEAR = ("Abs", "Add", "Div", "Mul", "Neg", "Pow", "Sqrt", "Sub")
"""Pointwise operators that stand between layers without being an activation: residuals, scales, norms."""


def find_unrecognised(model: ir.Model, refused: Iterable[Mapping[str, Any]]) -> list[dict[str, str]]:
    """The blocks of a canonical graph that the structure passes cannot work on, in graph order.

    Args:
        model: After ``canonicalisation``.
        refused: What its passes said of what they left alone: ``pass``, ``layer`` and ``reason``. Of several reasons
            for one node, the first is told.

    Returns:
        Entries of ``path`` (a label or the name of a node), ``kind`` (``attention`` or ``feed_forward``), ``reason``.
    """
    said: dict[str | None, str] = {}
    for entry in refused:
        if entry["pass"] in _PASSES:
            said.setdefault(entry["layer"], entry["reason"])
    found = {
        node: ("attention", said.get(node.name, str(block)))
        for node, block in attention_blocks(model.graph)
        if isinstance(block, NoMatch)
    }
    for node in model.graph:
        if node.op_type == "Softmax" and not node.domain and _weighs_values(node):
            found[node] = ("attention", said.get(node.name, "its softmax was not raised to an attention"))
        elif node.op_type == "MatMul" and not node.domain and _follows_activation(node):
            try:
                match_feed_forward(node)
            except NoMatch as reason:
                found[node] = ("feed_forward", str(reason))
    return [
        {"path": layer_of(node), "kind": found[node][0], "reason": found[node][1]}
        for node in model.graph
        if node in found
    ]


def _weighs_values(softmax: ir.Node) -> bool:
    """Whether a softmax over the last axis multiplies something that is no constant."""
    shape = softmax.outputs[0].shape
    last = attribute(softmax, "axis", -1) in (-1, len(shape) - 1 if shape is not None else -1)
    readers = [usage.node for usage in softmax.outputs[0].uses()]
    while len(readers) == 1 and readers[0].op_type in ("Cast", "Mul", "Reshape", "Where"):
        readers = [usage.node for usage in readers[0].outputs[0].uses()]
    return last and any(node.op_type in ("Einsum", "MatMul") and _of_activations(node) for node in readers)


def _of_activations(node: ir.Node) -> bool:
    return all(value is not None and constant(value) is None for value in node.inputs)


def _follows_activation(matmul: ir.Node) -> bool:
    """Whether a linear layer of tokens (B, S, N) reads an activation that stands behind another matrix."""
    value, weight = matmul.inputs[0], constant(matmul.inputs[1])
    if value is None or value.shape is None or len(value.shape) != 3 or weight is None or weight.ndim != 2:
        return False
    pending, seen, bent = [value], set[ir.Node](), False
    while pending:
        current = pending.pop().producer()
        if current is None or current in seen:
            continue
        if is_pointwise(current):
            seen.add(current)
            bent = bent or current.op_type not in _LINEAR
            pending += [operand for operand in current.inputs if operand is not None]
        elif bent and current.op_type == "MatMul":
            return True
    return False
