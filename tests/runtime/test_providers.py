from __future__ import annotations

import ctypes
import importlib.metadata

import pytest

from compactor.runtime import providers
from compactor.runtime.errors import ProviderUnavailableError
from compactor.runtime.providers import (
    Provider,
    count_cuda_devices,
    cuda_device_names,
    installed_runtimes,
    not_run_reason,
    resolve_provider,
)

WITH_CUDA = ["CUDAExecutionProvider", "CPUExecutionProvider"]
WITH_TENSORRT = ["TensorrtExecutionProvider", *WITH_CUDA]


@pytest.fixture
def install(monkeypatch):
    def install(versions):
        def version(name):
            if name not in versions:
                raise importlib.metadata.PackageNotFoundError(name)
            return versions[name]

        monkeypatch.setattr(importlib.metadata, "version", version)

    return install


def fake_driver(*, devices, status=0):
    class Driver:
        @staticmethod
        def cuInit(flags):
            return status

        @staticmethod
        def cuDeviceGetCount(pointer):
            ctypes.cast(pointer, ctypes.POINTER(ctypes.c_int))[0] = devices
            return 0

        @staticmethod
        def cuDeviceGet(pointer, index):
            ctypes.cast(pointer, ctypes.POINTER(ctypes.c_int))[0] = 40 + index
            return 0

        @staticmethod
        def cuDeviceGetName(buffer, size, device):
            buffer.value = f"GPU {device.value}".encode()
            return 0 if device.value == 40 else 101

    return lambda name: Driver()


def test_cpu_is_there():
    assert resolve_provider("cpu") is Provider.CPU
    assert Provider.CPU.chain == ("CPUExecutionProvider",)


def test_cuda_falls_back_on_the_cpu_for_what_it_has_no_kernel_for(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", fake_driver(devices=1))
    assert resolve_provider("cuda", available=WITH_CUDA) is Provider.CUDA
    assert Provider.CUDA.chain == tuple(WITH_CUDA)


def test_tensorrt_falls_back_on_cuda_and_then_on_the_cpu(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", fake_driver(devices=1))
    assert resolve_provider("tensorrt", available=WITH_TENSORRT) is Provider.TENSORRT
    assert Provider.TENSORRT.chain == tuple(WITH_TENSORRT)


def test_refuses_an_unknown_provider_and_lists_the_known():
    with pytest.raises(ProviderUnavailableError, match="'tpu'") as caught:
        resolve_provider("tpu")
    assert caught.value.todo == "choose one of: cpu, cuda, tensorrt"


def test_refuses_cuda_where_it_is_not_installed(install):
    install({"onnxruntime": "1.31.1"})
    with pytest.raises(ProviderUnavailableError) as caught:
        resolve_provider("cuda", available=["CPUExecutionProvider"])
    assert "'cuda' provider is not available" in caught.value.what
    assert caught.value.where == "installed: onnxruntime 1.31.1"
    assert "onnxruntime-gpu[cuda,cudnn]" in caught.value.todo
    assert len(str(caught.value).splitlines()) == 3


def test_tensorrt_wants_more_than_cuda_does(install):
    install({"onnxruntime-gpu": "1.31.1"})
    with pytest.raises(ProviderUnavailableError) as caught:
        resolve_provider("tensorrt", available=WITH_CUDA)
    assert caught.value.todo.endswith("'onnxruntime-gpu[cuda,cudnn]' && pip install 'tensorrt-cu13<11'")


def test_names_the_conflict_of_two_installed_runtimes(install):
    install({"onnxruntime": "1.31.1", "onnxruntime-gpu": "1.31.0"})
    assert installed_runtimes() == {"onnxruntime": "1.31.1", "onnxruntime-gpu": "1.31.0"}
    with pytest.raises(ProviderUnavailableError, match=r"overwrite each other: keep one") as caught:
        resolve_provider("cuda", available=["CPUExecutionProvider"])
    assert "onnxruntime 1.31.1 and onnxruntime-gpu 1.31.0" in caught.value.where


@pytest.mark.parametrize("name", ["cuda", "tensorrt"])
def test_refuses_cuda_without_a_gpu(monkeypatch, name):
    monkeypatch.setattr(providers, "count_cuda_devices", lambda: 0)
    with pytest.raises(ProviderUnavailableError, match=f"'{name}' provider is installed, but there is no GPU"):
        resolve_provider(name, available=WITH_TENSORRT)


@pytest.mark.parametrize(
    ("name", "devices", "available", "reason"),
    [
        ("cpu", 0, ["CPUExecutionProvider"], None),
        ("cuda", 0, WITH_CUDA, "not run: no CUDA device"),
        ("cuda", 0, ["CPUExecutionProvider"], "not run: no CUDA device"),
        ("cuda", 1, ["CPUExecutionProvider"], "not run: ONNX Runtime here has no CUDA provider"),
        ("cuda", 1, WITH_CUDA, None),
        ("tensorrt", 0, WITH_TENSORRT, "not run: no CUDA device"),
        ("tensorrt", 1, WITH_CUDA, "not run: ONNX Runtime here has no TensorRT provider"),
        ("tensorrt", 1, WITH_TENSORRT, None),
    ],
)
def test_says_why_a_provider_cannot_be_measured(monkeypatch, name, devices, available, reason):
    monkeypatch.setattr(providers, "count_cuda_devices", lambda: devices)
    assert not_run_reason(name, available=available) == reason


def test_asks_onnxruntime_what_it_has(monkeypatch):
    monkeypatch.setattr(providers, "available_providers", lambda: [])
    assert not_run_reason("cpu") == "not run: ONNX Runtime here has no CPU provider"


def test_has_no_reason_for_what_it_does_not_know():
    with pytest.raises(ProviderUnavailableError, match="'tpu'"):
        not_run_reason("tpu")


def no_driver(name):
    raise OSError(f"{name}: cannot open shared object file")


@pytest.mark.parametrize(
    ("driver", "count"),
    [(fake_driver(devices=2), 2), (fake_driver(devices=2, status=100), 0), (no_driver, 0)],
    ids=["two-gpus", "driver-fails", "no-driver"],
)
def test_counts_what_the_driver_shows(monkeypatch, driver, count):
    monkeypatch.setattr(ctypes, "CDLL", driver)
    assert count_cuda_devices() == count


def test_names_the_gpus_and_counts_one_whose_name_it_cannot_read(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", fake_driver(devices=2))
    assert cuda_device_names() == ("GPU 40", "unknown")
