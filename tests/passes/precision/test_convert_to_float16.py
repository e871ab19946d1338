from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from onnx_ir.passes.common import ShapeInferencePass

from compactor.passes.canonical.label_layers import LabelLayersPass
from compactor.passes.lowering.align_widths import AlignWidthsPass
from compactor.passes.lowering.fuse_bias_gelu import FuseBiasGeluPass
from compactor.passes.lowering.fuse_cuda_attention import FuseCudaAttentionPass
from compactor.passes.lowering.fuse_skip_layer_norm import FuseSkipLayerNormPass
from compactor.passes.precision.convert_to_float16 import ConvertToFloat16Pass
from tests.builder import Builder
from tests.decoders import build_decoder, run_at_once, run_in_steps, texts, two_steps
from tests.models import Architecture, build, random_weights
from tests.passes.caching.test_attach_caches import ARCH as DECODER
from tests.passes.caching.test_attach_caches import compact, pruned_weights
from tests.passes.strategies import PROPERTY, architectures
from tests.running import (
    PADDINGS,
    assert_same,
    assert_untouched,
    check,
    operators,
    padding_mask,
    random_feeds,
    run32,
)

HALF, SINGLE = ir.DataType.FLOAT16, ir.DataType.FLOAT
FUSIONS = (FuseCudaAttentionPass(), FuseSkipLayerNormPass(), FuseBiasGeluPass())


def convert(model, **options):
    """Convert, check, and see that a second run finds nothing to do."""
    result = ConvertToFloat16Pass(**options)(model)
    check(model)
    assert not ConvertToFloat16Pass(**options)(model).modified
    return result


def kinds(model):
    """The element types of the weights."""
    return {value.dtype for value in model.graph.initializers.values()} - {ir.DataType.INT64, ir.DataType.BOOL}


def graph(write, *, shape=("batch", 6), dtype=SINGLE):
    """A graph of one input ``x``; ``write`` returns its output."""
    x = ir.Value(name="x", type=ir.TensorType(dtype), shape=ir.Shape(shape))
    builder = Builder([x], np.float32)
    builder.graph.outputs.append(write(builder, x))
    model = ir.Model(builder.graph, ir_version=11)
    check(model)
    return model


@pytest.mark.parametrize("fusions", [(), FUSIONS], ids=["standard", "fused"])
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("norm", ["post", "pre"])
def test_computes_in_float16_between_float32_inputs_and_outputs(norm, padding, fusions):
    model = build(Architecture(layers=2, norm=norm, dtype=np.float32))
    feeds = random_feeds(model, padding_mask(padding))
    before = run32(model, feeds)
    AlignWidthsPass(head=8, neurons=8)(model)
    check(model)
    for fusion in fusions:
        assert fusion(model).modified

    result = convert(model)

    assert [event.rule for event in result.applied] == ["float16-operator", "float16-constant"]
    assert not result.refused
    assert kinds(model) == {HALF}
    assert operators(model)["Cast"] == 3  # the mask, the input, the output
    assert {value.dtype for value in (*model.graph.inputs, *model.graph.outputs)} == {SINGLE, ir.DataType.INT64}
    assert_same(run32(model, feeds), before, 2e-2)
    assert_same(run32(model, feeds, optimize=True), before, 2e-2)


@pytest.mark.parametrize("mask", ["additive", "gathered_additive", "bias"])
def test_minus_infinity_stays_finite_and_hides(mask):
    model = build(Architecture(mask=mask, dtype=np.float32))
    feeds = random_feeds(model, padding_mask("holes"))
    before = run32(model, feeds)
    convert(model)
    assert_same(run32(model, feeds), before, 2e-2)
    smallest = min(v.const_value.numpy().min() for v in model.graph.initializers.values() if v.dtype == HALF)
    assert np.isfinite(smallest) and smallest < -30000


def test_statistics_of_normalisations_stay_in_float32():
    model = build(Architecture(dtype=np.float32))
    convert(model)
    norms = [node for node in model.graph if node.op_type == "LayerNormalization"]
    assert norms and all(node.attributes["stash_type"].value == SINGLE for node in norms)


def test_an_output_that_is_read_again_keeps_its_name_and_type():
    model = build(Architecture(dtype=np.float32), outputs=["0.residual"])
    feeds = random_feeds(model)
    before = run32(model, feeds)
    convert(model)
    assert {value.dtype for value in model.graph.outputs} == {SINGLE}
    assert_same(run32(model, feeds), before, 2e-2)


def test_a_sublayer_that_is_kept_stays_in_float32():
    model = build(Architecture(dtype=np.float32))
    LabelLayersPass()(model)
    feeds = random_feeds(model)
    before = run32(model, feeds)
    result = convert(model, keep=("layers.0.feed_forward",))
    assert {refusal.layer for refusal in result.refused} == {"layers.0.feed_forward"}
    single = {value.name for value in model.graph.initializers.values() if value.dtype == SINGLE}
    assert {"w.0.up", "w.0.down"} <= single and "w.0.query" not in single
    assert_same(run32(model, feeds), before, 2e-2)


def test_a_weight_that_overflows_stays_in_float32_and_is_named():
    weights = random_weights(Architecture(dtype=np.float32))
    weights["0.up"][0, 0] = 7e4
    model = build(Architecture(dtype=np.float32), weights)
    result = convert(model)
    assert [refusal.reason for refusal in result.refused] == ["'w.0.up' holds numbers that float16 cannot"]
    assert kinds(model) == {HALF, SINGLE}


def test_a_lone_number_that_would_vanish_stays_in_float32():
    model = graph(lambda b, x: b.node("Div", x, b.node("Max", b.node("Abs", x), b.number(1e-12)), name="y"))
    x = np.zeros((2, 6), dtype=np.float32)
    convert(model)
    assert_same(run32(model, {"x": x}), {"y": x})


