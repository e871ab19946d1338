from __future__ import annotations

import ctypes
import importlib.machinery
import importlib.util
import types

import numpy as np
import onnx
import onnxruntime
import pytest

from compactor.runtime import providers
from compactor.runtime.errors import ProviderUnavailableError
from compactor.runtime.sessions import RECORD_PLACEMENT, open_session, open_with_options, placement, session_options
from compactor.runtime.threads import usable_cores
from tests.runtime.graphs import VOCAB, WIDTH, dense_layer, embedding, save

LEVELS = onnxruntime.GraphOptimizationLevel


def test_opens_a_file_and_bytes_alike(tmp_path):
    model = dense_layer()
    feeds = {"x": np.ones((2, WIDTH), np.float32)}
    from_file = open_session(save(model, tmp_path / "model.onnx"), threads=1)
    from_bytes = open_session(model.SerializeToString(), threads=1)
    np.testing.assert_array_equal(from_file.run(None, feeds)[0], from_bytes.run(None, feeds)[0])


def test_runs_on_the_cpu_alone_by_default():
    assert open_session(dense_layer().SerializeToString()).get_providers() == ["CPUExecutionProvider"]


@pytest.mark.parametrize(("requested", "threads"), [(None, usable_cores()), (3, 3)])
def test_uses_the_planned_threads(requested, threads):
    session = open_session(dense_layer().SerializeToString(), threads=requested)
    assert session.get_session_options().intra_op_num_threads == threads


@pytest.mark.parametrize(("spin", "entry"), [(True, "1"), (False, "0")])
def test_spins_only_when_allowed(spin, entry):
    options = session_options(allow_spinning=spin)
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == entry


@pytest.mark.parametrize(("optimize", "level"), [(True, LEVELS.ORT_ENABLE_ALL), (False, LEVELS.ORT_DISABLE_ALL)])
def test_lets_onnxruntime_rewrite_the_graph_or_not(optimize, level):
    assert session_options(optimize=optimize).graph_optimization_level == level


def test_writes_the_graph_that_runs(tmp_path):
    path = tmp_path / "rewritten.onnx"
    open_session(dense_layer().SerializeToString(), optimized_model_path=path)
    assert [node.op_type for node in onnx.load(path).graph.node] == ["Gemm", "Gelu"]


def test_refuses_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="no model file"):
        open_session(tmp_path / "nothing.onnx")


def test_a_broken_model_is_an_error_and_prints_nothing(capfd):
    with pytest.raises(Exception, match=r"(?i)protobuf"):
        open_session(b"not a model")
    assert capfd.readouterr() == ("", "")


def test_an_operator_that_fails_raises_and_logs_nothing(capfd):
    session = open_session(embedding().SerializeToString())
    feeds = {"input_ids": np.full((1, 2), VOCAB), "attention_mask": np.ones((1, 2), np.int64)}
    with pytest.raises(Exception, match="out of data bounds"):
        session.run(None, feeds)
    assert capfd.readouterr() == ("", "")


def test_refuses_cuda_where_onnxruntime_lacks_it(monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(ProviderUnavailableError, match="'cuda' provider is not available"):
        open_session(dense_layer().SerializeToString(), provider="cuda")


def pretend_cuda(monkeypatch, *, started, error=None):
    """An ONNX Runtime that was built for GPUs, on a machine with one; returns what was asked of it."""
    asked = types.SimpleNamespace(preloaded=0, providers=None, options=None)

    def preload_dlls():
        asked.preloaded += 1
        print("Failed to load libcudnn.so.9")

    class Session:
        def __init__(self, model, options, *, providers, enable_fallback):
            asked.providers, asked.options = providers, options
            assert asked.preloaded, "the libraries must be loaded before the session opens"
            assert not enable_fallback
            if error is not None:
                raise error

        def get_providers(self):
            names = [entry if isinstance(entry, str) else entry[0] for entry in asked.providers]
            return names if started else ["CPUExecutionProvider"]

    available = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: available)
    monkeypatch.setattr(onnxruntime, "preload_dlls", preload_dlls)
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    monkeypatch.setattr(providers, "count_cuda_devices", lambda: 1)
    return asked


def test_cuda_loads_its_libraries_first_and_complains_on_stderr(monkeypatch, capsys):
    asked = pretend_cuda(monkeypatch, started=True)
    open_session(b"", provider="cuda")
    assert asked.preloaded == 1
    assert asked.providers == ["CUDAExecutionProvider", "CPUExecutionProvider"]
    assert capsys.readouterr() == ("", "Failed to load libcudnn.so.9\n")


def test_hands_its_options_to_the_provider_that_was_asked_for(monkeypatch):
    asked = pretend_cuda(monkeypatch, started=True)
    open_session(b"", provider="cuda", provider_options={"use_tf32": "0"})
    assert asked.providers == [("CUDAExecutionProvider", {"use_tf32": "0"}), "CPUExecutionProvider"]


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_refuses_a_silent_fallback_to_the_cpu(monkeypatch, provider):
    pretend_cuda(monkeypatch, started=False)
    with pytest.raises(ProviderUnavailableError, match=f"'{provider}' provider is installed but did not start"):
        open_session(b"", provider=provider)


def test_a_provider_that_raises_has_not_started(monkeypatch):
    pretend_cuda(monkeypatch, started=True, error=RuntimeError("Please install TensorRT libraries\nand so on"))
    with pytest.raises(ProviderUnavailableError, match="did not start") as caught:
        open_session(b"", provider="tensorrt")
    assert caught.value.where.endswith(": Please install TensorRT libraries")
    assert caught.value.todo.endswith("pip install 'tensorrt-cu13<11'")


def test_tensorrt_is_loaded_from_its_wheel(monkeypatch, tmp_path):
    asked = pretend_cuda(monkeypatch, started=True)
    files = [tmp_path / name for name in ("libnvinfer.so.10", "libnvonnxparser.so.10")]
    for file in [*files, tmp_path / "libnvinfer_plugin.so.10"]:
        file.touch()
    spec = importlib.machinery.ModuleSpec("tensorrt_libs", None, is_package=True)
    spec.submodule_search_locations.append(str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", {"tensorrt_libs": spec}.get)
    loaded = []

    def load(path):
        loaded.append(path)
        raise OSError("libcudart.so.13: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", load)
    open_session(b"", provider="tensorrt")
    assert loaded == [str(file) for file in files]
    assert asked.providers == ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]


def test_tensorrt_may_be_installed_without_its_wheel(monkeypatch):
    pretend_cuda(monkeypatch, started=True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert open_session(b"", provider="tensorrt").get_providers()[0] == "TensorrtExecutionProvider"


def test_a_gpu_records_which_provider_runs_which_node(monkeypatch):
    asked = pretend_cuda(monkeypatch, started=True)
    open_session(b"", provider="cuda")
    assert asked.options.get_session_config_entry(RECORD_PLACEMENT) == "1"


def test_counts_the_nodes_of_each_provider():
    options = session_options(threads=1)
    options.add_session_config_entry(RECORD_PLACEMENT, "1")
    session = open_with_options(dense_layer().SerializeToString(), options)
    assert placement(session) == {"CPUExecutionProvider": {"Gelu": 1, "Gemm": 1}}


def test_an_old_onnxruntime_does_not_know_the_placement():
    assert placement(object()) == {}
