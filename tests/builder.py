"""Writes small graphs for tests, node by node."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx import numpy_helper
from onnx_ir.passes.common import ShapeInferencePass


class Builder:
    """Appends named nodes to a graph; equal constants become one initializer."""

    def __init__(self, inputs: Sequence[ir.Value], dtype: Any) -> None:
        self.graph = ir.Graph(list(inputs), [], nodes=[], opset_imports={"": 23}, name="graph")
        self.dtype = dtype
        self._seen: dict[tuple[Any, ...], ir.Value] = {}
        self._numbers = itertools.count()

    def constant(self, array: Any, name: str | None = None, dtype: Any = np.int64) -> ir.Value:
        """An initializer; one that equals an earlier one is that one."""
        array = np.asarray(array) if isinstance(array, np.ndarray) else np.asarray(array, dtype=dtype)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._seen:
            name = name or f"constant_{next(self._numbers)}"
            tensor = ir.tensor(array, name=name)
            value = ir.Value(
                name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape)
            )
            self.graph.register_initializer(value)
            self._seen[key] = value
        return self._seen[key]

    def number(self, value: float) -> ir.Value:
        """A scalar of the model's type."""
        return self.constant(np.asarray(value, dtype=self.dtype))

    def node(
        self,
        op_type: str,
        *inputs: ir.Value | None,
        name: str | None = None,
        outputs: int = 1,
        domain: str = "",
        **attributes: Any,
    ) -> Any:
        """The output of a new node (a tuple of them when ``outputs`` > 1), called ``name``."""
        self.graph.opset_imports.setdefault(domain, 1)
        node = ir.Node(
            domain,
            op_type,
            inputs,
            attributes=[ir.convenience.convert_attribute(key, value) for key, value in attributes.items()],
            num_outputs=outputs,
        )
        node.name = name or f"{op_type}_{next(self._numbers)}"
        for i, value in enumerate(node.outputs):
            value.name = node.name if i == 0 else f"{node.name}.{i}"
        self.graph.append(node)
        return node.outputs[0] if outputs == 1 else tuple(node.outputs)


def infer_shapes(model: ir.Model) -> ir.Model:
    """Infer shapes, and return the model itself; or its float32 twin, where an operator is not defined in float64."""
    rotary = any(node.op_type == "RotaryEmbedding" and not node.domain for node in model.graph)
    if not rotary or not any(value.dtype == ir.DataType.DOUBLE for value in model.graph.initializers.values()):
        ShapeInferencePass()(model)
        return model
    proto = ir.to_proto(model)
    double, single = ir.DataType.DOUBLE.value, ir.DataType.FLOAT.value
    for tensor in proto.graph.initializer:
        if tensor.data_type == double:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    for entry in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        if entry.type.tensor_type.elem_type == double:
            entry.type.tensor_type.elem_type = single
    for node in proto.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == double:
                attribute.i = single
    twin = ir.from_proto(proto)
    ShapeInferencePass()(twin)
    known = {value.name: value for node in twin.graph for value in node.outputs}
    for node in model.graph:
        for value in node.outputs:
            found = known[value.name]
            value.shape = found.shape
            if found.dtype is not None:
                value.type = ir.TensorType(ir.DataType.DOUBLE if found.dtype == ir.DataType.FLOAT else found.dtype)
    return twin
