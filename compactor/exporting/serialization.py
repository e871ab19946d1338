"""Write a graph as one ONNX file without holding its weights in memory twice; or several that share one of weights.

``SerializeToString`` wants a copy of all weights in the message and another in the bytes. Here every initializer is
written alone, and a weight goes to the file from where it lies; the file is the same message, field by field.

Graphs of one model that lie in one folder, such as the two steps of a decoder, may keep their weights in one external
file: equal bytes are written once, and each graph says where they are. That needs no links, and every reader of ONNX
understands it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import onnx
import onnx_ir as ir

_LENGTH_DELIMITED = 2  # protobuf's wire type of messages and bytes
_GRAPH = onnx.ModelProto.DESCRIPTOR.fields_by_name["graph"].number
_INITIALIZER = onnx.GraphProto.DESCRIPTOR.fields_by_name["initializer"].number
_RAW_DATA = onnx.TensorProto.DESCRIPTOR.fields_by_name["raw_data"].number
_SMALLEST_EXTERNAL = 1024  # bytes; smaller ones stay in the graph
_PAGE, _WORD = 4096, 64  # what a reader that maps the file into memory likes large and small weights to be aligned to
_LARGEST_FILE = 1_900_000_000  # bytes; protobuf ends at 2 GiB


def write_graph(model: ir.Model, path: Path) -> None:
    """Write ``model`` to ``path``; weights beyond protobuf's limit go to ``<name>_data`` beside it."""
    initializers = dict(model.graph.initializers)
    values = [value for value in initializers.values() if value.const_value is not None]
    if sum(value.const_value.nbytes for value in values if value.const_value is not None) > _LARGEST_FILE:
        ir.save(model, path, external_data=f"{path.name}_data")
        return
    model.graph.initializers.clear()
    try:
        frame = ir.to_proto(model)
    finally:
        model.graph.initializers.update(initializers)
    graph = frame.graph.SerializeToString()
    frame.ClearField("graph")
    tensors = [(_before_bytes(value), value.const_value) for value in values if value.const_value is not None]
    sizes = [len(before) + tensor.nbytes for before, tensor in tensors]
    length = len(graph) + sum(len(_header(_INITIALIZER, size)) + size for size in sizes)
    with path.open("wb") as file:
        file.write(frame.SerializeToString())
        file.write(_header(_GRAPH, length))
        file.write(graph)
        for (before, tensor), size in zip(tensors, sizes, strict=True):
            file.write(_header(_INITIALIZER, size))
            file.write(before)
            if isinstance(tensor, ir.Tensor) and tensor.numpy().flags.c_contiguous:
                tensor.tofile(file)
            else:  # of strided numbers numpy would write one by one
                file.write(tensor.tobytes())


def write_graphs(models: Mapping[Path, ir.Model], data: Path) -> dict[str, int]:
    """Write each model to its path, and the weights of all of them to ``data``, equal ones once.

    Args:
        models: By path; all in the folder of ``data``. Afterwards their weights are read from the file.
        data: The file of weights.

    Returns:
        Bytes of weights in ``data`` that each model refers to, by the name of its file.
    """
    places: dict[tuple[bytes, int], int] = {}
    referred: dict[str, int] = {}
    with data.open("wb") as file:
        for path, model in models.items():
            used: dict[int, int] = {}
            for value in model.graph.initializers.values():
                tensor = value.const_value
                if tensor is None or tensor.nbytes < _SMALLEST_EXTERNAL:
                    continue
                content = tensor.tobytes()
                key = hashlib.sha256(content).digest(), len(content)
                if key not in places:
                    file.write(bytes(-file.tell() % (_PAGE if len(content) > _PAGE else _WORD)))
                    places[key] = file.tell()
                    file.write(content)
                used[places[key]] = len(content)
                value.const_value = ir.ExternalTensor(
                    data.name, places[key], len(content), tensor.dtype,
                    shape=ir.Shape(tensor.shape.numpy()), name=str(value.name), base_dir=data.parent,
                )  # fmt: skip
            referred[path.name] = sum(used.values())
    for path, model in models.items():
        path.write_bytes(ir.to_proto(model).SerializeToString())
    return referred


def _before_bytes(value: ir.Value) -> bytes:
    """An initializer up to the bytes of its numbers, which end it.

    It goes by its own name: a tensor that an optimizer made may have none, or another's.
    """
    tensor = value.const_value
    assert tensor is not None
    proto = onnx.TensorProto(data_type=tensor.dtype.value, dims=tensor.shape.numpy(), name=value.name or "")
    return bytes(proto.SerializeToString()) + _header(_RAW_DATA, tensor.nbytes)


def _header(field: int, length: int) -> bytes:
    """The tag of a length-delimited field and its length, as protobuf's base-128 varints."""
    return bytes((*_varint(field << 3 | _LENGTH_DELIMITED), *_varint(length)))


def _varint(number: int) -> Iterator[int]:
    while number > 0x7F:
        yield number & 0x7F | 0x80
        number >>= 7
    yield number
