from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compactor.passes.canonical.label_layers import LabelLayersPass
from compactor.passes.lowering.pack_tokens import PackTokensPass
from compactor.passes.precision.quantize_linears import QuantizeLinearsPass
from compactor.passes.precision.quantize_linears_by_token import QuantizeLinearsByTokenPass
from tests.builder import infer_shapes
from tests.models import Architecture, build, random_weights
from tests.passes.strategies import PROPERTY, architectures
from tests.running import assert_same, assert_untouched, operators, padding_mask, random_feeds, run32

ARCH = Architecture(layers=2, width=32, neurons=64, dtype=np.float32, front="ids", head="classifier")


def quantize(model, **options):
    infer_shapes(model)
    return QuantizeLinearsByTokenPass(**{"min_elements": 1, **options})(model)


def relative_error(arch, seed=0, rewrite=quantize, **options):
    model = build(arch, random_weights(arch, seed))
    feeds = random_feeds(model)
    before = next(iter(run32(model, feeds).values()))
    rewrite(model, **options)
    return float(np.abs(next(iter(run32(model, feeds).values())) - before).max() / np.abs(before).max())


def test_what_reads_an_activation_shares_its_codes():
    model = build(ARCH)
    result = quantize(model)
    assert sum(event.count for event in result.applied) == 2 * 6 + 1
    counts = operators(model)
    assert counts["QuantizeLinear"] == 2 * 4 + 1  # one for Q, K and V
    assert counts["MatMulIntegerToFloat"] == 2 * 6 + 1
    assert not {"MatMul", "Gemm", "DynamicQuantizeLinear"} & counts.keys()
    assert model.graph.opset_imports["com.microsoft"] == 1


@pytest.mark.parametrize("activation", ["gelu", "tanh-gelu", "relu", "silu"])
@pytest.mark.parametrize("gated", [False, True])
def test_int8_is_close_to_float32(gated, activation):
    arch = dataclasses.replace(ARCH, activation=activation, gated=gated)
    assert 0 < relative_error(arch) < 0.03


@pytest.mark.parametrize("optimize", [False, True])
def test_the_optimizations_of_onnx_runtime_do_not_change_it(optimize):
    model = build(ARCH)
    feeds = random_feeds(model)
    quantize(model)
    assert_same(run32(model, feeds, optimize=optimize), run32(model, feeds), tolerance=1e-4)


def test_it_errs_less_than_one_scale_a_tensor():
    by_tensor = [relative_error(ARCH, seed, lambda m: QuantizeLinearsPass(min_elements=1)(m)) for seed in range(8)]
    by_token = [relative_error(ARCH, seed) for seed in range(8)]
    assert np.mean(by_token) < np.mean(by_tensor)


@PROPERTY
@given(architectures(dtype=np.float32, mask="plain"), st.integers(0, 9), st.booleans())
def test_an_example_has_the_same_answer_alone_and_in_any_batch(arch, seed, packed):
    """Whatever its mates hold, and however much padding they make."""
    model = build(arch, random_weights(arch, seed))
    if packed:
        PackTokensPass()(model)
    quantize(model)
    mask = padding_mask("right", batch=4, length=7, seed=seed)
    feeds = random_feeds(model, mask, seed)
    together = run32(model, feeds)
    for example, length in enumerate(mask.sum(axis=1)):
        own = {name: array[example : example + 1, :length] for name, array in feeds.items()}
        for name, alone in run32(model, own).items():
            mate = together[name][example : example + 1]
            real = mate[:, :length] if mate.ndim > 1 and mate.shape[1] == 7 else mate
            if arch.head == "mean" and length < 7:
                continue  # which takes padding into its mean
            largest = np.abs(alone).max()
            np.testing.assert_allclose(real, alone, rtol=0, atol=2e-6 * largest + 1e-7, err_msg=name)


def test_what_is_not_finite_stays_so():
    arch = dataclasses.replace(ARCH, front="hidden", head="tokens")
    for number in (np.nan, np.inf, -np.inf):
        for channel in (0, 7, 31):
            model = build(arch)
            quantize(model)
            feeds = random_feeds(model, padding_mask("none"))
            feeds["hidden_states"][1, 2, channel] = number
            found = run32(model, feeds)["classifier"]
            assert not np.isfinite(found[1, 2]).any()
            assert np.isfinite(found[[0, 2]]).all()


def test_a_row_of_zeros_is_no_division_by_zero():
    model = build(dataclasses.replace(ARCH, layers=1, front="hidden", activation="relu", head="tokens"))
    quantize(model)
    feeds = random_feeds(model)
    feeds["hidden_states"][:] = 0
    assert np.isfinite(run32(model, feeds)["classifier"]).all()


def test_values_with_a_known_lowest_use_the_codes_above_it():
    for activation, zero in (("gelu", 26), ("relu", 0), ("silu", 128)):
        model = build(dataclasses.replace(ARCH, layers=1, activation=activation))
        quantize(model)
        down = [node for node in model.graph if node.op_type == "MatMulIntegerToFloat"][-2]
        assert int(down.inputs[4].const_value.numpy()) == zero


def test_layers_to_keep_stay_in_float32_and_say_so():
    model = build(ARCH)
    LabelLayersPass()(model)
    result = quantize(model, keep=("layers.0.feed_forward",))
    assert {refusal.layer for refusal in result.refused} == {"layers.0.feed_forward"}
    assert operators(model)["MatMul"] == 2


def test_float64_is_left_alone():
    model = build(dataclasses.replace(ARCH, dtype=np.float64))
    assert_untouched(QuantizeLinearsByTokenPass(min_elements=1), model, "a weight of type float64")


def test_a_second_run_changes_nothing():
    model = build(ARCH)
    assert quantize(model).modified
    assert not quantize(model).modified


@pytest.mark.parametrize("name", ["0.query", "0.down"])
def test_a_layer_that_is_a_graph_output_keeps_its_name(name):
    model = build(ARCH, outputs=[name])
    quantize(model)
    assert {output.name for output in model.graph.outputs} == {"logits", name}
    assert np.isfinite(run32(model, random_feeds(model))[name]).all()


def test_an_example_of_nothing_but_padding_is_nobodys_business():
    model = build(ARCH)
    PackTokensPass()(model)
    quantize(model)
    real = padding_mask("right")
    feeds = random_feeds(model, real)
    before = run32(model, feeds)["logits"]
    feeds["attention_mask"] = real.copy()
    feeds["attention_mask"][1] = 0
    np.testing.assert_allclose(run32(model, feeds)["logits"][[0, 2]], before[[0, 2]], atol=1e-5)


def test_no_token_at_all_is_no_error():
    model = build(ARCH)
    PackTokensPass()(model)
    quantize(model)
    feeds = random_feeds(model)
    feeds["attention_mask"] = np.zeros_like(feeds["attention_mask"])
    assert run32(model, feeds)["logits"].shape == (3, 3)


def test_weights_are_int8_with_a_scale_per_column():
    model = build(ARCH)
    quantize(model)
    integers = {n: v.const_value.numpy() for n, v in model.graph.initializers.items() if v.dtype == ir.DataType.INT8}
    assert len(integers) == 2 * 6 + 1
    assert all(array.min() >= -127 for array in integers.values())
