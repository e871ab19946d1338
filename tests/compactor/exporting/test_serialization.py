"""A file written piece by piece is the message that ONNX itself would write."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from compactor.exporting import serialization
from compactor.exporting.serialization import write_graph, write_graphs


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


@pytest.mark.parametrize("name", [None, "another"])
def test_a_weight_has_the_name_by_which_nodes_read_it(model, tmp_path, name):
    """Where the exporter's optimizer fuses a convolution with its norm, the new weight has none of its own."""
    model.graph.initializers["wide"].const_value = ir.tensor(np.ones((100, 100), np.float32), name=name)
    write_graph(model, tmp_path / "pieces.onnx")
    names = [tensor.name for tensor in onnx.load(tmp_path / "pieces.onnx").graph.initializer]
    assert names == list(model.graph.initializers)


def test_weights_beyond_protobufs_limit_go_beside_the_file(model, tmp_path, monkeypatch):
    monkeypatch.setattr(serialization, "_LARGEST_FILE", 1000)
    write_graph(model, tmp_path / "large.onnx")
    assert (tmp_path / "large.onnx_data").stat().st_size >= 40_000
    loaded = onnx.load(tmp_path / "large.onnx")
    wide = next(tensor for tensor in loaded.graph.initializer if tensor.name == "wide")
    np.testing.assert_array_equal(
        onnx.numpy_helper.to_array(wide), model.graph.initializers["wide"].const_value.numpy()
    )


# Several graphs, one file of weights


def changed(model: ir.Model) -> ir.Model:
    """A copy with one other weight, and the large one under another name."""
    copy = model.clone()
    wide = copy.graph.initializers.pop("wide")
    wide.name = "broad"
    copy.graph.initializers["broad"] = wide
    more = np.full((30, 30), 0.5, np.float32)
    value = ir.Value(name="more", const_value=ir.tensor(more, name="more"), type=ir.TensorType(ir.DataType.FLOAT))
    copy.graph.register_initializer(value)
    return copy


def arrays(path):
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}


def test_equal_weights_are_written_once_whatever_they_are_called(model, tmp_path):
    other = changed(model)
    expected = {
        name: {key: value.const_value.numpy().copy() for key, value in each.graph.initializers.items()}
        for name, each in (("a.onnx", model), ("b.onnx", other))
    }
    referred = write_graphs({tmp_path / "a.onnx": model, tmp_path / "b.onnx": other}, tmp_path / "data")
    assert referred == {"a.onnx": 40_000, "b.onnx": 40_000 + 3600}
    assert (tmp_path / "data").stat().st_size < 45_000
    for name, wanted in expected.items():
        found = arrays(tmp_path / name)
        assert found.keys() == wanted.keys()
        for key, array in wanted.items():
            np.testing.assert_array_equal(found[key], array)


def test_a_weight_that_one_graph_holds_twice_counts_once(model, tmp_path):
    again = ir.Value(name="again", const_value=ir.tensor(model.graph.initializers["wide"].const_value.numpy()))
    again.type = ir.TensorType(ir.DataType.FLOAT)
    model.graph.register_initializer(again)
    assert write_graphs({tmp_path / "a.onnx": model}, tmp_path / "data") == {"a.onnx": 40_000}


def test_weights_lie_where_a_reader_may_map_them(model, tmp_path):
    write_graphs({tmp_path / "a.onnx": model, tmp_path / "b.onnx": changed(model)}, tmp_path / "data")
    places = []
    for name in ("a.onnx", "b.onnx"):
        for tensor in onnx.load(tmp_path / name, load_external_data=False).graph.initializer:
            entries = {entry.key: entry.value for entry in tensor.external_data}
            if entries:
                assert entries["location"] == "data", "a name beside the graph, not a path"
                places.append((int(entries["offset"]), int(entries["length"])))
    assert all(offset % (4096 if length > 4096 else 64) == 0 for offset, length in places)
    assert len(places) == 3 and len(set(places)) == 2


def test_small_weights_stay_in_their_graph(model, tmp_path):
    write_graphs({tmp_path / "a.onnx": model}, tmp_path / "data")
    inside = [
        tensor.name
        for tensor in onnx.load(tmp_path / "a.onnx", load_external_data=False).graph.initializer
        if not tensor.external_data
    ]
    assert inside == ["half", "flags", "none", "one"]
