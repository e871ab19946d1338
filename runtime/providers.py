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

# onnxruntime-gpu 1.31 links to libnvinfer.so.10 and to CUDA 13: TensorRT 11 has another name.
TENSORRT_HINT = "pip install 'tensorrt-cu13<11'"

_DISTRIBUTIONS = ("onnxruntime", "onnxruntime-gpu")
_NAME_BYTES = 128


class Provider(enum.StrEnum):
    """An execution provider of ONNX Runtime, by the name that people use."""

    CPU = "cpu"
    CUDA = "cuda"
    TENSORRT = "tensorrt"

    @property
    def chain(self) -> tuple[str, ...]:
        """Names of the providers to register, in order: what one cannot run falls to the next."""
        names = ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider")
        return names[{Provider.TENSORRT: 0, Provider.CUDA: 1, Provider.CPU: 2}[self] :]

    @property
    def label(self) -> str:
        """The name as its maker writes it."""
        return {Provider.CPU: "CPU", Provider.CUDA: "CUDA", Provider.TENSORRT: "TensorRT"}[self]

    @property
    def needs_gpu(self) -> bool:
        """Whether it runs on an NVIDIA GPU."""
        return self is not Provider.CPU

    @property
    def install_hint(self) -> str:
        """The command that installs its libraries."""
        return f"{GPU_HINT} && {TENSORRT_HINT}" if self is Provider.TENSORRT else GPU_HINT


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


def cuda_device_names() -> tuple[str, ...]:
    """Names of the GPUs that the CUDA driver shows this process, in its order; empty without a driver."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return ()
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return ()
    names = []
    for index in range(count.value):
        device, name = ctypes.c_int(0), ctypes.create_string_buffer(_NAME_BYTES)
        found = driver.cuDeviceGet(ctypes.byref(device), index) == 0
        found = found and driver.cuDeviceGetName(name, _NAME_BYTES, device) == 0
        names.append(name.value.decode("utf-8", "replace") if found else "unknown")
    return tuple(names)


def count_cuda_devices() -> int:
    """GPUs that the CUDA driver shows this process; 0 without a driver."""
    return len(cuda_device_names())


def not_run_reason(name: str, *, available: Sequence[str] | None = None) -> str | None:
    """Why nothing can be measured with the provider called ``name`` here, as reports print it; None where it can.

    Args:
        name: ``"cpu"``, ``"cuda"`` or ``"tensorrt"``.
        available: ONNX Runtime's names of what is installed; asks ONNX Runtime when omitted.

    Raises:
        ProviderUnavailableError: There is no such provider.
    """
    provider = _find(name)
    if provider.needs_gpu and not count_cuda_devices():
        return "not run: no CUDA device"
    if provider.chain[0] not in (available_providers() if available is None else available):
        return f"not run: ONNX Runtime here has no {provider.label} provider"
    return None


def resolve_provider(name: str, *, available: Sequence[str] | None = None) -> Provider:
    """The provider called ``name``, once it is known that it can run here.

    Args:
        name: ``"cpu"``, ``"cuda"`` or ``"tensorrt"``.
        available: ONNX Runtime's names of what is installed; asks ONNX Runtime when omitted.

    Raises:
        ProviderUnavailableError: There is no such provider, this environment lacks it, or there is no GPU for it.
    """
    provider = _find(name)
    available = available_providers() if available is None else available
    if provider.chain[0] not in available:
        runtimes = installed_runtimes()
        listed = " and ".join(f"{package} {version}" for package, version in runtimes.items()) or "no distribution"
        conflict = " (they overwrite each other: keep one)" if len(runtimes) > 1 else ""
        raise ProviderUnavailableError(
            f"the '{name}' provider is not available: ONNX Runtime has {', '.join(available) or 'none'}",
            where=f"installed: {listed}{conflict}",
            todo=f"install ONNX Runtime for GPUs in place of the CPU one: {provider.install_hint}",
        )
    if provider.needs_gpu and not count_cuda_devices():
        raise ProviderUnavailableError(
            f"the '{name}' provider is installed, but there is no GPU that it could use",
            where="the CUDA driver is missing or shows no device",
            todo="check with nvidia-smi, and CUDA_VISIBLE_DEVICES; or use the 'cpu' provider",
        )
    return provider


def _find(name: str) -> Provider:
    try:
        return Provider(name)
    except ValueError:
        raise ProviderUnavailableError(
            f"there is no execution provider '{name}'", todo=f"choose one of: {', '.join(Provider)}"
        ) from None
