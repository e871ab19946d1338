"""A graph that another server runs: Triton, or any that speaks the Open Inference Protocol (KServe V2).

It has as much of an ONNX Runtime session as ``model.py`` asks for, so texts become tokens, and outputs answers, by the
code that does it here. Batches are padded to one of a few lengths: Triton puts only requests of equal shape together.
"""

from __future__ import annotations

import dataclasses
import json
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import RuntimeSetupError

LENGTHS = (16, 32, 64, 128, 256, 512)
MAX_BATCH = 32  # rows of a request: max_batch_size of the config.pbtxt that an export writes

_TYPES: Mapping[str, tuple[str, type[np.generic]]] = {
    "INT64": ("tensor(int64)", np.int64),
    "INT32": ("tensor(int32)", np.int32),
    "FP32": ("tensor(float)", np.float32),
    "FP16": ("tensor(float16)", np.float16),
}
_TIMEOUT_S = 60.0


class RemoteGraphError(RuntimeSetupError):
    """The server does not answer, or not as the protocol says."""


@dataclasses.dataclass(frozen=True)
class Tensor:
    """An input or output, as a session describes it: -1 where any size fits."""

    name: str
    type: str
    shape: Sequence[int]


class RemoteGraph:
    """One model of one server. It keeps no connection, so threads may share it.

    Args:
        url: Of the server, for example ``http://127.0.0.1:8000``.
        name: The model's.
        limit: Tokens of a text, at most; None where nothing says.
        padding: Token id at padded positions.

    Raises:
        RemoteGraphError: The server is not there, or has no such model.
    """

    def __init__(self, url: str, name: str, *, limit: int | None, padding: int) -> None:
        self._url = f"{url.rstrip('/')}/v2/models/{name}"
        lengths = [length for length in LENGTHS if limit is None or length < limit]
        self._lengths = lengths if limit is None else [*lengths, limit]
        self._padding = {"input_ids": padding}
        described = self._ask(None)
        try:
            self._inputs, self._outputs = (_tensors(described[kind]) for kind in ("inputs", "outputs"))
        except (KeyError, TypeError) as error:
            raise self._error(
                f"the server describes its model by other types than those served here: {error}"
            ) from error

    def get_inputs(self) -> Sequence[Tensor]:
        """What the graph takes."""
        return self._inputs

    def get_outputs(self) -> Sequence[Tensor]:
        """What it gives."""
        return self._outputs

    def run(self, names: Sequence[str], feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Outputs ``names`` for ``feeds`` of shape (B, S), or (B, C, H, W) of images.

        Raises:
            RemoteGraphError: The server refuses the request, or cannot be reached.
        """
        rows = len(next(iter(feeds.values())))
        pieces = [
            self._run(names, {name: array[first : first + MAX_BATCH] for name, array in feeds.items()})
            for first in range(0, rows, MAX_BATCH)
        ]
        return [np.concatenate(parts) for parts in zip(*pieces, strict=True)]

    def _run(self, names: Sequence[str], feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        padded = {name: self._pad(name, array) for name, array in feeds.items()}
        types = {type_name: datatype for datatype, (type_name, _) in _TYPES.items()}
        inputs = [
            {
                "name": tensor.name,
                "datatype": types[tensor.type],
                "shape": list(padded[tensor.name].shape),
                "data": padded[tensor.name].ravel().tolist(),
            }
            for tensor in self._inputs
        ]
        reply = self._ask({"inputs": inputs, "outputs": [{"name": name} for name in names]})
        try:
            found = {
                entry["name"]: np.array(entry["data"], _TYPES[entry["datatype"]][1]).reshape(entry["shape"])
                for entry in reply["outputs"]
            }
            return [found[name] for name in names]
        except (KeyError, TypeError, ValueError) as error:
            raise self._error(f"the server's reply is not one of the protocol: {error!r}") from error

    def _pad(self, name: str, array: NDArray[Any]) -> NDArray[Any]:
        """Of tokens, up to the next of the usual lengths."""
        if array.ndim != 2:
            return array
        length = next((length for length in self._lengths if length >= array.shape[1]), array.shape[1])
        return np.pad(array, ((0, 0), (0, length - array.shape[1])), constant_values=self._padding.get(name, 0))

    def _ask(self, body: dict[str, Any] | None) -> dict[str, Any]:
        """The reply to a request, or the model's description where there is no body."""
        data = None if body is None else json.dumps(body).encode()
        url = self._url if body is None else f"{self._url}/infer"
        request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
                received = response.read()
            content = json.loads(received)
        except urllib.error.HTTPError as error:
            with error:
                said = error.read(300).decode(errors="replace").strip().replace("\n", " ")
            raise self._error(f"the server answered {error.code}: {said or error.reason}") from error
        except (OSError, ValueError) as error:
            raise self._error(f"the server cannot be asked: {error}") from error
        if not isinstance(content, dict):
            raise self._error("the server's reply is no JSON object")
        return content

    def _error(self, what: str) -> RemoteGraphError:
        return RemoteGraphError(what, where=self._url, todo="check the address, and that the model is loaded there")


def _tensors(entries: Sequence[Mapping[str, Any]]) -> list[Tensor]:
    return [
        Tensor(str(entry["name"]), _TYPES[str(entry["datatype"])][0], [int(size) for size in entry["shape"]])
        for entry in entries
    ]
