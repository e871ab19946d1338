"""Execution providers: which there are, which can run here, and what to install for the rest."""

from __future__ import annotations

import ctypes
import enum
import importlib.metadata
import sys
from collections.abc import Sequence

from .errors import ProviderUnavailableError

# Uninstalled first because the two distributions fill the same folder: installing one over the other mixes them.
GPU_HINT = "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'onnxruntime-gpu[cuda,cudnn]'"

_DISTRIBUTIONS = ("onnxruntime", "onnxruntime-gpu")


class Provider(enum.StrEnum):
    """An execution provider of ONNX Runtime, by the name that people use."""

    CPU = "cpu"
    CUDA = "cuda"

    @property
    def chain(self) -> tuple[str, ...]:
        """Names of the providers to register, in order: what one cannot run falls to the next."""
        if self is Provider.CUDA:
            return ("CUDAExecutionProvider", "CPUExecutionProvider")
        return ("CPUExecutionProvider",)


def available_providers() -> list[str]:
    """Providers that the installed ONNX Runtime was built with, by its own names."""
    import onnxruntime

    return [str(name) for name in onnxruntime.get_available_providers()]


def installed_runtimes() -> dict[str, str]:
    """Version of each installed ONNX Runtime distribution.

    Two entries are a conflict: both unpack into the same folder, so the one installed last wins and removing
    either breaks the other.
    """
    versions = {}
    for name in _DISTRIBUTIONS:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def count_cuda_devices() -> int:
    """GPUs that the CUDA driver shows this process; 0 without a driver."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    started = driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0
    return count.value if started else 0


def resolve_provider(name: str, *, available: Sequence[str] | None = None) -> Provider:
    """The provider called ``name``, once it is known that it can run here.

    Args:
        name: ``"cpu"`` or ``"cuda"``.
        available: ONNX Runtime's names of what is installed; asks ONNX Runtime when omitted.

    Raises:
        ProviderUnavailableError: There is no such provider, this environment lacks it, or there is no GPU for it.
    """
    try:
        provider = Provider(name)
    except ValueError:
        raise ProviderUnavailableError(
            f"there is no execution provider '{name}'", todo=f"choose one of: {', '.join(Provider)}"
        ) from None
    available = available_providers() if available is None else available
    missing = provider.chain[0]
    if missing not in available:
        runtimes = installed_runtimes()
        listed = " and ".join(f"{package} {version}" for package, version in runtimes.items()) or "no distribution"
        conflict = " (they overwrite each other: keep one)" if len(runtimes) > 1 else ""
        raise ProviderUnavailableError(
            f"the '{name}' provider is not available: ONNX Runtime has {', '.join(available) or 'none'}",
            where=f"installed: {listed}{conflict}",
            todo=f"install ONNX Runtime for GPUs in place of the CPU one: {GPU_HINT}",
        )
    if provider is Provider.CUDA and not count_cuda_devices():
        raise ProviderUnavailableError(
            "the 'cuda' provider is installed, but there is no GPU that it could use",
            where="the CUDA driver is missing or shows no device",
            todo="check with nvidia-smi, and CUDA_VISIBLE_DEVICES; or use the 'cpu' provider",
        )
    return provider
