from __future__ import annotations

import types

import numpy as np
import onnx
import onnxruntime
import pytest

from compactor.runtime import providers
from compactor.runtime.errors import ProviderUnavailableError
from compactor.runtime.sessions import open_session, session_options
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


def pretend_cuda(monkeypatch, *, started):
    """An ONNX Runtime that was built with CUDA, on a machine with a GPU; returns what was asked of it."""
    asked = types.SimpleNamespace(preloaded=0, providers=None)

    def preload_dlls():
        asked.preloaded += 1
        print("Failed to load libcudnn.so.9")

    class Session:
        def __init__(self, model, options, *, providers, enable_fallback):
            asked.providers = providers
            assert asked.preloaded, "the libraries must be loaded before the session opens"
            assert not enable_fallback

        def get_providers(self):
            return asked.providers if started else ["CPUExecutionProvider"]

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
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


def test_refuses_a_silent_fallback_to_the_cpu(monkeypatch):
    pretend_cuda(monkeypatch, started=False)
    with pytest.raises(ProviderUnavailableError, match="did not start"):
        open_session(b"", provider="cuda")
