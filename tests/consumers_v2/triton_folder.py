"""Makes MLServer serve a model of a Triton repository, going by its ``config.pbtxt`` alone, as Triton does.

Runs in MLServer's own environment (``make test-v2``), which has nothing of compactor.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.errors import InferenceError
from mlserver.types import InferenceRequest, InferenceResponse, MetadataTensor


class TritonFolder(MLModel):
    """The model in the folder ``parameters.uri``, configured by what ``read_config.py`` says of it."""

    async def load(self) -> bool:
        folder, config = Path(self.settings.parameters.uri), self.settings.parameters.extra["config"]
        assert config["name"] == folder.name == self.name
        assert config["backend"] == "onnxruntime"
        versions = [int(path.name) for path in folder.iterdir() if path.is_dir() and path.name.isdigit()]
        graph = folder / str(max(versions)) / "model.onnx"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(config["parameters"]["intra_op_thread_count"]["string_value"])
        options.inter_op_num_threads = int(config["parameters"]["inter_op_thread_count"]["string_value"])
        self._session = onnxruntime.InferenceSession(
            graph / "model.onnx" if graph.is_dir() else graph, options, providers=["CPUExecutionProvider"]
        )
        self._max_batch = config["max_batch_size"]
        self.inputs = [_metadata(tensor) for tensor in config["input"]]
        self.outputs = [_metadata(tensor) for tensor in config["output"]]
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        sent = {tensor.name: tensor for tensor in payload.inputs}
        if sent.keys() != {tensor.name for tensor in self.inputs}:
            raise InferenceError(f"got the inputs {', '.join(sent)}")
        for tensor in self.inputs:
            given = sent[tensor.name]
            if given.datatype != tensor.datatype or not self._fits(tensor, given.shape):
                raise InferenceError(f"'{tensor.name}' is {given.datatype} {given.shape}")
        feeds = {name: NumpyCodec.decode_input(tensor) for name, tensor in sent.items()}
        names = [tensor.name for tensor in self.outputs]
        arrays: list[np.ndarray] = await asyncio.to_thread(self._session.run, names, feeds)
        outputs = [NumpyCodec.encode_output(name, array) for name, array in zip(names, arrays, strict=True)]
        for tensor, got in zip(self.outputs, outputs, strict=True):
            if got.datatype != tensor.datatype or not self._fits(tensor, got.shape):
                raise InferenceError(f"'{tensor.name}' came out as {got.datatype} {got.shape}", status_code=500)
        return InferenceResponse(model_name=self.name, outputs=outputs)

    def _fits(self, tensor: MetadataTensor, shape: Sequence[int]) -> bool:
        batch, *dims = shape
        stated = tensor.shape[1:]
        fits = len(dims) == len(stated) and all(want in (-1, have) for want, have in zip(stated, dims, strict=True))
        return fits and 1 <= batch <= self._max_batch


def _metadata(tensor: dict[str, Any]) -> MetadataTensor:
    dims = [int(size) for size in tensor["dims"]]
    return MetadataTensor(name=tensor["name"], datatype=tensor["data_type"].removeprefix("TYPE_"), shape=[-1, *dims])
