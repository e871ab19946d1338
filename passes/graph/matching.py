"""Vocabulary for reading and editing the canonical graph: constants, sole uses, linear layers.

Reading never changes the graph. Editing never changes an initializer in place, because exporters share equal ones:
it registers a new initializer and leaves the old one to the clean-up.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from compactor.passes.base import NoMatch

MICROSOFT = "com.microsoft"  # the domain of ONNX Runtime's own operators
CANONICAL = "compactor"  # the domain of operators that only the canonical dialect has; the lowering spells them out
ENCODER_STATES = "encoder_hidden_states"  # the graph input that a decoder's cross-attention reads
LAYER_KEY = "compactor.layer"  # node metadata: the sublayer of the original model a node belongs to

Array = NDArray[Any]


def constant(value: ir.Value | None) -> Array | None:
    """The array behind an initializer or a Constant node that no caller can override; None otherwise."""
    if value is None or value.is_graph_input() or value.const_value is None:
        return None
    return value.const_value.numpy()


def scalar(value: ir.Value | None) -> float | None:
    """The number behind a constant with one element; None otherwise."""
    array = constant(value)
    return float(array.reshape(-1)[0]) if array is not None and array.size == 1 else None


def producer(value: ir.Value | None, *op_types: str) -> ir.Node:
    """The standard-domain node that computes ``value``. Raises NoMatch unless it is one of ``op_types``."""
    node = value.producer() if value is not None else None
    if node is None or node.domain not in ("", "ai.onnx") or node.op_type not in op_types:
        found = "a graph input or constant" if node is None else f"'{node.op_type}'"
        raise NoMatch(f"expected {' or '.join(op_types)}, found {found}")
    return node


def sole_consumer(value: ir.Value) -> ir.Node:
    """The only node that reads ``value``. Raises NoMatch when it is a graph output or read more than once."""
    users = list(value.uses())
    if value.is_graph_output() or len(users) != 1:
        raise NoMatch(f"'{value.name}' is used outside the block")
    return users[0].node


def attribute(node: ir.Node, name: str, default: Any) -> Any:
    """The Python value of an attribute, or ``default`` where the node does not carry it."""
    found = node.attributes.get(name)
    return default if found is None else found.value


def is_vector(array: Array, width: int) -> bool:
    """Whether ``array`` is (width,), possibly with leading axes of size one."""
    return bool(array.ndim and array.size == array.shape[-1] == width)


def same_size(a: int | ir.SymbolicDim, b: int | ir.SymbolicDim) -> bool:
    """Whether two dimensions are known to be equal; two without a name are not."""
    return a == b and (isinstance(a, int) or a.value is not None)


def last_dim(value: ir.Value) -> int:
    """The static size of the last axis. Raises NoMatch when it is not known."""
    if value.shape is None or len(value.shape) == 0 or not isinstance(value.shape[-1], int):
        raise NoMatch(f"the width of '{value.name}' is not known")
    return value.shape[-1]


def add_initializer(graph: ir.Graph, name: str, array: Array) -> ir.Value:
    """Register ``array`` as a new initializer; ``name`` gets a suffix when it is taken."""
    unique = next(
        n for n in itertools.chain((name,), (f"{name}_{i}" for i in itertools.count(1))) if n not in graph.initializers
    )
    tensor = ir.tensor(np.asarray(array, order="C"), name=unique)
    value = ir.Value(name=unique, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape))
    graph.register_initializer(value)
    return value


def new_node(
    op_type: str,
    inputs: Sequence[ir.Value | None],
    *,
    like: ir.Node | None = None,
    domain: str = "",
    outputs: int = 1,
    **attributes: Any,
) -> ir.Node:
    """A node whose attributes are plain Python values; it inherits the layer label of ``like``."""
    node = ir.Node(
        domain,
        op_type,
        inputs,
        attributes=[ir.convenience.convert_attribute(name, value) for name, value in attributes.items()],
        num_outputs=outputs,
    )
    if like is not None and (layer := like.metadata_props.get(LAYER_KEY)):
        node.metadata_props[LAYER_KEY] = layer
    return node


def redirect(old: ir.Value, new: ir.Value) -> None:
    """Make every reader of ``old``, graph outputs included, read ``new``; graph output names are kept."""
    if old.is_graph_output():
        new.name, old.name = old.name, f"{old.name}_replaced"
        new.shape = new.shape or old.shape
        new.type = new.type or old.type
    old.replace_all_uses_with(new, replace_graph_outputs=True)


def is_read(value: ir.Value) -> bool:
    """Whether a node or a caller of the graph reads ``value``."""
    return bool(value.uses()) or value.is_graph_output()


def layer_of(node: ir.Node) -> str:
    """The label of the sublayer that ``node`` belongs to, or its own name."""
    return node.metadata_props.get(LAYER_KEY) or node.name or node.op_type


@dataclasses.dataclass(frozen=True)
class Linear:
    """``output = MatMul(input, weight) [+ bias]`` with constant weight (in, out) and bias (out,)."""

    matmul: ir.Node
    add: ir.Node | None

    @property
    def input(self) -> ir.Value:
        """The activation that is multiplied, ``(..., in)``."""
        value = self.matmul.inputs[0]
        assert value is not None
        return value

    @property
    def output(self) -> ir.Value:
        """The result, ``(..., out)``."""
        return (self.add or self.matmul).outputs[0]

    @property
    def weight(self) -> Array:
        """``(in, out)``."""
        array = constant(self.matmul.inputs[1])
        assert array is not None
        return array

    @property
    def bias(self) -> Array | None:
        """``(out,)``, or None without a bias."""
        if self.add is None:
            return None
        array = constant(self.add.inputs[self._bias_index])
        assert array is not None
        return np.broadcast_to(array.reshape(-1), (self.weight.shape[1],))

    @property
    def _bias_index(self) -> int:
        assert self.add is not None
        return 0 if constant(self.add.inputs[0]) is not None else 1

    @property
    def nodes(self) -> tuple[ir.Node, ...]:
        """The one or two nodes of the layer."""
        return (self.matmul,) if self.add is None else (self.matmul, self.add)

    def refill(self, weight: Array, bias: Array | None) -> Linear:
        """Give the layer new constants; a bias of None or of zeros removes the Add. Returns the new record."""
        graph = self.matmul.graph
        assert isinstance(graph, ir.Graph)
        stem = self.matmul.inputs[1].name if self.matmul.inputs[1] is not None else "weight"
        self.matmul.replace_input_with(1, add_initializer(graph, f"{stem}.compact", weight))
        for node in self.nodes:
            node.outputs[0].shape = None
        if bias is None or not bias.any():
            if self.add is None:
                return self
            redirect(self.add.outputs[0], self.matmul.outputs[0])
            graph.remove(self.add, safe=True)
            return Linear(self.matmul, None)
        bias_value = add_initializer(graph, f"{stem}.compact_bias", bias)
        if self.add is not None:
            self.add.replace_input_with(self._bias_index, bias_value)
            return self
        add = new_node("Add", [self.matmul.outputs[0], bias_value], like=self.matmul)
        add.outputs[0].type = self.matmul.outputs[0].type
        graph.insert_after(self.matmul, add)
        out = self.matmul.outputs[0]
        if out.is_graph_output():
            redirect(out, add.outputs[0])
            add.replace_input_with(0, out)
        else:
            for usage in tuple(out.uses()):
                if usage.node is not add:
                    usage.node.replace_input_with(usage.idx, add.outputs[0])
        return Linear(self.matmul, add)


def add_to_bias(bias: Array | None, row: Array, weight: Array) -> Array:
    """``bias + row @ weight`` (or ``row @ weight`` without a bias), summed in float64, in the dtype of ``weight``."""
    total = row.astype(np.float64) @ weight.astype(np.float64)
    if bias is not None:
        total += bias
    return np.asarray(total.astype(weight.dtype))


def linear_into(value: ir.Value | None) -> Linear:
    """The linear layer whose output is ``value``. Raises NoMatch; changes nothing."""
    node = producer(value, "Add", "MatMul")
    if node.op_type == "MatMul":
        return _checked(node, None)
    for index in (0, 1):
        bias = constant(node.inputs[1 - index])
        source = node.inputs[index]
        if bias is None or source is None or source.producer() is None:
            continue
        matmul = producer(source, "MatMul")
        sole_consumer(matmul.outputs[0])
        layer = _checked(matmul, node)
        if bias.size != 1 and not is_vector(bias, layer.weight.shape[1]):
            raise NoMatch(f"the bias of '{node.outputs[0].name}' is not a vector")
        return layer
    raise NoMatch("the Add before it has no constant bias")


def linear_from(value: ir.Value) -> Linear:
    """The linear layer that is the only reader of ``value``. Raises NoMatch; changes nothing."""
    matmul = sole_consumer(value)
    if matmul.op_type != "MatMul" or matmul.inputs[0] is not value:
        raise NoMatch(f"expected MatMul, found '{matmul.op_type}'")
    return linear_at(matmul)


def linear_at(matmul: ir.Node) -> Linear:
    """The linear layer of a ``MatMul``, with the bias that alone reads it. Raises NoMatch; changes nothing."""
    layer = _checked(matmul, None)
    users = list(matmul.outputs[0].uses())
    if len(users) == 1 and users[0].node.op_type == "Add" and not matmul.outputs[0].is_graph_output():
        add = users[0].node
        bias = constant(add.inputs[1 - users[0].idx])
        if bias is not None and is_vector(bias, layer.weight.shape[1]):
            return Linear(matmul, add)
    return layer


def _checked(matmul: ir.Node, add: ir.Node | None) -> Linear:
    weight = constant(matmul.inputs[1])
    if weight is None or weight.ndim != 2:
        raise NoMatch(f"the weight of '{matmul.outputs[0].name}' is not a constant matrix")
    return Linear(matmul, add)
