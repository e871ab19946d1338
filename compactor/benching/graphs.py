"""Tell from an ONNX file what it wants, what it gives and how it computes, without running it."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx

from compactor.errors import ModelDirectoryError

IMAGE = "pixel_values"
_INTEGERS, _FLOATS = {"INT32", "INT64"}, {"FLOAT", "FLOAT16"}
_TAKEN = {
    "input_ids": _INTEGERS,
    "attention_mask": _INTEGERS | _FLOATS | {"BOOL"},
    "token_type_ids": _INTEGERS,
    IMAGE: _FLOATS,
}  # what each input may be: engines cast to it
_INT8_OPERATORS = frozenset(
    {"ConvInteger", "DynamicQuantizeLinear", "DynamicQuantizeMatMul", "MatMulInteger", "MatMulIntegerToFloat"}
    | {"QAttention", "QGemm", "QLinearConv", "QLinearMatMul", "QuantizeLinear"}
)
_FLOAT_NAMES = {"FLOAT": "fp32", "FLOAT16": "fp16", "BFLOAT16": "bf16", "DOUBLE": "fp64"}
_PASSES_IDS_ON = ("Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Clip")

Shape = tuple[int | None, ...]


@dataclasses.dataclass(frozen=True)
class GraphFacts:
    """What an ONNX file says of itself.

    Attributes:
        inputs: Shape of each input by name; None where a size is free.
        outputs: The same of the outputs; an unknown number of axes is the empty shape.
        precision: ``int8`` where it multiplies quantized matrices, ``int4`` where weights are packed, else the type of
            most weights.
        vocabulary: Rows of the table that ``input_ids`` looks into; None where that is not found.
    """

    inputs: Mapping[str, Shape]
    outputs: Mapping[str, Shape]
    precision: str
    vocabulary: int | None

    @property
    def is_image(self) -> bool:
        """Whether it looks at pixels instead of tokens."""
        return IMAGE in self.inputs

    @property
    def fixed(self) -> tuple[int | None, int | None]:
        """The batch size and the length that it is made for; None where any will do."""
        shape = self.inputs[IMAGE] if self.is_image else self.inputs["input_ids"]
        return (shape[0], None) if self.is_image else (shape[0], shape[1])


def read_graph(path: Path) -> GraphFacts:
    """Read an ONNX file; weights beside it are left where they are.

    Raises:
        ModelDirectoryError: It is no graph, weights are missing, or it has an input that nobody knows how to fill.
    """
    try:
        graph = onnx.load(path, load_external_data=False).graph
    except Exception as error:  # protobuf has several, of a module that is not public
        raise ModelDirectoryError(
            "this is not an ONNX graph, or it is damaged", where=str(path), todo="export the model again"
        ) from error
    for tensor in graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            name = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
            if not (path.parent / name).is_file():
                raise ModelDirectoryError(
                    f"the graph's weights are missing: '{name}'", where=str(path), todo="copy that file beside it"
                )
    weights = {tensor.name for tensor in graph.initializer}
    inputs = {value.name: value.type.tensor_type for value in graph.input if value.name not in weights}
    for name, kind in inputs.items():
        _require_fillable(name, kind, path)
    if not inputs.keys() & {"input_ids", IMAGE}:
        found = f"its inputs are {', '.join(inputs)}" if inputs else "it has no inputs"
        raise ModelDirectoryError(f"the graph takes neither input_ids nor {IMAGE}: {found}", where=str(path))
    return GraphFacts(
        inputs={name: _shape(tensor) for name, tensor in inputs.items()},
        outputs={value.name: _shape(value.type.tensor_type) for value in graph.output},
        precision=_precision(graph),
        vocabulary=_vocabulary(graph),
    )


def _require_fillable(name: str, tensor: Any, path: Path) -> None:
    if name not in _TAKEN:
        decoder = name.startswith(("encoder_", "past_key_values."))
        raise ModelDirectoryError(
            f"the graph wants an input '{name}', which cannot be filled",
            where=str(path),
            todo="give the artefact's folder: a decoder is measured with its encoder"
            if decoder
            else f"inputs that can be: {', '.join(_TAKEN)}",
        )
    kind = onnx.TensorProto.DataType.Name(tensor.elem_type)
    if kind not in _TAKEN[name]:
        raise ModelDirectoryError(
            f"the graph wants '{name}' as {kind}, which cannot be filled",
            where=str(path),
            todo=f"types that can be: {', '.join(sorted(_TAKEN[name]))}",
        )
    axes = 4 if name == IMAGE else 2
    if len(tensor.shape.dim) != axes:
        raise ModelDirectoryError(
            f"the graph wants '{name}' with {len(tensor.shape.dim)} axes instead of {axes}, which cannot be filled",
            where=str(path),
        )


def _shape(tensor: Any) -> Shape:
    # Some exporters write a free size as 0 or -1.
    return tuple(axis.dim_value if axis.dim_value > 0 else None for axis in tensor.shape.dim)


def _precision(graph: onnx.GraphProto) -> str:
    nodes = list(_nodes(graph))
    for node in nodes:
        if node.op_type == "MatMulNBits":
            bits = next((attribute.i for attribute in node.attribute if attribute.name == "bits"), 4)
            return f"int{bits}"
    if any(node.op_type in _INT8_OPERATORS for node in nodes):
        return "int8"
    floats: collections.Counter[str] = collections.Counter()
    for tensor in graph.initializer:
        kind = onnx.TensorProto.DataType.Name(tensor.data_type)
        if kind in _FLOAT_NAMES:
            floats[_FLOAT_NAMES[kind]] += math.prod(tensor.dims)
    return max(floats, key=lambda name: floats[name], default="fp32")


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """The nodes, also those inside of ``If``, ``Loop`` and ``Scan``."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _nodes(inner)


def _vocabulary(graph: onnx.GraphProto) -> int | None:
    """Rows of the first table that is indexed with the token ids, through whatever only changes their form."""
    tables = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    ids, rows = {"input_ids"}, []
    for node in graph.node:  # in the order in which they run
        if not ids & set(node.input):
            # A table that is dequantized first is as long as it was.
            if node.op_type == "DequantizeLinear" and node.input[0] in tables:
                tables[node.output[0]] = tables[node.input[0]]
            continue
        if node.op_type in _PASSES_IDS_ON:
            ids.update(node.output)
            continue
        found = [tables[name] for name in node.input if name in tables and len(tables[name]) == 2]
        if node.op_type in ("Gather", "GatherBlockQuantized") and found:
            rows.append(found[0][0])
        elif node.op_type == "EmbedLayerNormalization" and found:
            rows.append(tables[node.input[2]][0])
    return rows[0] if rows else None
