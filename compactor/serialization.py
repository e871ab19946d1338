"""Write a graph as one ONNX file without holding its weights in memory twice.

``SerializeToString`` wants a copy of all weights in the message and another in the bytes. Here every initializer is
encoded and written alone; the file is the same message, field by field.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx_ir as ir

_LENGTH_DELIMITED = 2  # protobuf's wire type of messages and bytes
_GRAPH = onnx.ModelProto.DESCRIPTOR.fields_by_name["graph"].number
_INITIALIZER = onnx.GraphProto.DESCRIPTOR.fields_by_name["initializer"].number
_LARGEST_FILE = 1_900_000_000  # bytes; protobuf ends at 2 GiB


def write_graph(model: ir.Model, path: Path) -> None:
    """Write ``model`` to ``path``; weights beyond protobuf's limit go to ``<name>_data`` beside it."""
    initializers = dict(model.graph.initializers)
    tensors = [value.const_value for value in initializers.values() if value.const_value is not None]
    if sum(tensor.nbytes for tensor in tensors) > _LARGEST_FILE:
        ir.save(model, path, external_data=f"{path.name}_data")
        return
    model.graph.initializers.clear()
    try:
        frame = ir.to_proto(model)
    finally:
        model.graph.initializers.update(initializers)
    graph = frame.graph.SerializeToString()
    frame.ClearField("graph")
    sizes = [_encoded(tensor).ByteSize() for tensor in tensors]
    length = len(graph) + sum(len(_header(_INITIALIZER, size)) + size for size in sizes)
    with path.open("wb") as file:
        file.write(frame.SerializeToString())
        file.write(_header(_GRAPH, length))
        file.write(graph)
        for tensor, size in zip(tensors, sizes, strict=True):
            file.write(_header(_INITIALIZER, size))
            file.write(_encoded(tensor).SerializeToString())


def _encoded(tensor: ir.TensorProtocol) -> onnx.TensorProto:
    proto: onnx.TensorProto = ir.to_proto(tensor)
    return proto


def _header(field: int, length: int) -> bytes:
    """The tag of a length-delimited field and its length, as protobuf's base-128 varints."""
    return bytes((*_varint(field << 3 | _LENGTH_DELIMITED), *_varint(length)))


def _varint(number: int) -> Iterator[int]:
    while number > 0x7F:
        yield number & 0x7F | 0x80
        number >>= 7
    yield number
