"""Write projections of one activation that are spread alike as one product.

    Gather(x Wq, spread), Gather(x Wk, spread), Gather(x Wv, spread)
        ==>  y = Reshape(x [Wq Wk Wv], (-1, N)),  Gather(y, 3 spread), Gather(y, 3 spread + 1), Gather(y, 3 spread + 2)

Row ``3 t + c`` of ``y`` is the c-th part of token t, so that the gathers which spread packed tokens around attention
(``pack-tokens``) take the parts apart at no cost. One large product is faster than three small ones where tokens are
few, and is quantized, scaled and shifted once.
"""

from __future__ import annotations

import collections
import dataclasses
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from compactor.passes.base import Applied, NoMatch, RewritePass, RewriteResult
from compactor.passes.graph.matching import (
    Linear,
    add_initializer,
    attribute,
    constant,
    layer_of,
    linear_into,
    new_node,
    redirect,
)


@dataclasses.dataclass(frozen=True)
class MergeProjectionsPass(RewritePass):
    """Merge linear layers of equal width that read the same packed activation and are read by one gather of rows each.

    What is read in another way, or by itself, stays as it is.
    """

    name: ClassVar[str] = "merge-projections"

    def call(self, model: ir.Model) -> RewriteResult:
        """Merge the main graph's projections."""
        graph = model.graph
        parts: dict[tuple[ir.Value, ir.Value, int], list[_Part]] = collections.defaultdict(list)
        for node in graph:
            part = _match(node)
            if part is not None:
                parts[part.layer.input, part.spread, part.layer.weight.shape[1]].append(part)
        indices = _Indices(graph)
        applied = []
        for (_, _, width), group in parts.items():
            if len(group) > 1 and width:
                _merge(graph, group, width, indices)
                applied.append(Applied(layer_of(group[0].layer.matmul), "merged-projection", len(group)))
        RemoveUnusedNodesPass()(model)
        return RewriteResult.of(model, applied)


@dataclasses.dataclass(frozen=True)
class _Part:
    layer: Linear
    gather: ir.Node

    @property
    def spread(self) -> ir.Value:
        """The rows that are gathered."""
        value = self.gather.inputs[1]
        assert value is not None
        return value


def _match(node: ir.Node) -> _Part | None:
    """The linear layer whose rows ``node`` gathers, and nobody else reads."""
    if node.op_type != "Gather" or node.domain or attribute(node, "axis", 0) != 0:
        return None
    source = node.inputs[0]
    if source is None or constant(node.inputs[1]) is not None or len(source.uses()) != 1 or source.is_graph_output():
        return None
    try:
        return _Part(linear_into(source), node)
    except NoMatch:
        return None


def _merge(graph: ir.Graph, group: list[_Part], width: int, indices: _Indices) -> None:
    """Every check is behind us."""
    first = min((part.layer.matmul for part in group), key=list(graph).index)
    name = f"{group[0].layer.matmul.inputs[1].name}.merged"  # type: ignore[union-attr]
    weight = add_initializer(graph, name, np.concatenate([part.layer.weight for part in group], axis=1))
    nodes = [new_node("MatMul", [group[0].layer.input, weight], like=first)]
    biases = [part.layer.bias for part in group]
    if any(bias is not None for bias in biases):
        zeros = np.zeros(width, group[0].layer.weight.dtype)
        whole = np.concatenate([zeros if bias is None else bias for bias in biases])
        nodes.append(new_node("Add", [nodes[-1].outputs[0], add_initializer(graph, f"{name}.bias", whole)], like=first))
    target = add_initializer(graph, f"merged_rows_{width}", np.array([-1, width], np.int64))
    nodes.append(new_node("Reshape", [nodes[-1].outputs[0], target], like=first))
    for node in nodes:
        node.outputs[0].type = group[0].layer.output.type
    graph.insert_before(first, nodes)
    for number, part in enumerate(group):
        rows = indices.of(part.spread, len(group), number)
        gather = new_node("Gather", [nodes[-1].outputs[0], rows], like=part.gather, axis=0)
        gather.outputs[0].type, gather.outputs[0].shape = part.gather.outputs[0].type, part.gather.outputs[0].shape
        graph.insert_before(part.gather, gather)
        redirect(part.gather.outputs[0], gather.outputs[0])


class _Indices:
    """``count * spread + number``, once in the graph, where ``spread`` is computed."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self._made: dict[tuple[ir.Value, int, int], ir.Value] = {}

    def of(self, spread: ir.Value, count: int, number: int) -> ir.Value:
        """The rows of part ``number`` of ``count``."""
        key = (spread, count, number)
        if key not in self._made:
            if number:
                step = add_initializer(self.graph, "merged_part", np.array(number, np.int64))
                self._made[key] = self._after(spread, "Add", self.of(spread, count, 0), step)
            else:
                factor = add_initializer(self.graph, "merged_parts", np.array(count, np.int64))
                self._made[key] = self._after(spread, "Mul", spread, factor)
        return self._made[key]

    def _after(self, spread: ir.Value, op_type: str, *inputs: ir.Value) -> ir.Value:
        node = new_node(op_type, inputs)
        node.outputs[0].type, node.outputs[0].shape = spread.type, spread.shape
        behind = inputs[0].producer()
        if behind is None:
            self.graph.insert_before(self.graph[0], node)
        else:
            self.graph.insert_after(behind, node)
        return node.outputs[0]
