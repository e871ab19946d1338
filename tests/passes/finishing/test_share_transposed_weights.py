from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from compactor.passes.finishing.share_transposed_weights import ShareTransposedWeightsPass
from compactor.passes.precision.quantize_embeddings import QuantizeEmbeddingsPass
from compactor.passes.precision.quantize_linears import QuantizeLinearsPass
from tests.decoders import build_decoder, decoder_weights, run_at_once, texts
from tests.models import VOCAB, Architecture
from tests.running import assert_rewrites_once, assert_untouched, operators, run32, run64

ARCH = Architecture(width=8, neurons=13)  # the feed-forward's weights are as large as the table
SHARE = ShareTransposedWeightsPass(min_elements=VOCAB * 8)


def tables(model):
    """Shapes of the constants that hold a word for each row or column."""
    shapes = [tuple(value.shape) for value in model.graph.initializers.values()]
    return sorted(shape for shape in shapes if VOCAB in shape and len(shape) == 2)


def table(model):
    return next(node for node in model.graph if node.op_type == "Gather").inputs[0]


def test_tied_embeddings_are_kept_once():
    model = build_decoder(ARCH)
    text = texts(ARCH, rows=2, sequences=2)
    before = run_at_once(model, text, run64)
    assert (VOCAB, 8) in tables(model) and tables(model).count((8, VOCAB)) == 2  # lm_head, and the feed-forward

    result = assert_rewrites_once(SHARE, model, shared_table=1)

    assert [event.layer for event in result.applied] == [table(model).name]
    assert tables(model).count((8, VOCAB)) == 1
    assert operators(model)["Transpose"] == 1
    np.testing.assert_array_equal(run_at_once(model, text, run64), before)


@pytest.mark.parametrize("optimize", [False, True])
def test_onnx_runtime_computes_the_same(optimize):
    arch = Architecture(width=8, dtype=np.float32)
    model = build_decoder(arch)
    text = texts(arch, rows=2, sequences=2)
    before = run_at_once(model, text, run32)
    SHARE(model)
    after = run_at_once(model, text, lambda model, feeds: run32(model, feeds, optimize=optimize))
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-5)


def test_int8_tables_that_are_tied_are_kept_once_as_well():
    """Both are rounded by the largest entry of a word: in one a row, in the other a column."""
    model = build_decoder(Architecture(width=8, dtype=np.float32))
    QuantizeEmbeddingsPass(min_elements=VOCAB * 8)(model)
    QuantizeLinearsPass(min_elements=0)(model)
    int8 = [v for v in model.graph.initializers.values() if v.dtype == ir.DataType.INT8 and VOCAB in v.shape]
    assert sorted(tuple(value.shape) for value in int8) == [(8, VOCAB), (VOCAB, 8)]
    result = assert_rewrites_once(SHARE, model, shared_table=1)
    assert result.applied[0].layer == table(model).name


def untied():
    weights = decoder_weights(ARCH)
    model = build_decoder(ARCH, weights)
    head = model.graph.initializers["w.head"]
    array = head.const_value.numpy().copy()
    array[5, 7] += 1e-9
    head.const_value = ir.tensor(array, name="w.head")
    return model


def free(name):
    def make():
        model = build_decoder(ARCH)
        model.graph.inputs.append(model.graph.initializers[name])
        return model

    return make


def not_read_by_row():
    """A weight beside its transpose, neither of which is a table."""
    model = build_decoder(ARCH)
    gather = next(node for node in model.graph if node.op_type == "Gather")
    gather.replace_input_with(0, _other_table(model))
    return model


def _other_table(model):
    array = np.random.default_rng(5).standard_normal((VOCAB, 8))
    value = ir.Value(name="other", const_value=ir.tensor(array, name="other"), shape=ir.Shape(array.shape))
    value.type = ir.TensorType(ir.DataType.DOUBLE)
    model.graph.register_initializer(value)
    return value


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(untied, id="one-entry-differs"),
        pytest.param(free("w.head"), id="head-is-input"),
        pytest.param(free("w.embedding"), id="table-is-input"),
        pytest.param(not_read_by_row, id="not-read-by-row"),
    ],
)
def test_leaves_other_weights_alone(make):
    assert_untouched(SHARE, make())


def test_small_tables_are_not_worth_a_node():
    assert_untouched(ShareTransposedWeightsPass(), build_decoder(ARCH))
    assert_untouched(ShareTransposedWeightsPass(min_elements=VOCAB * 8 + 1), build_decoder(ARCH))
