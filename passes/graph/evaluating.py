"""What a part of the graph computes that reads no input of the model."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import numpy as np
import onnx
import onnx_ir as ir
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from compactor.passes.base import NoMatch
from compactor.passes.graph.matching import Array, constant


def nodes_behind(value: ir.Value, stop: Mapping[ir.Value, object]) -> list[ir.Node]:
    """The nodes that compute ``value`` from constants and from the values in ``stop``, each behind what it reads.

    Raises:
        NoMatch: It reads an input of the graph.
    """
    found: dict[ir.Node, None] = {}
    open_nodes: set[ir.Node] = set()
    pending: list[tuple[ir.Value, bool]] = [(value, False)]
    while pending:
        current, done = pending.pop()
        if current in stop or constant(current) is not None:
            continue
        node = current.producer()
        if node is None:
            raise NoMatch(f"it reads the input '{current.name}'")
        if done:
            found[node] = None
        elif node not in open_nodes:
            open_nodes.add(node)
            pending.append((current, True))
            pending += [(operand, False) for operand in node.inputs if operand is not None]
    return list(found)


def spelling(value: ir.Value, stop: Mapping[ir.Value, object]) -> Hashable:
    """How ``value`` is computed from constants and from the values in ``stop``; equal where the result is.

    A value in ``stop`` is spelled by what is behind it there, or by itself where that is None.

    Raises:
        NoMatch: It reads an input of the graph.
    """
    nodes = nodes_behind(value, stop)
    numbers = {result: (n, i) for n, node in enumerate(nodes) for i, result in enumerate(node.outputs)}

    def told(operand: ir.Value | None) -> object:
        if operand is None or operand in numbers:
            return None if operand is None else numbers[operand]
        array = None if operand in stop else constant(operand)
        if array is not None:
            return array.dtype.str, array.shape, array.tobytes()
        return operand if stop[operand] is None else stop[operand]

    return tuple(
        (
            *(node.domain, node.op_type, tuple(map(told, node.inputs))),
            *sorted((name, repr(each.value)) for name, each in node.attributes.items()),
        )
        for node in nodes
    )


def evaluate(value: ir.Value, given: Mapping[ir.Value, Array] | None = None) -> Array:
    """Compute ``value`` as ONNX defines its operators, in the types of the graph.

    Args:
        value: Any value of a graph.
        given: Arrays for values that it is computed from.

    Raises:
        NoMatch: It depends on something else than constants and ``given``, or on an operator that ONNX's reference
            implementation has not.
    """
    given = given or {}
    if value in given:
        return given[value]
    array = constant(value)
    if array is not None:
        return array
    nodes = nodes_behind(value, given)
    leaves = {operand for node in nodes for operand in node.inputs if operand is not None}
    leaves -= {result for node in nodes for result in node.outputs}
    arrays = {leaf: given[leaf] if leaf in given else constant(leaf) for leaf in leaves}
    names = {leaf: f"leaf_{number}" for number, leaf in enumerate(arrays)}
    names |= {result: f"value_{n}_{i}" for n, node in enumerate(nodes) for i, result in enumerate(node.outputs)}
    graph = onnx.helper.make_graph(
        [_named(node, names) for node in nodes],
        "part",
        [],
        [onnx.helper.make_empty_tensor_value_info(names[value])],
        [numpy_helper.from_array(np.asarray(each), names[leaf]) for leaf, each in arrays.items()],
    )
    owner = nodes[-1].graph
    assert isinstance(owner, ir.Graph)
    version = owner.opset_imports.get("", 23)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", version)])
    try:
        [result] = ReferenceEvaluator(model).run(None, {})
        return np.asarray(result)
    except (LookupError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        raise NoMatch(f"it cannot be computed beforehand: {error}") from None


def _named(node: ir.Node, names: Mapping[ir.Value, str]) -> onnx.NodeProto:
    proto = ir.serde.serialize_node(node)
    del proto.input[:], proto.output[:]
    proto.input.extend("" if operand is None else names[operand] for operand in node.inputs)
    proto.output.extend(names[result] for result in node.outputs)
    return proto
