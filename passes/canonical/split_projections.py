"""Write one matrix that projects onto several things as a matrix for each.

    Split(x W + b)                                  ==>   x W[:, a:b] + b[a:b], ...
    Reshape(x W + b) (B, S, 3, H, d), one slice     ==>   Reshape(x W[:, cols] + b[cols]) (B, S, H, d)

Queries, keys and values behind one ``Wqkv``, or the gate and the value of a feed-forward behind one ``Wi``, are then
seen as what they are. Which columns a reader takes is found by taking their numbers the same way. A bias that is added
to a part behind it, a number for each of its columns, joins the part.

Symbols: B batch, S sequence, H heads, d head width; weights are (in, out).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from compactor.passes.base import Applied, NoMatch, RewritePass, RewriteResult
from compactor.passes.graph.matching import (
    Array,
    Linear,
    add_initializer,
    attribute,
    constant,
    layer_of,
    linear_into,
    new_node,
    redirect,
)

Columns = NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class SplitProjectionsPass(RewritePass):
    """Split linear layers whose every reader takes some of the columns.

    A layer is left alone where its result is a graph output, where a reader takes all of it, where each takes a single
    column, as of the start and the end of an answer, or where the columns that one takes are not told by constants: by
    ``Split``, ``Slice`` or ``Gather``, behind a ``Reshape`` of the last axis or not. Needs current value shapes.
    """

    name: ClassVar[str] = "split-projections"

    def call(self, model: ir.Model) -> RewriteResult:
        """Split the layers of the main graph."""
        applied = []
        for node in tuple(model.graph):
            if node.op_type not in ("MatMul", "Add") or node.domain or node.graph is None:
                continue
            try:
                layer = linear_into(node.outputs[0])
                parts = list(_parts(layer.output))
            except NoMatch:
                continue
            for value, view in parts:
                _take(model.graph, layer, value, view)
            applied.append(Applied(layer_of(layer.matmul), "split-projection", len(parts)))
        if applied:
            RemoveUnusedNodesPass()(model)
        return RewriteResult.of(model, applied)


@dataclasses.dataclass(frozen=True)
class _View:
    """What is read of a projection.

    Attributes:
        columns: The numbers of its columns, in the shape of the axes behind (B, S).
        order: Which of the axes (B, S, ...) each axis of the value is.
    """

    columns: Columns
    order: tuple[int, ...]

    @classmethod
    def of(cls, columns: Columns) -> _View:
        """In the order in which the projection has them."""
        return cls(columns, tuple(range(columns.ndim + 2)))

    def axis(self, number: int) -> int:
        """The axis of ``columns`` that is the value's ``number``. Raises NoMatch where it is that of rows."""
        axis = self.order[number % len(self.order)] - 2
        if axis < 0:
            raise NoMatch("the projection is split along another axis")
        return axis

    def without(self, axis: int) -> tuple[int, ...]:
        """The order where an axis of ``columns`` is gone."""
        return tuple(place - (place > axis + 2) for place in self.order if place != axis + 2)


Part = tuple[ir.Value, _View]


def _parts(output: ir.Value) -> Iterator[Part]:
    """What is read of a projection (B, S, W).

    Raises:
        NoMatch: Something is read that is no part of it.
    """
    if output.is_graph_output() or output.shape is None or len(output.shape) != 3:
        raise NoMatch("the projection is an output, or of unknown shape")
    width = output.shape[2]
    if not isinstance(width, int):
        raise NoMatch("the width of the projection is not known")
    columns = np.arange(width, dtype=np.int64)
    found = []
    for usage in output.uses():
        node = usage.node
        if node.op_type == "Reshape" and usage.idx == 0:
            shape = node.outputs[0].shape
            inner = tuple(shape)[2:] if shape is not None else ()
            known = [size for size in inner if isinstance(size, int)]
            if node.outputs[0].is_graph_output() or len(inner) < 2 or len(known) != len(inner):
                raise NoMatch("the projection is reshaped in a way that is not known")
            if int(np.prod(known)) != width:
                raise NoMatch("the projection is not split along its last axis")
            for reader in node.outputs[0].uses():
                found += _read(reader.node, reader.idx, _View.of(columns.reshape(known)))
        else:
            found += _read(node, usage.idx, _View.of(columns))
    if not any(view.columns.size > 1 for _, view in found):
        raise NoMatch("a column each is read, as of the logits of spans")
    yield from found


