"""OpenVINO: an ``.onnx`` file or an ``.xml`` of its own on the CPU, one stream, for latency, with dynamic shapes.

A row that says fp32 is computed in float32, also where OpenVINO would choose bfloat16 for speed (on CPUs with AMX);
one that says bf16 in bfloat16. Graphs of int8 keep OpenVINO's choice for what is not int8 in them, and the choice is in
``environment``. Options are OpenVINO's properties by name and come last.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from compactor.benching.engines.feeding import choose_inputs
from compactor.benching.plan import Variant
from compactor.errors import ModelDirectoryError
from compactor.runtime.errors import ProviderUnavailableError

_PRECISIONS = {"fp32": "f32", "bf16": "bf16"}
_SHOWN = ("INFERENCE_PRECISION_HINT", "INFERENCE_NUM_THREADS", "NUM_STREAMS", "PERFORMANCE_HINT")


class OpenVinoEngine:
    """A graph compiled by OpenVINO; see ``Engine``."""

    def __init__(self, variant: Variant, *, threads: int) -> None:
        if importlib.util.find_spec("openvino") is None:
            raise ProviderUnavailableError("OpenVINO is not installed", todo="pip install 'compactor[peers]'")
        import openvino

        if not variant.path.is_file():
            raise ModelDirectoryError(f"there is no model file '{variant.path}'")
        properties = {"INFERENCE_NUM_THREADS": str(threads), "NUM_STREAMS": "1", "PERFORMANCE_HINT": "LATENCY"}
        if variant.precision in _PRECISIONS:
            properties["INFERENCE_PRECISION_HINT"] = _PRECISIONS[variant.precision]
        properties |= {name: str(value) for name, value in variant.options.items()}
        self._where = str(variant.path)
        try:
            compiled = openvino.Core().compile_model(self._where, "CPU", properties)
        except RuntimeError as error:  # the last line says something: OpenVINO puts its source files first
            lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
            raise ModelDirectoryError(f"OpenVINO cannot compile the graph: {lines[-1]}", where=self._where) from error
        self._request = compiled.create_infer_request()
        self._types = {port.get_any_name(): port.get_element_type().to_dtype() for port in compiled.inputs}
        self._outputs = {port.get_any_name(): port for port in compiled.outputs}
        shown = {name: compiled.get_property(name) for name in (*_SHOWN, *variant.options)}
        self.environment: dict[str, Any] = {
            "openvino": openvino.__version__,
            "providers": ["CPU"],
            "threads": threads,
            "properties": {  # as one would set them: ``f32``, not the name of its class
                name: str(value.get_type_name() if hasattr(value, "get_type_name") else value)
                for name, value in shown.items()
            },
        }

    def prepare(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """The graph's inputs, of the types it declares."""
        return choose_inputs(feeds, self._types, where=self._where)

    def run(self, prepared: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """The graph's outputs, copied: OpenVINO writes the next ones over its own."""
        results = self._request.infer(prepared, share_inputs=True)
        return {name: results[port] for name, port in self._outputs.items()}
