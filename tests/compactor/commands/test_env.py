from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys

import onnxruntime
import pytest
from click.testing import CliRunner

from compactor.commands import env
from compactor.runtime import providers
from compactor.runtime.threads import usable_cores


@pytest.fixture
def run():
    def run(*arguments):
        result = CliRunner().invoke(env.command, arguments)
        assert result.exit_code == 0, result.output
        return result.stdout

    return run


def test_shows_versions_cores_and_providers_as_plain_lines(run):
    lines = dict(line.split(maxsplit=1) for line in run().splitlines())
    assert lines["onnxruntime"] == onnxruntime.__version__
    assert lines["python"] == ".".join(map(str, sys.version_info[:3]))
    assert "CPUExecutionProvider" in lines["providers"]
    assert lines["threads"].startswith(f"{usable_cores()} (")
    assert {"system", "cores", "memory", "instructions", "int8"} <= lines.keys()
    assert "\x1b" not in run()


def test_prints_one_json_document(run):
    report = json.loads(run("--json"))
    assert report["versions"]["onnxruntime"] == onnxruntime.__version__
    assert report["machine"]["logical_cores"] >= 1
    assert report["threads"]["planned"] == usable_cores()
    assert report["onnxruntime_conflict"] is False


def test_names_the_conflict_of_two_runtimes(run, monkeypatch):
    monkeypatch.setattr(providers, "installed_runtimes", lambda: {"onnxruntime": "1", "onnxruntime-gpu": "1"})
    assert "conflict: onnxruntime and onnxruntime-gpu" in run()
    assert json.loads(run("--json"))["onnxruntime_conflict"] is True


def test_says_how_to_get_the_gpu_runtime(run, monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    assert "cannot be beside onnxruntime; to swap: pip uninstall -y onnxruntime" in run()


def test_counts_gpus_where_cuda_is_installed(run, monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(providers, "count_cuda_devices", lambda: 2)
    assert "'cuda' is installed; GPUs that the driver shows: 2" in run()


def test_survives_an_onnxruntime_that_does_not_load(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert "ONNX Runtime does not load" in run()
    assert json.loads(run("--json"))["providers"] is None


def test_leaves_out_what_is_not_installed(run, monkeypatch):
    version = importlib.metadata.version

    def without_torch(name):
        if name == "torch":
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", without_torch)
    assert not any(line.startswith("torch") for line in run().splitlines())
    assert json.loads(run("--json"))["versions"]["torch"] is None


def test_importing_the_command_loads_no_heavy_package():
    code = "import sys, compactor.commands.env; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"numpy", "onnx", "onnxruntime", "torch", "transformers", "rich"} & set(loaded)
