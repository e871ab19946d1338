from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir
import pytest

from compactor.passes.canonical.label_layers import LabelLayersPass
from compactor.passes.lowering.pack_tokens import PackTokensPass
from compactor.passes.precision.quantize_linears import QuantizeLinearsPass
from tests.models import Architecture, build, random_weights
from tests.running import assert_same, assert_untouched, operators, padding_mask, random_feeds, run32

ARCH = Architecture(width=16, neurons=32, dtype=np.float32, front="ids", head="classifier")
OPERATORS = ("contrib", "standard")


def quantize(model, **options):
    return QuantizeLinearsPass(**{"min_elements": 1, **options})(model)


def constants(model, dtype):
    return {name: v.const_value.numpy() for name, v in model.graph.initializers.items() if v.dtype == dtype}


def test_contrib_shares_one_quantization_between_q_k_and_v():
    model = build(dataclasses.replace(ARCH, layers=2))
    result = quantize(model)
    assert result.modified
    assert len(result.applied) == 2 * 6 + 1
    counts = operators(model)
    assert counts["DynamicQuantizeLinear"] == 2
    assert counts["MatMulIntegerToFloat"] == 2 * 3
    assert counts["DynamicQuantizeMatMul"] == 2 * 3 + 1  # output, up, down; and the classifier, once a Gemm
    assert not {"MatMul", "Gemm"} & counts.keys()
    readers = [node for node in model.graph if node.op_type == "MatMulIntegerToFloat"]
    assert len({node.inputs[0] for node in readers}) == 2  # one quantized activation a layer
    assert model.graph.opset_imports["com.microsoft"] == 1


def test_standard_uses_no_other_domain():
    model = build(ARCH)
    quantize(model, operators="standard")
    assert set(model.graph.opset_imports) == {""}
    assert {node.domain for node in model.graph} == {""}
    counts = operators(model)
    assert counts["MatMulInteger"] == 7
    assert counts["DynamicQuantizeLinear"] == 5  # one for Q, K and V


@pytest.mark.parametrize("operators_", OPERATORS)
def test_biases_are_fused_or_kept(operators_):
    model = build(ARCH)
    quantize(model, operators=operators_)
    nodes = [node for node in model.graph if node.domain == "com.microsoft"]
    for node in nodes:
        assert node.inputs[-1] is not None and node.inputs[-1].const_value.numpy().ndim == 1
    adds = [n for n in model.graph if n.op_type == "Add" and any(v.const_value is not None for v in n.inputs)]
    assert len(adds) == (0 if operators_ == "contrib" else 7)


@pytest.mark.parametrize("operators_", OPERATORS)
@pytest.mark.parametrize("bias", [True, False])
def test_int8_is_close_to_float32(operators_, bias):
    arch = dataclasses.replace(ARCH, width=32, neurons=64, layers=2)
    weights = random_weights(arch)
    if not bias:
        weights = {name: array for name, array in weights.items() if name[0] not in "01" or not name.endswith("bias")}
    model = build(arch, weights)
    feeds = random_feeds(model)
    before = run32(model, feeds)["logits"]
    quantize(model, operators=operators_)
    after = run32(model, feeds)["logits"]
    assert after.shape == before.shape
    assert 0 < np.abs(after - before).max() < 0.05 * np.abs(before).max()


@pytest.mark.parametrize("head", ["classifier", "tokens", "span"])
def test_contrib_and_standard_operators_agree(head):
    models = [build(dataclasses.replace(ARCH, head=head, gated=True, activation="silu")) for _ in OPERATORS]
    feeds = random_feeds(models[0])
    for model, operators_ in zip(models, OPERATORS, strict=True):
        quantize(model, operators=operators_)
    assert_same(run32(models[0], feeds), run32(models[1], feeds), tolerance=2e-5)


@pytest.mark.parametrize("optimize", [False, True])
def test_the_optimizations_of_onnx_runtime_do_not_change_it(optimize):
    model = build(ARCH)
    feeds = random_feeds(model)
    quantize(model)
    assert_same(run32(model, feeds, optimize=optimize), run32(model, feeds), tolerance=1e-4)


def test_weights_are_int8_with_a_scale_per_column():
    weights = random_weights(ARCH)
    weights["0.up"][:, 3] = 0
    model = build(ARCH, weights)
    quantize(model)
    integers = constants(model, ir.DataType.INT8)
    assert len(integers) == 7
    up = next(array for name, array in integers.items() if "0.up" in name)
    scale = next(array for name, array in constants(model, ir.DataType.FLOAT).items() if "0.up.scale" in name)
    assert up.shape == (16, 32) and scale.shape == (32,)
    assert up.min() >= -127  # symmetric
    assert (np.abs(up * scale - weights["0.up"]) <= scale / 2 * 1.001).all()
    alive = np.arange(32) != 3
    assert (np.abs(up).max(axis=0)[alive] >= 64).all()  # the least that a pair of equals leaves
    assert (up[:, 3] == 0).all() and scale[3] > 0


