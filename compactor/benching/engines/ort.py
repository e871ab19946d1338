"""ONNX Runtime: a graph on the CPU, on CUDA or on TensorRT.

On a GPU the inputs and outputs are bound to the device (``compactor.runtime.binding``). Matrices of float32 are
multiplied as float32 there: ONNX Runtime's own default, TF32, keeps 10 bits of the mantissa, and a row that says fp32
would not be one. The option ``tf32`` brings it back.

Options: ``tf32`` (false), ``provider_options`` (strings by name, passed on).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compactor.benching.engines.feeding import check_options, choose_inputs
from compactor.benching.plan import Variant
from compactor.errors import ModelDirectoryError
from compactor.runtime.binding import BoundSession
from compactor.runtime.decoding import open_in_turn
from compactor.runtime.errors import ProviderUnavailableError
from compactor.runtime.providers import Provider, cuda_device_names, installed_runtimes
from compactor.runtime.sessions import open_session, placement

_NUMPY_TYPES: Mapping[str, Any] = {
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
}


class OrtEngine:
    """A graph in ONNX Runtime, with its default rewrites; see ``Engine``."""

    def __init__(self, variant: Variant, *, threads: int, spinning: bool) -> None:
        check_options(variant.options, ("tf32", "provider_options"), where=variant.name)
        provider = Provider(variant.provider)
        options = provider_options(provider, variant)
        self._where = str(variant.path)
        self._session = open_graph(variant.path, provider, options, threads=threads, spinning=spinning)
        for entry in self._session.get_inputs():
            if entry.type not in _NUMPY_TYPES:
                raise ModelDirectoryError(
                    f"the input '{entry.name}' is of type {entry.type}, which cannot be filled",
                    where=self._where,
                    todo=f"types that can be: {', '.join(_NUMPY_TYPES)}",
                )
        self._types = {entry.name: _NUMPY_TYPES[entry.type] for entry in self._session.get_inputs()}
        self._outputs = [entry.name for entry in self._session.get_outputs()]
        device_id = int(options.get("device_id", 0))
        self._bound = BoundSession(self._session, device_id=device_id) if provider.needs_gpu else None
        self.environment = describe_session(self._session, threads, spinning)
        if provider.needs_gpu:
            nodes = placement(self._session)
            self.environment |= {
                "device": device_name(device_id),
                "io_binding": True,
                "provider_options": options,
                "nodes": {name: sum(operators.values()) for name, operators in nodes.items()},
                "nodes_on_cpu": nodes.get("CPUExecutionProvider", {}),
            }

    def prepare(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """The graph's inputs, of the types it declares."""
        chosen = choose_inputs(feeds, self._types, where=self._where)
        if self._bound is not None:
            self._bound.reserve(chosen)
        return chosen

    def run(self, prepared: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """The graph's outputs; on a GPU with the copies there and back."""
        if self._bound is not None:
            return self._bound.run(prepared)
        return dict(zip(self._outputs, self._session.run(self._outputs, prepared), strict=True))


def describe_session(
    session: Any, threads: int, spinning: bool, others: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The ``environment`` of a session, with the versions of ``others`` that take part."""
    import onnxruntime

    return {
        "onnxruntime": onnxruntime.__version__,
        "distributions": installed_runtimes(),
        **(others or {}),
        "providers": list(session.get_providers()),
        "threads": threads,
        "spinning": spinning,
    }


def device_name(device_id: int) -> str:
    """The GPU's name."""
    return dict(enumerate(cuda_device_names())).get(device_id, "unknown")


def provider_options(provider: Provider, variant: Variant) -> dict[str, str]:
    """The options of the provider that are set on purpose; the rest are ONNX Runtime's defaults."""
    options: dict[str, str] = {}
    if provider is Provider.CUDA:
        options["use_tf32"] = "1" if variant.options.get("tf32", False) else "0"
    if provider is Provider.TENSORRT and variant.precision == "fp16":
        options["trt_fp16_enable"] = "1"  # without it TensorRT computes a graph of float16 in float32
    return options | dict(variant.options.get("provider_options", {}))


def open_graph(
    path: Path, provider: Provider, options: dict[str, str], *, threads: int, spinning: bool, in_turn: bool = False
) -> Any:
    """A session; one that takes turns with others rests as soon as a run has ended.

    Raises:
        ModelDirectoryError: ONNX Runtime cannot open the file.
        ProviderUnavailableError: The provider does not start.
    """
    try:
        opener = open_in_turn if in_turn else open_session
        return opener(path, provider=provider, threads=threads, allow_spinning=spinning, provider_options=options)
    except ProviderUnavailableError:
        raise
    except FileNotFoundError as error:
        raise ModelDirectoryError(str(error)) from error
    except Exception as error:  # the classes of ONNX Runtime's errors have no base of their own
        raise ModelDirectoryError(
            f"ONNX Runtime cannot open the graph: {str(error).strip().splitlines()[0]}", where=str(path)
        ) from error
