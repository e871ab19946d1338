"""A Triton model says what its graph takes and gives, and the graph still runs where it was put."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from compactor.runtime.errors import ArtefactError
from compactor.runtime.triton import (
    Settings,
    Signature,
    Tensor,
    describe_model,
    is_model_name,
    read_signature,
    write_model,
)
from tests.runtime.graphs import make_model

SETTINGS = Settings(threads=2, threads_reason="Two cores")


def scaled(x: Any = ("batch", "length"), data_type: int = TensorProto.FLOAT) -> onnx.ModelProto:
    """y = x W, of (B, S) or another shape ``x``."""
    return make_model(
        [helper.make_node("Mul", ["x", "weight"], ["y"])],
        [helper.make_tensor_value_info("x", data_type, x)],
        [helper.make_tensor_value_info("y", data_type, x)],
        [("weight", np.full(1, 3, helper.tensor_dtype_to_np_dtype(data_type)))],
    )


def saved(model: onnx.ModelProto, path: Path, **options: Any) -> Path:
    onnx.save(model, path, **options)
    return path


def test_reads_names_types_and_dims_without_the_batch_axis(tmp_path: Path) -> None:
    model = make_model(
        [helper.make_node("Cast", ["ids"], ["scores"], to=TensorProto.FLOAT)],
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "length", 3])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", "length", 3])],
    )
    assert read_signature(saved(model, tmp_path / "model.onnx")) == Signature(
        (Tensor("ids", "TYPE_INT64", (-1, 3)),), (Tensor("scores", "TYPE_FP32", (-1, 3)),)
    )


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        pytest.param(scaled([1, "length"]), "no batch axis", id="batch-of-one"),
        pytest.param(scaled(["batch"]), "no batch axis", id="nothing-behind-the-batch"),
        pytest.param(scaled(data_type=TensorProto.DOUBLE), "'x' is of the type DOUBLE", id="double"),
    ],
)
def test_refuses_what_cannot_be_batched_or_sent(model: onnx.ModelProto, reason: str, tmp_path: Path) -> None:
    graph = saved(model, tmp_path / "model.onnx")
    with pytest.raises(ArtefactError, match=reason):
        write_model(graph, tmp_path / "served", "name", SETTINGS)
    assert list(tmp_path.iterdir()) == [graph]


def test_the_text_is_this() -> None:
    signature = Signature(
        (Tensor("input_ids", "TYPE_INT64", (-1,)), Tensor("attention_mask", "TYPE_INT64", (-1,))),
        (Tensor("logits", "TYPE_FP32", (-1, 3)),),
    )
    settings = Settings(4, "As requested", max_batch=8, queue_delay_us=500, queue_size=16, queue_timeout_us=9_000)
    lines = [line for line in describe_model("tagger", signature, settings).splitlines() if line[:1] != "#"]
    assert " ".join(" ".join(lines).split()) == (
        'name: "tagger" backend: "onnxruntime" max_batch_size: 8 '
        'input { name: "input_ids" data_type: TYPE_INT64 dims: [ -1 ] } '
        'input { name: "attention_mask" data_type: TYPE_INT64 dims: [ -1 ] } '
        'output { name: "logits" data_type: TYPE_FP32 dims: [ -1, 3 ] } '
        "dynamic_batching { max_queue_delay_microseconds: 500 default_queue_policy { timeout_action: REJECT "
        "default_timeout_microseconds: 9000 allow_timeout_override: true max_queue_size: 16 } } "
        "instance_group [ { kind: KIND_CPU count: 1 } ] "
        'parameters { key: "intra_op_thread_count" value: { string_value: "4" } } '
        'parameters { key: "inter_op_thread_count" value: { string_value: "1" } } '
        "version_policy { latest { num_versions: 1 } }"
    )


def test_a_gpu_has_instances_on_the_gpu() -> None:
    text = describe_model("m", Signature((), ()), Settings(1, "Little is left", gpu=True))
    assert "kind: KIND_GPU" in text and "KIND_CPU" not in text


@pytest.mark.parametrize("external", [False, True])
def test_the_graph_runs_where_it_was_put(external: bool, tmp_path: Path) -> None:
    graph = saved(
        scaled(),
        tmp_path / "model_quantized.onnx",
        save_as_external_data=external,
        location="model_quantized.onnx_data",
        size_threshold=0,
    )
    placed = write_model(graph, tmp_path / "served", "name", SETTINGS)
    files = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    version = ["1/model.onnx/model.onnx", "1/model.onnx/model.onnx_data"] if external else ["1/model.onnx"]
    assert files == {"served/config.pbtxt", *(f"served/{name}" for name in version)}
    assert placed == tmp_path / "served" / version[0]
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_array_equal(onnxruntime.InferenceSession(placed).run(None, {"x": x})[0], 3 * x)


@pytest.mark.parametrize("name", ["sst2-small", "a", "bert_base.v2", "7b"])
def test_names_for_a_model(name: str) -> None:
    assert is_model_name(name)


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "-x", "a/b", "a b", 'a"b', "modèle", "a\n", "x" * 129])
def test_no_names_for_a_model(name: str) -> None:
    assert not is_model_name(name)