@pytest.mark.parametrize("transposed", [0, 1])
def test_a_gemm_is_quantized_whichever_way_its_weight_lies(transposed):
    model = build(ARCH)
    gemm = next(node for node in model.graph if node.op_type == "Gemm")
    if transposed:
        weight = gemm.inputs[1]
        array = np.ascontiguousarray(weight.const_value.numpy().T)
        weight.const_value, weight.shape = ir.tensor(array, name=weight.name), ir.Shape(array.shape)
        gemm.attributes["transB"] = ir.AttrInt64("transB", 1)
    feeds = random_feeds(model)
    before = run32(model, feeds)["logits"]
    quantize(model)
    assert "Gemm" not in operators(model)
    assert np.abs(run32(model, feeds)["logits"] - before).max() < 0.1 * np.abs(before).max()


def test_small_weights_stay_in_float32_and_say_so():
    model = build(ARCH)
    result = quantize(model, min_elements=100)
    assert operators(model)["Gemm"] == 1
    assert [r.reason for r in result.refused] == ["a weight of 48 elements stays in float32"]


@pytest.mark.parametrize("operators_", OPERATORS)
def test_layers_to_keep_stay_in_float32_and_say_so(operators_):
    model = build(dataclasses.replace(ARCH, layers=2))
    LabelLayersPass()(model)
    result = quantize(model, keep=("layers.0.feed_forward",), operators=operators_)
    assert {r.layer for r in result.refused} == {"layers.0.feed_forward"}
    assert {r.reason for r in result.refused} == {"kept in float32 by the recipe"}
    assert operators(model)["MatMul"] == 2


def change_gemm(**attributes):
    def change(model):
        gemm = next(node for node in model.graph if node.op_type == "Gemm")
        for name, value in attributes.items():
            gemm.attributes[name] = ir.convenience.convert_attribute(name, value)

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (change_gemm(alpha=2.0), "a scaled or transposed Gemm"),
        (change_gemm(beta=0.5), "a scaled or transposed Gemm"),
        (change_gemm(transA=1), "a scaled or transposed Gemm"),
    ],
)
def test_a_gemm_that_does_more_stays_and_says_why(change, reason):
    model = build(ARCH)
    change(model)
    assert reason in {r.reason[: len(reason)] for r in quantize(model).refused}
    assert operators(model)["Gemm"] == 1


def test_a_gemm_whose_bias_is_an_input_stays():
    model = build(ARCH, inputs=["classifier.bias"])
    assert "the bias of the Gemm is not a constant vector" in {r.reason for r in quantize(model).refused}


def test_float64_is_left_alone():
    arch = dataclasses.replace(ARCH, dtype=np.float64)
    assert_untouched(QuantizeLinearsPass(min_elements=1), build(arch), "a weight of type float64")


def test_products_of_activations_are_left_alone():
    arch = dataclasses.replace(ARCH, form="spelled", mask="additive")
    model = build(arch)
    quantize(model)
    assert operators(model)["MatMul"] == 2  # q k^T, p v


@pytest.mark.parametrize("operators_", OPERATORS)
def test_a_second_run_changes_nothing(operators_):
    model = build(ARCH)
    assert quantize(model, operators=operators_).modified
    assert not quantize(model, operators=operators_).modified


@pytest.mark.parametrize("name", ["0.query", "0.down"])
def test_a_layer_that_is_a_graph_output_keeps_its_name(name):
    model = build(ARCH, outputs=[name])
    quantize(model)
    assert {output.name for output in model.graph.outputs} == {"logits", name}
    assert np.isfinite(run32(model, random_feeds(model))[name]).all()


def test_a_number_added_to_a_product_is_no_bias():
    """A scalar (no axes) after a MatMul; the Add stays."""
    model = build(ARCH)
    down = next(node for node in model.graph if node.name == "0.down")
    number = ir.Value(name="number", const_value=ir.tensor(np.array(2, np.float32), name="number"))
    number.type, number.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([])
    model.graph.register_initializer(number)
    index = next(i for i, value in enumerate(down.inputs) if value.const_value is not None)
    down.replace_input_with(index, number)
    feeds = random_feeds(model)
    before = run32(model, feeds)["logits"]
    quantize(model)
    assert down in list(model.graph)
    assert np.abs(run32(model, feeds)["logits"] - before).max() < 0.1 * np.abs(before).max()


def test_with_packing_padding_stays_out_of_the_ranges():
    """What stands in padded positions moves no dynamic scale: the answers are the same to the last bit."""
    model = build(ARCH)
    PackTokensPass()(model)
    quantize(model)
    real = padding_mask("right")
    feeds = random_feeds(model, real)
    before = run32(model, feeds)
    feeds["input_ids"] = np.where(real == 1, feeds["input_ids"], 12 - feeds["input_ids"])
    assert_same(run32(model, feeds), before, tolerance=0)


def test_an_example_of_nothing_but_padding_does_not_poison_the_scales():
    model = build(ARCH)
    PackTokensPass()(model)
    quantize(model)
    real = padding_mask("right")
    real[1] = 0
    feeds = random_feeds(model, real)
    others = [0, 2]
    expected = run32(build(ARCH), random_feeds(build(ARCH), padding_mask("right")))["logits"][others]
    found = run32(model, feeds)["logits"][others]
    assert np.abs(found - expected).max() < 0.1 * np.abs(expected).max()
