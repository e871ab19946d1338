from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from compactor.runtime.binding import BoundSession
from compactor.runtime.sessions import open_session
from tests.runtime.graphs import VOCAB, WIDTH, dense_layer, embedding, make_model


def open_bound(model):
    session = open_session(model.SerializeToString(), threads=1)
    return session, BoundSession(session, device="cpu")


def tokens(batch, length, seed=0):
    random = np.random.default_rng(seed)
    ids = random.integers(0, VOCAB, (batch, length))
    mask = np.ones_like(ids)
    mask[-1, length // 2 + 1 :] = 0
    return {"input_ids": ids, "attention_mask": mask}


def two_outputs():
    """Twice and half of a float16 input; the second output has another shape than the first."""
    return make_model(
        [
            helper.make_node("Add", ["x", "x"], ["twice"]),
            helper.make_node("ReduceMean", ["x"], ["mean"], keepdims=0),
        ],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT16, ["rows", 3])],
        [
            helper.make_tensor_value_info("twice", TensorProto.FLOAT16, ["rows", 3]),
            helper.make_tensor_value_info("mean", TensorProto.FLOAT16, []),
        ],
    )


def test_gives_what_the_session_gives_while_shapes_come_and_go():
    session, bound = open_bound(embedding())
    for batch, length in ((2, 5), (1, 9), (4, 3), (2, 5)):
        feeds = tokens(batch, length, seed=batch * length)
        np.testing.assert_array_equal(bound.run(feeds)["last_hidden_state"], session.run(None, feeds)[0])


def test_gives_every_output_in_its_own_type():
    _, bound = open_bound(two_outputs())
    x = np.arange(6, dtype=np.float16).reshape(2, 3)
    results = bound.run({"x": x})
    assert list(results) == ["twice", "mean"]
    assert {array.dtype for array in results.values()} == {np.dtype(np.float16)}
    np.testing.assert_array_equal(results["twice"], 2 * x)
    assert results["mean"] == np.float16(2.5)


def test_a_result_outlives_the_next_run_and_the_session():
    session, bound = open_bound(dense_layer())
    feeds = [{"x": np.full((2, WIDTH), value, np.float32)} for value in (1.0, -3.0)]
    expected = [session.run(None, each)[0].copy() for each in feeds]
    results = [bound.run(each)["y"] for each in feeds]
    del session, bound
    assert not np.shares_memory(*results)
    np.testing.assert_array_equal(results, expected)


def test_the_inputs_are_copied_and_left_as_they_were():
    _, bound = open_bound(dense_layer())
    x = np.ones((2, WIDTH), np.float32)
    bound.upload({"x": x})
    x[:] = 7
    bound.run_on_device()
    uploaded = bound.download()["y"]
    np.testing.assert_array_equal(uploaded, bound.run({"x": np.ones((2, WIDTH), np.float32)})["y"])
    assert (x == 7).all()


def test_runs_on_the_device_again_without_an_upload():
    session, bound = open_bound(embedding())
    feeds = tokens(2, 4)
    bound.upload(feeds)
    for _ in range(3):
        bound.run_on_device()
    np.testing.assert_array_equal(bound.download()["last_hidden_state"], session.run(None, feeds)[0])


def test_allocates_one_buffer_for_each_shape_of_each_input(monkeypatch):
    _, bound = open_bound(embedding())
    allocated = []
    allocate = onnxruntime.OrtValue.ortvalue_from_shape_and_type
    monkeypatch.setattr(
        onnxruntime.OrtValue,
        "ortvalue_from_shape_and_type",
        lambda shape, *others: allocated.append((tuple(shape), *others)) or allocate(shape, *others),
    )
    bound.reserve(tokens(2, 5))
    assert allocated == [((2, 5), np.int64, "cpu", 0)] * 2
    for seed in range(3):
        bound.run(tokens(2, 5, seed))
        bound.run(tokens(1, 5, seed))
    assert len(allocated) == 4


def test_refuses_a_missing_input_instead_of_taking_the_last():
    _, bound = open_bound(embedding())
    bound.run(tokens(1, 3))
    with pytest.raises(ValueError, match="'attention_mask' is missing"):
        bound.run({"input_ids": tokens(1, 3)["input_ids"]})


class RecordingSession:
    """A session on a GPU that is not there: writes down what was asked of it, in order."""

    def __init__(self):
        self.calls = []

    def get_inputs(self):
        return [type("Entry", (), {"name": "x"})]

    def get_outputs(self):
        return [type("Entry", (), {"name": "y"})]

    def io_binding(self):
        return self

    def __getattr__(self, name):
        def record(*arguments):
            self.calls.append((name, *(each for each in arguments if isinstance(each, str | int))))
            return [np.zeros(1)]

        return record


def test_on_a_gpu_waits_for_the_inputs_and_for_the_outputs(monkeypatch):
    session = RecordingSession()

    class Value:
        def update_inplace(self, array):
            session.calls.append(("update_inplace", array.shape))

    def allocate(shape, dtype, device, device_id):
        session.calls.append(("allocate", tuple(shape), device, device_id))
        return Value()

    monkeypatch.setattr(onnxruntime.OrtValue, "ortvalue_from_shape_and_type", allocate)
    bound = BoundSession(session, device_id=1)
    assert list(bound.run({"x": np.ones((2, 3), np.float16)})) == ["y"]
    assert session.calls == [
        ("allocate", (2, 3), "cuda", 1),
        ("update_inplace", (2, 3)),
        ("bind_ortvalue_input", "x"),
        ("synchronize_inputs",),
        ("bind_output", "y", "cuda", 1),
        ("run_with_iobinding",),
        ("synchronize_outputs",),
        ("copy_outputs_to_cpu",),
    ]