def _read(node: ir.Node, index: int, view: _View) -> list[Part]:
    """What ``node`` takes of a value."""
    if node.domain or index != 0 or any(value.is_graph_output() for value in node.outputs):
        raise NoMatch("the projection is read as a whole")
    if node.op_type == "Transpose" and view.columns.ndim > 1:
        order = tuple(view.order[axis] for axis in attribute(node, "perm", ()))
        if len(order) != len(view.order):
            raise NoMatch("the projection is turned round")
        turned = dataclasses.replace(view, order=order)
        return [part for usage in node.outputs[0].uses() for part in _read(usage.node, usage.idx, turned)]
    if node.op_type == "Split":
        axis = view.axis(int(attribute(node, "axis", 0)))
        sizes = constant(node.inputs[1]) if len(node.inputs) > 1 else None
        count = len(node.outputs)
        if sizes is None and view.columns.shape[axis] % count:
            raise NoMatch("the projection is split unevenly")
        where = count if sizes is None else np.cumsum(sizes.reshape(-1))[:-1]
        return [
            _squeezed(value, axis, dataclasses.replace(view, columns=part))
            for value, part in zip(node.outputs, np.split(view.columns, where, axis=axis), strict=True)
        ]
    if node.op_type == "Gather":
        place = constant(node.inputs[1])
        axis = view.axis(int(attribute(node, "axis", 0)))
        if place is None or place.ndim:
            raise NoMatch("the projection is gathered by more than a number")
        return [(node.outputs[0], _View(np.take(view.columns, int(place), axis=axis), view.without(axis)))]
    if node.op_type == "Slice":
        given = [constant(value) for value in node.inputs[1:]]
        if len(given) < 3 or any(array is None or array.size != 1 for array in given):
            raise NoMatch("the projection is sliced by what is not constant")
        start, end, number, *step = (int(array.item()) for array in given if array is not None)
        axis = view.axis(number)
        if step and step[0] != 1:
            raise NoMatch("the projection is sliced in steps")
        taken = view.columns.take(range(*slice(start, end).indices(view.columns.shape[axis])), axis=axis)
        return [_squeezed(node.outputs[0], axis, dataclasses.replace(view, columns=taken))]
    raise NoMatch("the projection is read as a whole")


def _squeezed(value: ir.Value, axis: int, view: _View) -> Part:
    """The part itself, or where a ``Squeeze`` takes its ``axis`` off, what that leaves."""
    readers = [usage.node for usage in value.uses()]
    if len(readers) == 1 and readers[0].op_type == "Squeeze" and view.columns.shape[axis] == 1:
        axes = constant(readers[0].inputs[1]) if len(readers[0].inputs) > 1 else None
        if axes is not None and [view.order[int(a) % len(view.order)] for a in axes.reshape(-1)] == [axis + 2]:
            return readers[0].outputs[0], _View(view.columns.squeeze(axis), view.without(axis))
    return value, view


def _take(graph: ir.Graph, layer: Linear, value: ir.Value, view: _View) -> None:
    """Compute ``value`` by a layer of its own."""
    columns = view.columns
    flat = columns.reshape(-1)
    stem = layer.matmul.inputs[1].name if layer.matmul.inputs[1] is not None else "weight"
    weight = add_initializer(graph, f"{stem}.part", layer.weight[:, flat])
    matmul = new_node("MatMul", [layer.input, weight], like=layer.matmul)
    nodes = [matmul]
    bias_array = None if layer.bias is None else layer.bias[flat]
    more = _bias_behind(value, view)
    if more is not None:
        value = more[0].outputs[0]
        bias_array = more[1] if bias_array is None else bias_array + more[1]
    if bias_array is not None:
        bias = add_initializer(graph, f"{stem}.part_bias", np.ascontiguousarray(bias_array))
        nodes.append(new_node("Add", [matmul.outputs[0], bias], like=layer.matmul))
    rows = layer.output.shape
    assert rows is not None
    for node in nodes:
        node.outputs[0].type = layer.output.type
        node.outputs[0].shape = ir.Shape([rows[0], rows[1], len(flat)])
    if columns.ndim > 1:
        target = add_initializer(graph, "part_shape", np.array([0, 0, *columns.shape], dtype=np.int64))
        reshape = new_node("Reshape", [nodes[-1].outputs[0], target], like=layer.matmul)
        reshape.outputs[0].type = layer.output.type
        reshape.outputs[0].shape = ir.Shape([rows[0], rows[1], *columns.shape])
        nodes.append(reshape)
    if view.order != tuple(range(len(view.order))):
        turned = new_node("Transpose", [nodes[-1].outputs[0]], like=layer.matmul, perm=view.order)
        turned.outputs[0].type, turned.outputs[0].shape = layer.output.type, value.shape
        nodes.append(turned)
    graph.insert_after(layer.nodes[-1], nodes)
    redirect(value, nodes[-1].outputs[0])


def _bias_behind(value: ir.Value, view: _View) -> tuple[ir.Node, Array] | None:
    """The only reader of a part where it adds a number for each column, and these numbers in the part's order."""
    readers = [usage.node for usage in value.uses()]
    if len(readers) != 1 or readers[0].op_type != "Add" or readers[0].domain or value.is_graph_output():
        return None
    array = next((array for operand in readers[0].inputs if (array := constant(operand)) is not None), None)
    sizes = [1, 1, *view.columns.shape]
    if array is None or array.shape != tuple(sizes[axis] for axis in view.order):
        return None
    return readers[0], array.transpose(np.argsort(view.order)).reshape(-1)
