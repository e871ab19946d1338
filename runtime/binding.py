"""Run a session on host arrays, with its inputs and outputs in the memory of the device that computes.

``InferenceSession.run`` hands a GPU its inputs in host memory and leaves it to ONNX Runtime when and how often they
travel. Here each input is copied once into a buffer on the device, the outputs stay there until the graph has finished,
and only then come back:

    upload          host arrays -> device buffers, then wait until they have arrived
    run_on_device   the graph alone, then wait until the device has finished
    download        device outputs -> new host arrays

``run`` is the three together: what a user waits for. ``run_on_device`` alone is the time of the device without the
copies. CUDA runs kernels after the call that starts them has returned, so a clock that is not stopped behind the
second wait measures how long it takes to ask.

Reference: ONNX Runtime, "I/O Binding", https://onnxruntime.ai/docs/performance/tune-performance/iobinding.html
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray


class BoundSession:
    """A session whose inputs and outputs are bound to a device.

    Holds one buffer on the device for every shape of every input that it has seen, so that a shape that returns costs
    no allocation. Outputs are allocated anew by each run, since their shapes follow from the inputs: results of
    earlier runs are never overwritten. Tensors of types that numpy has, no sequences.

    Args:
        session: An ``onnxruntime.InferenceSession``.
        device: ONNX Runtime's name of the memory: ``"cuda"``, also for TensorRT, or ``"cpu"``.
        device_id: Which of the devices of that kind.
    """

    def __init__(self, session: Any, *, device: str = "cuda", device_id: int = 0) -> None:
        self._session, self._device, self._device_id = session, device, device_id
        self._binding = session.io_binding()
        self._inputs = tuple(entry.name for entry in session.get_inputs())
        self._outputs = tuple(entry.name for entry in session.get_outputs())
        self._buffers: dict[tuple[str, tuple[int, ...], str], Any] = {}

    def reserve(self, feeds: Mapping[str, NDArray[Any]]) -> None:
        """Allocate the buffers for inputs of these shapes and types, ahead of the clock."""
        for name, array in feeds.items():
            self._buffer(name, array)

    def upload(self, feeds: Mapping[str, NDArray[Any]]) -> None:
        """Copy the inputs to the device and wait for them.

        Args:
            feeds: C-contiguous arrays of the types that the graph declares, all of its inputs by name.

        Raises:
            ValueError: An input is missing; the value of an earlier run would stand in for it.
        """
        missing = [name for name in self._inputs if name not in feeds]
        if missing:
            raise ValueError(f"the input '{missing[0]}' is missing")
        for name in self._inputs:
            buffer = self._buffer(name, feeds[name])
            buffer.update_inplace(feeds[name])
            self._binding.bind_ortvalue_input(name, buffer)
        self._binding.synchronize_inputs()

    def run_on_device(self) -> None:
        """Run the graph on what was uploaded last and wait until the device has finished."""
        for name in self._outputs:  # anew: a bound output keeps its last buffer, which has the last shape
            self._binding.bind_output(name, self._device, self._device_id)
        self._session.run_with_iobinding(self._binding)
        self._binding.synchronize_outputs()

    def download(self) -> dict[str, NDArray[Any]]:
        """The outputs of the last run by name, in host memory."""
        return dict(zip(self._outputs, self._binding.copy_outputs_to_cpu(), strict=True))

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Host arrays in, host arrays out: ``upload``, ``run_on_device``, ``download``."""
        self.upload(feeds)
        self.run_on_device()
        return self.download()

    def _buffer(self, name: str, array: NDArray[Any]) -> Any:
        import onnxruntime

        key = (name, array.shape, array.dtype.str)
        if key not in self._buffers:
            self._buffers[key] = onnxruntime.OrtValue.ortvalue_from_shape_and_type(
                list(array.shape), np.dtype(array.dtype).type, self._device, self._device_id
            )
        return self._buffers[key]
