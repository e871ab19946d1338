"""The engines that run a variant, each behind the same three words: open, prepare, run.

An engine is imported when it is opened, so a process that times ONNX Runtime never loads PyTorch. Each has a file of
its own: ``ort.py``, ``openvino.py``, ``torch.py``, ``ctranslate2.py``. Encoder-decoders have engines of their own,
``ort_generation.py`` and ``torch_generation.py``: what is prepared and run there is a ``part`` of the model.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any, Protocol

from numpy.typing import NDArray

from compactor.benching.plan import Variant
from compactor.errors import UsageError

# Where each engine can run; "openvino" and "torch" are names of --provider and mean the CPU.
PROVIDERS: Mapping[str, tuple[str, ...]] = {
    "onnxruntime": ("cpu", "cuda", "tensorrt"),
    "openvino": ("openvino", "cpu"),
    "torch": ("torch", "cpu", "cuda"),
    "ctranslate2": ("cpu", "cuda"),
}
_GENERATE = ("onnxruntime", "torch")


class Engine(Protocol):
    """A model that is loaded and ready to be timed.

    Attributes:
        environment: Versions, providers in use and settings, as JSON values.
    """

    environment: dict[str, Any]

    def prepare(self, feeds: Mapping[str, NDArray[Any]]) -> Any:
        """Pick the model's inputs and cast them to its types, ahead of the clock.

        Raises:
            ModelDirectoryError: The model wants an input that ``feeds`` lacks.
        """
        ...

    def run(self, prepared: Any) -> dict[str, NDArray[Any]]:
        """The outputs by name: from host arrays to host arrays, with every device synchronised."""
        ...


def open_engine(variant: Variant, *, threads: int, spinning: bool) -> Any:
    """Load the variant's model: an ``Engine``; of an encoder-decoder, what gives a ``Runner`` for each ``part``.

    Args:
        variant: What to load, and where to run it.
        threads: Threads of one operator.
        spinning: Let idle threads wait busily, where the engine can be told.

    Raises:
        UsageError: The engine does not run on that provider, does not run encoder-decoders, or does not know an option.
        ModelDirectoryError: The model is missing or damaged.
        ProviderUnavailableError: The engine or the provider is not installed, or has no device.
    """
    if variant.engine == "http":
        raise ValueError(f"{variant.name} is an endpoint: there is nothing to open")
    if variant.generates and variant.engine not in _GENERATE:
        raise UsageError(f"{variant.engine} does not run encoder-decoders here", where=variant.name)
    if variant.provider not in PROVIDERS[variant.engine]:
        raise UsageError(
            f"{variant.engine} does not run on '{variant.provider}'",
            where=variant.name,
            todo=f"choose one of: {', '.join(PROVIDERS[variant.engine])}",
        )
    match variant.engine, variant.generates:
        case "onnxruntime", False:
            from compactor.benching.engines.ort import OrtEngine

            return OrtEngine(variant, threads=threads, spinning=spinning)
        case "onnxruntime", True:
            from compactor.benching.engines.ort_generation import OrtGenerator

            return OrtGenerator(variant, threads=threads, spinning=spinning)
        case "torch", False:
            from compactor.benching.engines.torch import TorchEngine

            return TorchEngine(variant, threads=threads, spinning=spinning)
        case "torch", True:
            from compactor.benching.engines.torch_generation import TorchGenerator

            return TorchGenerator(variant, threads=threads, spinning=spinning)
        case "openvino", _:
            from compactor.benching.engines.openvino import OpenVinoEngine

            return OpenVinoEngine(variant, threads=threads)
        case "ctranslate2", _:
            from compactor.benching.engines.ctranslate2 import CTranslate2Engine

            return CTranslate2Engine(variant, threads=threads)


def not_run_reason(engine: str, provider: str) -> str | None:
    """Why nothing can run with this engine and provider here, as reports print it; None where it can.

    Loads neither a model nor PyTorch, so what turns out only at the start, such as a PyTorch without CUDA, is an error
    of the variant.
    """
    from compactor.runtime.providers import count_cuda_devices
    from compactor.runtime.providers import not_run_reason as ort_reason

    if engine == "onnxruntime":
        return ort_reason(provider)
    if importlib.util.find_spec(engine) is None:
        extra = "export" if engine == "torch" else "peers"
        return f"not run: {engine} is not installed: pip install 'compactor[{extra}]'"
    if provider == "cuda" and not count_cuda_devices():
        return "not run: no CUDA device"
    return None
