"""Keep batch and heads apart where a model computes on the two as one axis.

    Reshape (B, H, a, b) -> (B*H, a, b), operators on that   ==>   the same operators on (B, H, a, b)

Older code calls a batched product of three axes, ``bmm``, and merges examples and heads for it. The operators between
such a Reshape and its inverse are written again on four axes, and the two Reshapes go.

Symbols: B batch, H heads, S sequence, d head width.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from compactor.passes.base import Applied, RewritePass, RewriteResult
from compactor.passes.graph.matching import (
    add_initializer,
    attribute,
    constant,
    layer_of,
    new_node,
    redirect,
    same_size,
    scalar,
)
from compactor.passes.graph.pointwise import is_pointwise


@dataclasses.dataclass(frozen=True)
class SplitMergedHeadsPass(RewritePass):
    """Write what is computed on ``(B*H, a, b)`` on ``(B, H, a, b)``, up to where the axes are split again.

    Follows pointwise operators with a scalar, ``MatMul``, ``Softmax`` and ``GatherElements`` over the last axis,
    swapping the last two, and constants repeated for every example. What comes to no inverse Reshape stays as it is.
    """

    name: ClassVar[str] = "split-merged-heads"

    def call(self, model: ir.Model) -> RewriteResult:
        """Rewrite the main graph."""
        writer = _Writer(model.graph)
        applied = []
        for node in tuple(model.graph):
            if node.domain or len(node.outputs) != 1:
                continue
            split = writer.split_again(node)
            if split is not None:
                redirect(node.outputs[0], split)
                applied.append(Applied(layer_of(node), "split-merged-heads", 1))
            else:
                writer.follow(node)
        RemoveUnusedNodesPass()(model)  # the merged ones, or the four-axis ones of what came to no end
        return RewriteResult.of(model, applied)


class _Writer:
    """Writes nodes on four axes beside those on three, and knows which value stands for which."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._split: dict[ir.Value, ir.Value] = {}

    def split_again(self, node: ir.Node) -> ir.Value | None:
        """The value of four axes that a Reshape brings back, if it does that."""
        if node.op_type != "Reshape":
            return None
        split = self._split.get(node.inputs[0]) if node.inputs[0] is not None else None
        if split is None or split.shape is None or not _same_sizes(node.outputs[0].shape, split.shape):
            return None
        return split

    def follow(self, node: ir.Node) -> None:
        """Write ``node`` on four axes where it computes on merged ones."""
        result = node.outputs[0]
        if node.op_type == "Reshape" and _merges(node):
            self._split[result] = node.inputs[0]  # type: ignore[assignment]
            return
        if node.op_type == "Tile":
            repeated = self._repeated(node)
            if repeated is not None:
                self._split[result] = repeated
            return
        if not any(value in self._split for value in node.inputs if value is not None):
            return
        inputs = [self._operand(node, index) for index in range(len(node.inputs))]
        if any(value is None for value in inputs):
            return
        known = [value.shape for value in inputs if value is not None and value.shape is not None]
        shapes = [shape for shape in known if len(shape) == 4]
        options = {name: each.value for name, each in node.attributes.items()}
        if node.op_type == "Transpose" and tuple(attribute(node, "perm", ())) == (0, 2, 1):
            options["perm"] = (0, 1, 3, 2)
        elif node.op_type in ("Softmax", "GatherElements") and attribute(node, "axis", 0) in (-1, 2):
            options["axis"] = -1
        elif node.op_type != "MatMul" and not is_pointwise(node):
            return
        if not shapes or result.shape is None or len(result.shape) != 3 or len({shape[1] for shape in shapes}) > 1:
            return
        if node.op_type == "GatherElements" and not same_size(result.shape[1], shapes[0][2]):
            return  # rows that its index has not are left out
        written = new_node(node.op_type, inputs, like=node, **options)
        # the one whose batch is told: a constant repeated for every example has a batch of one
        lead = max(shapes, key=lambda shape: not isinstance(shape[0], int))
        written.outputs[0].type = result.type
        written.outputs[0].shape = ir.Shape([*lead[:2], *result.shape[1:]])
        self._graph.insert_before(node, written)
        self._split[result] = written.outputs[0]

    def _operand(self, node: ir.Node, index: int) -> ir.Value | None:
        """An input of ``node`` on four axes; None where it cannot be told."""
        value = node.inputs[index]
        if value is None or scalar(value) is not None:
            return value
        if value in self._split:
            return self._split[value]
        source = value.producer()
        if (
            source is not None
            and not source.domain
            and source.op_type == "Expand"
            and node.op_type == "GatherElements"
            and index == 1
        ):
            return self._expanded(source, node)
        return None

    def _repeated(self, tile: ir.Node) -> ir.Value | None:
        """(1, H, a, b) of heads (H, a, b) that are repeated for every example."""
        source = tile.inputs[0]
        times = tile.inputs[1].producer() if tile.inputs[1] is not None else None
        if source is None or source.shape is None or len(source.shape) != 3 or times is None:
            return None
        counts = [constant(value) for value in times.inputs]
        once = all(count is not None and (count == 1).all() for count in counts[1:])
        if times.op_type != "Concat" or counts[0] is not None or not once:
            return None
        return self._unsqueezed(source, tile)

    def _expanded(self, expand: ir.Node, gather: ir.Node) -> ir.Value | None:
        """(B, H, a, n) numbers, the same for every example and head, for the (B, H, a, b) that ``gather`` reads."""
        source, data = expand.inputs[0], self._split.get(gather.inputs[0])  # type: ignore[arg-type]
        if source is None or source.shape is None or len(source.shape) != 3 or source.shape[0] != 1 or data is None:
            return None
        rows = new_node("Shape", [data], start=0, end=3)
        last = new_node("Shape", [source], start=2, end=3)
        sizes = new_node("Concat", [rows.outputs[0], last.outputs[0]], axis=0)
        for node in (rows, last, sizes):
            node.outputs[0].type = ir.TensorType(ir.DataType.INT64)
        grid = new_node("Expand", [source, sizes.outputs[0]])
        grid.outputs[0].type = source.type
        self._graph.insert_before(gather, [rows, last, sizes, grid])
        return grid.outputs[0]

    def _unsqueezed(self, source: ir.Value, before: ir.Node) -> ir.Value:
        axis = add_initializer(self._graph, "batch_axis", np.array([0], dtype=np.int64))
        node = new_node("Unsqueeze", [source, axis], like=before)
        node.outputs[0].type = source.type
        node.outputs[0].shape = None if source.shape is None else ir.Shape([1, *source.shape])
        self._graph.insert_before(before, node)
        return node.outputs[0]


def _merges(reshape: ir.Node) -> bool:
    """Whether a Reshape makes (B*H, a, b) of (B, H, a, b)."""
    source = reshape.inputs[0]
    before = source.shape if source is not None else None
    after = reshape.outputs[0].shape
    if before is None or after is None or len(before) != 4 or len(after) != 3 or not isinstance(before[1], int):
        return False
    return all(map(same_size, after[1:], before[2:]))


def _same_sizes(a: ir.Shape | None, b: ir.Shape) -> bool:
    """Whether two shapes are known to be equal."""
    return a is not None and len(a) == len(b) and all(map(same_size, a, b))
