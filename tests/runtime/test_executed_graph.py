from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from compactor.runtime.executed_graph import executed_operators, saved_operators
from tests.runtime.graphs import WIDTH, dense_layer, make_model, save

SAVED = {"MatMul": 1, "Add": 1, "Gelu": 1, "Identity": 1}


def value(name, *shape, kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def with_branches() -> onnx.ModelProto:
    """An ``If`` whose branches hold two and one nodes."""
    then = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["r"]), helper.make_node("Neg", ["r"], ["t"])], "then", [], [value("t", WIDTH)]
    )
    other = helper.make_graph([helper.make_node("Neg", ["x"], ["e"])], "else", [], [value("e", WIDTH)])
    return make_model(
        [helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=other)],
        [value("x", WIDTH), value("c", kind=TensorProto.BOOL)],
        [value("y", WIDTH)],
    )


def with_nested_functions() -> onnx.ModelProto:
    """Two calls of a function that calls another one, of two nodes, once."""
    opset = [helper.make_opsetid("", 23), helper.make_opsetid("test", 1)]
    inner = helper.make_function(
        "test",
        "Inner",
        ["a"],
        ["c"],
        [helper.make_node("Relu", ["a"], ["b"]), helper.make_node("Neg", ["b"], ["c"])],
        opset,
    )
    outer = helper.make_function(
        "test", "Outer", ["a"], ["b"], [helper.make_node("Inner", ["a"], ["b"], domain="test")], opset
    )
    return make_model(
        [
            helper.make_node("Outer", ["x"], ["m"], domain="test"),
            helper.make_node("Outer", ["m"], ["y"], domain="test"),
        ],
        [value("x", WIDTH)],
        [value("y", WIDTH)],
        functions=[inner, outer],
        domains=["test"],
    )


def with_contrib_operator() -> onnx.ModelProto:
    return make_model(
        [helper.make_node("BiasGelu", ["x", "b"], ["y"], domain="com.microsoft")],
        [value("x", 2, WIDTH), value("b", WIDTH)],
        [value("y", 2, WIDTH)],
        domains=["com.microsoft"],
    )


@pytest.mark.parametrize(
    ("model", "counts"),
    [
        pytest.param(dense_layer(), SAVED, id="plain"),
        pytest.param(with_branches(), {"If": 1, "Relu": 1, "Neg": 2}, id="branches"),
        pytest.param(with_nested_functions(), {"Relu": 2, "Neg": 2}, id="functions"),
        pytest.param(with_contrib_operator(), {"com.microsoft::BiasGelu": 1}, id="domain"),
    ],
)
def test_counts_a_file_a_proto_and_an_ir_model_alike(tmp_path, model, counts):
    path = save(model, tmp_path / "model.onnx")
    for form in (path, tmp_path / "model.onnx", model, ir.from_proto(model)):
        assert saved_operators(form) == counts


def test_counts_a_file_whose_weights_are_missing(tmp_path):
    onnx.save(dense_layer(), tmp_path / "model.onnx", save_as_external_data=True, location="weights", size_threshold=0)
    (tmp_path / "weights").unlink()
    assert saved_operators(tmp_path / "model.onnx") == SAVED


def test_counts_what_onnxruntime_runs(tmp_path):
    path = save(dense_layer(), tmp_path / "model.onnx")
    assert executed_operators(path) == {"Gemm": 1, "Gelu": 1}
    assert executed_operators(dense_layer().SerializeToString()) == {"Gemm": 1, "Gelu": 1}


def test_counts_what_runs_without_rewrites(tmp_path):
    assert executed_operators(save(dense_layer(), tmp_path / "model.onnx"), optimize=False) == SAVED


def test_sees_a_fusion_that_onnxruntime_makes_by_itself():
    # The trap of a residual written as Add: on the CPU the fused node is the slower one.
    scale = np.ones(WIDTH, np.float32)

    def residual(op):
        return make_model(
            [
                helper.make_node(op, ["a", "b"], ["s"]),
                helper.make_node("LayerNormalization", ["s", "scale"], ["y"], axis=-1),
            ],
            [value("a", 2, 3, WIDTH), value("b", 2, 3, WIDTH)],
            [value("y", 2, 3, WIDTH)],
            [("scale", scale)],
        )

    assert executed_operators(residual("Add").SerializeToString()) == {"com.microsoft::SkipLayerNormalization": 1}
    assert executed_operators(residual("Sum").SerializeToString()) == {"Sum": 1, "LayerNormalization": 1}


def test_counts_a_graph_with_external_weights_and_leaves_its_folder_alone(tmp_path):
    onnx.save(dense_layer(), tmp_path / "model.onnx", save_as_external_data=True, location="weights", size_threshold=0)
    assert executed_operators(tmp_path / "model.onnx") == {"Gemm": 1, "Gelu": 1}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "weights"]
