"""Write a graph as a model of NVIDIA's Triton Inference Server: ``config.pbtxt`` and a version folder.

    NAME/config.pbtxt       what the graph takes and gives, and how requests are put together
    NAME/1/model.onnx       the graph; a folder of that name where its weights lie in a file of their own

The text follows Triton's ``model_config.proto``. Its batch axis is the one that ``max_batch_size`` stands for: it is
left out of ``dims``. Triton puts only requests of equal shape together (ragged inputs are for backends that unpack
them, which ONNX Runtime's does not), so clients pad their texts to a few lengths.

Reference: Triton's model configuration, and the README of its onnxruntime backend.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import onnx

from .errors import ArtefactError

CONFIG = "config.pbtxt"
VERSION = "1"
GRAPH = "model.onnx"

_ANY_LENGTH = -1
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_TYPES: dict[int, str] = {
    onnx.TensorProto.BOOL: "TYPE_BOOL",
    onnx.TensorProto.INT32: "TYPE_INT32",
    onnx.TensorProto.INT64: "TYPE_INT64",
    onnx.TensorProto.FLOAT16: "TYPE_FP16",
    onnx.TensorProto.FLOAT: "TYPE_FP32",
}


@dataclasses.dataclass(frozen=True)
class Tensor:
    """An input or output as Triton names it.

    Attributes:
        name: As in the graph.
        data_type: For example ``TYPE_INT64``.
        dims: Without the batch axis; -1 where any length fits.
    """

    name: str
    data_type: str
    dims: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Signature:
    """What a graph takes and gives."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


@dataclasses.dataclass(frozen=True)
class Settings:
    """How Triton runs the model.

    Attributes:
        threads: Of one operator, in each instance.
        threads_reason: Where that number comes from, for who reads the file.
        gpu: Whether it runs on each of the server's GPUs instead of its CPU.
        max_batch: Rows of a batch, at most.
        queue_delay_us: How long a request waits for others, at most.
        queue_size: Requests that may wait; more are rejected at once.
        queue_timeout_us: How long one may wait before it is rejected.
    """

    threads: int
    threads_reason: str
    gpu: bool = False
    max_batch: int = 32
    queue_delay_us: int = 1_000
    queue_size: int = 1_024
    queue_timeout_us: int = 5_000_000


def is_model_name(name: str) -> bool:
    """Whether ``name`` can be a folder, a part of an URL and a label of a metric, all of which Triton makes of it."""
    return _NAME.fullmatch(name) is not None


def read_signature(graph: Path) -> Signature:
    """The inputs and outputs of an ONNX file.

    Raises:
        ArtefactError: One of them is of a type that Triton does not take from us, or has no free batch axis.
    """
    model = onnx.load(graph, load_external_data=False)
    return Signature(
        tuple(_tensor(value, graph) for value in model.graph.input),
        tuple(_tensor(value, graph) for value in model.graph.output),
    )


def describe_model(name: str, signature: Signature, settings: Settings) -> str:
    """The text of ``config.pbtxt``."""
    device = "each GPU" if settings.gpu else "all the threads below"
    lines = [
        f'name: "{name}"',
        'backend: "onnxruntime"',
        f"max_batch_size: {settings.max_batch}",
        "",
        "# Without the batch axis. -1 is the length to which a request's texts are padded, the same in all its inputs.",
        *_tensors("input", signature.inputs),
        *_tensors("output", signature.outputs),
        "",
        "# Requests of one shape run together; the first of them waits this long for others. One that finds the queue",
        "# full, or waits in it for too long, is rejected.",
        "dynamic_batching {",
        f"  max_queue_delay_microseconds: {settings.queue_delay_us}",
        "  default_queue_policy {",
        "    timeout_action: REJECT",
        f"    default_timeout_microseconds: {settings.queue_timeout_us}",
        "    allow_timeout_override: true",
        f"    max_queue_size: {settings.queue_size}",
        "  }",
        "}",
        "",
        f"# One instance with {device}: several on the same cores would take them from each other.",
        f"instance_group [ {{ kind: KIND_{'GPU' if settings.gpu else 'CPU'} count: 1 }} ]",
        "",
        f"# {settings.threads_reason}.",
        "# Set it to the server's physical cores, or to its container's quota.",
        _parameter("intra_op_thread_count", settings.threads),
        _parameter("inter_op_thread_count", 1),
        "",
        "# Put an update into a folder 2 beside 1: the highest is served.",
        "version_policy { latest { num_versions: 1 } }",
    ]
    return "\n".join(lines) + "\n"


def write_model(graph: Path, folder: Path, name: str, settings: Settings) -> Path:
    """Move ``graph``, with the file of its weights where it has one, into ``folder`` and write its configuration.

    Args:
        graph: An ONNX file; weights outside of it lie in ``<file>_data`` beside it.
        folder: The model's folder; made here. Triton wants it to have the model's name.
        name: The model's.
        settings: How it is to run.

    Returns:
        Where the graph is now.

    Raises:
        ArtefactError: Triton could not run it; see ``read_signature``.
    """
    signature = read_signature(graph)
    version = folder / VERSION
    version.mkdir(parents=True)
    placed = _move(graph, version)
    (folder / CONFIG).write_text(describe_model(name, signature, settings), encoding="utf-8")
    return placed


def _tensor(value: onnx.ValueInfoProto, graph: Path) -> Tensor:
    tensor = value.type.tensor_type
    axes = [axis.dim_value if axis.HasField("dim_value") else _ANY_LENGTH for axis in tensor.shape.dim]
    if tensor.elem_type not in _TYPES:
        name = onnx.TensorProto.DataType.Name(tensor.elem_type)
        raise ArtefactError(f"'{value.name}' is of the type {name}, which is not served", where=str(graph))
    if len(axes) < 2 or axes[0] != _ANY_LENGTH:
        raise ArtefactError(
            f"'{value.name}' has no batch axis of any length, so requests cannot be put together",
            where=str(graph),
            todo="export the model again",
        )
    return Tensor(value.name, _TYPES[tensor.elem_type], tuple(axes[1:]))


def _tensors(kind: str, tensors: Iterable[Tensor]) -> Iterator[str]:
    for tensor in tensors:
        yield f"{kind} {{"
        yield f'  name: "{tensor.name}"'
        yield f"  data_type: {tensor.data_type}"
        yield f"  dims: [ {', '.join(map(str, tensor.dims))} ]"
        yield "}"


def _parameter(key: str, value: int) -> str:
    return f'parameters {{ key: "{key}" value: {{ string_value: "{value}" }} }}'


def _move(graph: Path, version: Path) -> Path:
    target = version / GRAPH
    data = graph.with_name(f"{graph.name}_data")
    if not data.is_file():
        return graph.rename(target)
    # Of several files Triton wants a folder, called as the graph would be. A graph names its weights' file inside.
    target.mkdir()
    model = onnx.load(graph, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = f"{GRAPH}_data"
    (target / GRAPH).write_bytes(model.SerializeToString())
    data.rename(target / f"{GRAPH}_data")
    graph.unlink()
    return target / GRAPH
