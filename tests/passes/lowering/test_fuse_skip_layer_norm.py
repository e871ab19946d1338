from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given

from compactor.passes.lowering.fuse_skip_layer_norm import FuseSkipLayerNormPass
from compactor.passes.lowering.write_residuals_as_sum import WriteResidualsAsSumPass
from tests.models import EPSILON, Architecture, build, random_weights
from tests.passes.strategies import PROPERTY, architectures
from tests.running import assert_rewrites_once, assert_same, assert_untouched, operators, random_feeds, run32

POST = Architecture(layers=2, dtype=np.float32)
PRE = Architecture(layers=2, norm="pre", dtype=np.float32)


def fused_nodes(model):
    return [node for node in model.graph if node.op_type == "SkipLayerNormalization"]


def test_fuses_bias_residual_and_norm():
    model = build(POST)
    feeds = random_feeds(model)
    before = run32(model, feeds)

    assert_rewrites_once(FuseSkipLayerNormPass(), model, fused_residual=4)

    assert operators(model)["LayerNormalization"] == 1  # the first one reads no residual
    for node in fused_nodes(model):
        assert len(node.inputs) == 5 and len(node.outputs) == 1
        assert node.inputs[0].producer().op_type == "MatMul"
        assert node.attributes["epsilon"].value == pytest.approx(EPSILON)
    assert_same(run32(model, feeds), before, 1e-5)


def test_a_sum_that_is_read_again_is_the_fourth_output():
    model = build(PRE)
    feeds = random_feeds(model)
    before = run32(model, feeds)

    assert_rewrites_once(FuseSkipLayerNormPass(), model, fused_residual=3)  # the last residual meets no norm

    assert [value.name for value in fused_nodes(model)[0].outputs[1:3]] == ["", ""]
    assert_same(run32(model, feeds), before, 1e-5)
    assert_same(run32(model, feeds, optimize=True), before, 1e-5)


@pytest.mark.parametrize(("name", "inputs"), [("0.residual", 5), ("0.output", 4)])
def test_a_sum_or_branch_that_is_an_output_stays_one(name, inputs):
    model = build(POST, outputs=[name])
    feeds = random_feeds(model)
    before = run32(model, feeds)
    assert_rewrites_once(FuseSkipLayerNormPass(), model, fused_residual=4)
    assert len(fused_nodes(model)[0].inputs) == inputs
    assert_same(run32(model, feeds), before, 1e-5)


def test_a_sum_may_be_read_before_it_is_normalised():
    model = build(POST)
    norm = next(node for node in model.graph if node.name == "0.attention_norm")
    reader = ir.Node("", "Relu", [norm.inputs[0]])
    reader.outputs[0].name, reader.outputs[0].type = "read", norm.inputs[0].type
    reader.outputs[0].shape = norm.inputs[0].shape
    model.graph.insert_before(norm, reader)
    model.graph.outputs.append(reader.outputs[0])
    feeds = random_feeds(model)
    before = run32(model, feeds)
    assert_rewrites_once(FuseSkipLayerNormPass(), model, fused_residual=4)
    assert_same(run32(model, feeds), before, 1e-5)


def test_a_branch_that_is_both_operands_keeps_its_bias():
    model = build(POST)
    total = next(node for node in model.graph if node.name == "0.residual")
    total.replace_input_with(1, total.inputs[0])
    feeds = random_feeds(model)
    before = run32(model, feeds)
    assert_rewrites_once(FuseSkipLayerNormPass(), model, fused_residual=4)
    assert len(fused_nodes(model)[0].inputs) == 4
    assert_same(run32(model, feeds), before, 1e-5)


def test_takes_a_residual_written_as_sum_and_a_branch_without_bias():
    weights = random_weights(POST)
    del weights["0.output.bias"]
    model = build(POST, weights)
    WriteResidualsAsSumPass()(model)
    feeds = random_feeds(model)
    before = run32(model, feeds)
    assert_rewrites_once(FuseSkipLayerNormPass(), model, fused_residual=4)
    assert sorted(len(node.inputs) for node in fused_nodes(model)) == [4, 5, 5, 5]
    assert_same(run32(model, feeds), before, 1e-5)


def test_a_norm_without_shift_is_fused():
    model = build(POST)
    for node in model.graph:
        if node.op_type == "LayerNormalization":
            node.resize_inputs(2)
    feeds = random_feeds(model)
    before = run32(model, feeds)
    assert_rewrites_once(FuseSkipLayerNormPass(), model, fused_residual=4)
    assert_same(run32(model, feeds), before, 1e-5)


def _set(name, value):
    return lambda norm: norm.attributes.__setitem__(name, ir.convenience.convert_attribute(name, value))


def _forget_shape(norm):
    norm.inputs[0].producer().inputs[0].shape = None


def _broadcast(norm):
    norm.inputs[0].producer().inputs[0].shape = ir.Shape([1, "sequence", 8])


def _read_mean(norm):
    norm.resize_outputs(2)
    norm.outputs[1].name, norm.outputs[1].type = "mean", ir.TensorType(ir.DataType.FLOAT)
    norm.graph.outputs.append(norm.outputs[1])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_set("axis", 1), "not over the last axis"),
        (_set("stash_type", 16), "statistics in float32"),
        (_forget_shape, "not known to be one"),
        (_broadcast, "not known to be one"),
        (_read_mean, "statistics of the normalisation are read"),
    ],
)
def test_leaves_a_residual_alone_and_says_why(change, reason):
    model = build(Architecture(dtype=np.float32))
    for node in tuple(model.graph):
        if node.op_type == "LayerNormalization" and node.name != "first":
            change(node)
    assert_untouched(FuseSkipLayerNormPass(), model, reason)


def test_a_gain_that_a_caller_may_override_is_left_alone():
    model = build(Architecture(dtype=np.float32), inputs=["0.attention_norm.scale", "0.feed_forward_norm.scale"])
    assert_untouched(FuseSkipLayerNormPass(), model, "not a constant vector")


@PROPERTY
@given(architectures(form="3d", mask="plain", dtype=np.float32))
def test_any_residual_keeps_its_output(arch):
    model = build(arch)
    feeds = random_feeds(model)
    before = run32(model, feeds)
    FuseSkipLayerNormPass()(model)
    assert_same(run32(model, feeds), before, 1e-4)
