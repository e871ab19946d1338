"""A file written piece by piece is the message that ONNX itself would write."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from compactor import serialization
from compactor.serialization import write_graph


@pytest.fixture
def model() -> ir.Model:
    """Weights of one byte to 40 kB, in several types, one without elements and one scalar."""
    arrays = {
        "wide": np.arange(10_000, dtype=np.float32).reshape(100, 100),
        "half": np.ones((3, 100), np.float16),
        "flags": np.array([True, False]),
        "none": np.zeros((100, 0), np.float32),
        "one": np.array(7, np.int64),
    }
    values = {name: ir.Value(name=name, const_value=ir.tensor(array, name=name)) for name, array in arrays.items()}
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([None, 100]))
    node = ir.Node("", "MatMul", [x, values["wide"]], num_outputs=1)
    node.outputs[0].name = "y"
    graph = ir.Graph([x], node.outputs, nodes=[node], initializers=list(values.values()), opset_imports={"": 23})
    return ir.Model(graph, ir_version=10, producer_name="test")


def test_a_reader_sees_the_same_message(model, tmp_path):
    write_graph(model, tmp_path / "pieces.onnx")
    assert onnx.load(tmp_path / "pieces.onnx") == ir.to_proto(model)


def test_bytes_are_those_of_one_serialization_but_for_the_order_of_fields(model, tmp_path):
    write_graph(model, tmp_path / "pieces.onnx")
    assert (tmp_path / "pieces.onnx").stat().st_size == ir.to_proto(model).ByteSize()


def test_the_model_keeps_its_initializers(model, tmp_path):
    before = list(model.graph.initializers)
    write_graph(model, tmp_path / "pieces.onnx")
    assert list(model.graph.initializers) == before


def test_weights_beyond_protobufs_limit_go_beside_the_file(model, tmp_path, monkeypatch):
    monkeypatch.setattr(serialization, "_LARGEST_FILE", 1000)
    write_graph(model, tmp_path / "large.onnx")
    assert (tmp_path / "large.onnx_data").stat().st_size >= 40_000
    loaded = onnx.load(tmp_path / "large.onnx")
    wide = next(tensor for tensor in loaded.graph.initializer if tensor.name == "wide")
    np.testing.assert_array_equal(
        onnx.numpy_helper.to_array(wide), model.graph.initializers["wide"].const_value.numpy()
    )
