from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compactor.passes.precision.quantize_embeddings import QuantizeEmbeddingsPass
from tests.models import VOCAB, Architecture, build, random_weights
from tests.running import assert_rewrites_once, assert_untouched, operators, random_feeds, run32

ARCH = Architecture(width=16, dtype=np.float32, front="ids")


def test_stores_large_tables_in_int8_with_a_scale_per_row():
    model = build(ARCH)
    assert_rewrites_once(QuantizeEmbeddingsPass(min_elements=100), model, int8_embedding=1)
    tables = [v.const_value.numpy() for v in model.graph.initializers.values() if v.dtype == ir.DataType.INT8]
    assert [table.shape for table in tables] == [(VOCAB, 16)]
    assert "w.embedding" not in model.graph.initializers
    assert "w.types" in model.graph.initializers  # small
    assert operators(model)["Gather"] == 3


@settings(max_examples=10)
@given(st.integers(0, 99), st.floats(1e-3, 1e3))
def test_rounds_a_row_to_a_128th_of_its_largest_entry_or_less(seed, size):
    weights = random_weights(ARCH, seed)
    weights["embedding"] *= np.float32(size)
    weights["embedding"][3] = 0
    model = build(ARCH, weights, outputs=["embedded"])
    feeds = random_feeds(model, seed=seed)
    before = run32(model, feeds)["embedded"]
    QuantizeEmbeddingsPass(min_elements=1)(model)
    rows = weights["embedding"][feeds["input_ids"]]
    types = weights["types"][feeds["token_type_ids"]]
    bound = (np.abs(rows).max(axis=-1) + np.abs(types).max(axis=-1)) / 128
    error = np.abs(run32(model, feeds)["embedded"] - before).max(axis=-1)
    assert (error <= bound * 1.001 + 1e-6).all()


def test_a_table_that_is_read_elsewhere_keeps_its_float32_for_that():
    weights = random_weights(ARCH)
    model = build(ARCH, weights)
    table = model.graph.initializers["w.embedding"]
    transposed = ir.Node("", "Transpose", [table], attributes=[ir.AttrInt64s("perm", [1, 0])], name="tied")
    transposed.outputs[0].name, transposed.outputs[0].type = "tied", table.type
    model.graph.append(transposed)
    model.graph.outputs.append(transposed.outputs[0])
    assert_rewrites_once(QuantizeEmbeddingsPass(min_elements=100), model, int8_embedding=1)
    np.testing.assert_array_equal(run32(model, random_feeds(model))["tied"], weights["embedding"].T)


def columns_instead(model):
    gather = next(node for node in model.graph if node.op_type == "Gather")
    gather.attributes["axis"] = ir.AttrInt64("axis", 1)


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(build(Architecture(front="ids")), id="float64"),
        pytest.param(build(ARCH, inputs=["embedding", "types"]), id="table-is-input"),
        pytest.param(build(Architecture(dtype=np.float32, head="classifier")), id="gather-from-an-activation"),
    ],
)
def test_leaves_other_gathers_alone(model):
    assert_untouched(QuantizeEmbeddingsPass(min_elements=1), model)


def test_leaves_small_tables_and_other_axes_alone():
    assert_untouched(QuantizeEmbeddingsPass(), build(ARCH))
    model = build(ARCH)
    columns_instead(model)
    assert_untouched(QuantizeEmbeddingsPass(min_elements=100), model)