@pytest.mark.parametrize("op_type", ["Softmax", "Exp", "ReduceMean"])
def test_an_operator_not_known_to_be_safe_stays_in_float32(op_type):
    model = graph(lambda b, x: b.node("Relu", b.node(op_type, b.node("Relu", x)), name="y"))
    result = convert(model)
    assert [refusal.reason for refusal in result.refused] == [f"{op_type} computes in float32"]
    node = next(node for node in model.graph if node.op_type == op_type)
    assert node.outputs[0].dtype == SINGLE
    x = np.random.default_rng(0).standard_normal((2, 6)).astype(np.float32)
    assert run32(model, {"x": x})["y"].dtype == np.float32


def test_positions_stay_in_float32_on_their_way_to_integers():
    """Relative-position buckets: log(position / 8) * 8, rounded down."""

    def write(b, positions):
        floats = b.node("Cast", positions, to=SINGLE.value)
        scaled = b.node("Mul", b.node("Log", b.node("Div", floats, b.number(8))), b.number(8))
        table = b.constant(np.arange(64, dtype=np.float32)[:, None])
        return b.node("Gather", table, b.node("Cast", scaled, to=ir.DataType.INT64.value), name="y")

    model = graph(write, dtype=ir.DataType.INT64)
    feeds = {"x": np.arange(9, 1209).reshape(200, 6)}
    before = run32(model, feeds)
    result = convert(model)
    assert not result.refused
    assert_same(run32(model, feeds), before)  # the table holds small integers, exact in float16


def test_angles_stay_in_float32_until_they_meet_an_activation():
    def write(b, positions):
        angles = b.node("Mul", b.node("Cast", positions, to=SINGLE.value), b.number(0.9))
        return b.node("Relu", b.node("Sin", angles), name="y")

    model = graph(write, dtype=ir.DataType.INT64)
    feeds = {"x": np.arange(600).reshape(100, 6)}
    before = run32(model, feeds)
    convert(model)
    assert_same(run32(model, feeds), before, 1e-3)


def test_an_embedding_is_no_position():
    def write(b, ids):
        rows = b.node("Gather", b.constant(np.ones((5, 4), dtype=np.float32), "table"), ids)
        return b.node("Softmax", rows, name="y")

    model = graph(write, dtype=ir.DataType.INT64)
    convert(model)
    assert {name: value.dtype for name, value in model.graph.initializers.items()} == {"table.fp16": HALF}


def test_a_shape_is_read_off_either_type():
    model = graph(lambda b, x: b.node("Expand", x, b.node("Shape", b.node("Relu", x)), name="y"))
    convert(model)
    assert operators(model)["Cast"] == 2  # the input, the output


def test_a_graph_whose_types_are_not_known_is_left_alone():
    model = build(Architecture(dtype=np.float32))
    next(node for node in model.graph if node.op_type == "Gelu").outputs[0].type = None
    assert_untouched(ConvertToFloat16Pass(), model, "the type of")


def test_a_graph_that_holds_another_is_left_alone():
    def write(b, x):
        def branch():
            value = ir.Value(name="inner", type=ir.TensorType(SINGLE))
            node = ir.Node("", "Identity", [x], outputs=[value])
            return ir.Graph([], [value], nodes=[node], name="branch")

        node = ir.Node(
            "",
            "If",
            [b.constant(np.array(True))],
            attributes=[ir.AttrGraph("then_branch", branch()), ir.AttrGraph("else_branch", branch())],
        )
        node.outputs[0].name, node.outputs[0].type = "y", ir.TensorType(SINGLE)
        node.outputs[0].shape = ir.Shape(["batch", 6])
        b.graph.append(node)
        return node.outputs[0]

    x = ir.Value(name="x", type=ir.TensorType(SINGLE), shape=ir.Shape(["batch", 6]))
    builder = Builder([x], np.float32)
    builder.graph.outputs.append(write(builder, x))
    assert_untouched(ConvertToFloat16Pass(), ir.Model(builder.graph, ir_version=11), "holds a graph of its own")


def test_a_graph_without_floats_is_none_of_its_business():
    model = graph(lambda b, x: b.node("Add", x, b.constant(1), name="y"), dtype=ir.DataType.INT64)
    assert_untouched(ConvertToFloat16Pass(), model)


@PROPERTY
@given(architectures(form="3d", mask="plain", dtype=np.float32, width=16))  # a norm over two values is a coin toss
def test_any_model_still_runs_and_stays_close(arch):
    model = build(arch)
    feeds = random_feeds(model, padding_mask("left"))
    before = run32(model, feeds)
    for fusion in FUSIONS:
        fusion(model)
    convert(model)
    assert_same(run32(model, feeds), before, 0.1)


def test_the_caches_of_a_decoder_are_float16_and_nothing_else_of_its_border():
    arch = dataclasses.replace(DECODER, dtype=np.float32)
    weights = pruned_weights(arch)
    text = texts(arch, rows=2, sequences=2)
    expected = run_at_once(build_decoder(arch, weights), text, run32)
    model = compact(arch, weights)
    AlignWidthsPass(same=True)(model)
    ShapeInferencePass()(model)
    steps = two_steps(model)
    for graph in steps:
        ShapeInferencePass()(graph)
        FuseCudaAttentionPass()(graph)
        convert(graph)
        for value in (*graph.graph.inputs, *graph.graph.outputs):
            is_cache = str(value.name).startswith(("past_key_values.", "present."))
            assert (value.dtype == HALF) == is_cache, value
    assert_same({"logits": run_in_steps(*steps, text, run32)}, {"logits": expected}, 0.05)
