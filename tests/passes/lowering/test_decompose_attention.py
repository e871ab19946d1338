from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given

from compactor.passes.lowering.decompose_attention import DecomposeAttentionPass
from tests.models import Architecture, build
from tests.passes.strategies import PROPERTY, architectures
from tests.planting import attention_node
from tests.running import (
    PADDINGS,
    assert_rewrites_once,
    assert_same,
    assert_untouched,
    operators,
    padding_mask,
    random_feeds,
    run32,
    run64,
)

ARCH = Architecture(layers=2, heads=2, qk=4, v=5)


@pytest.mark.parametrize("mask", ["none", "plain", "additive", "scaled", "gathered", "bias", "bias_only", "given"])
@pytest.mark.parametrize("form", ["3d", "4d"])
def test_spells_every_attention_out(form, mask):
    model = build(Architecture(layers=2, heads=2, qk=4, v=5, form=form, mask=mask))
    feeds = random_feeds(model, padding_mask("holes"))
    before = run64(model, feeds)

    assert_rewrites_once(DecomposeAttentionPass(), model, decomposed_attention=2)

    assert "Attention" not in operators(model)
    assert operators(model)["Softmax"] == 2
    assert_same(run64(model, feeds), before, 1e-6)  # ONNX's own Attention takes the root of the scale in float32


@pytest.mark.parametrize("padding", PADDINGS)
def test_a_bool_mask_is_made_additive_once_and_before_it_is_expanded(padding):
    model = build(Architecture(layers=2, dtype=np.float32, mask="plain"))
    feeds = random_feeds(model, padding_mask(padding))
    before = run32(model, feeds)

    assert_rewrites_once(DecomposeAttentionPass(), model, decomposed_attention=2)

    assert operators(model)["Where"] == 1
    assert "Expand" not in operators(model)
    where = next(node for node in model.graph if node.op_type == "Where")
    assert list(where.outputs[0].shape)[1:3] == [1, 1]
    assert_same(run32(model, feeds), before, 1e-5)
    assert_same(run32(model, feeds, optimize=True), before, 1e-5)


def test_a_causal_attention_gets_its_triangle():
    model = build(Architecture(dtype=np.float32, mask="none"))
    attention_node(model).attributes["is_causal"] = ir.AttrInt64("is_causal", 1)
    feeds = random_feeds(model)
    before = run32(model, feeds)

    assert_rewrites_once(DecomposeAttentionPass(), model, decomposed_attention=1)

    assert_same(run32(model, feeds), before, 1e-5)


def test_one_scale_stays_that_of_the_attention():
    model = build(ARCH)
    for node in model.graph:
        if node.op_type == "Attention":
            node.attributes["scale"] = ir.AttrFloat32("scale", 0.125)
    DecomposeAttentionPass()(model)
    scales = {
        float(v.const_value.numpy()) for v in model.graph.initializers.values() if v.name.startswith("attention_s")
    }
    assert scales == {0.125}


def test_the_default_scale_is_that_of_the_head_width():
    model = build(ARCH)
    feeds = random_feeds(model)
    before = run64(model, feeds)
    for node in model.graph:
        if node.op_type == "Attention":
            del node.attributes["scale"]
    assert_rewrites_once(DecomposeAttentionPass(), model, decomposed_attention=2)
    assert_same(run64(model, feeds), before, 1e-6)


def _share_keys(model, node):
    node.attributes["kv_num_heads"] = ir.AttrInt64("kv_num_heads", 2)


def _cap(model, node):
    node.attributes["softcap"] = ir.AttrFloat32("softcap", 30.0)


def _cache(model, node):
    node.resize_inputs(6)
    past = ir.Value(name="past", type=ir.TensorType(ir.DataType.DOUBLE), shape=ir.Shape(["batch", 4, "past", 4]))
    model.graph.inputs.append(past)
    node.replace_input_with(4, past)
    node.replace_input_with(5, past)


def _forget_mask_shape(model, node):
    node.inputs[3].shape = None


def _forget_type(model, node):
    node.outputs[0].type = None


def _wrong_head_axis(model, node):
    node.inputs[3].shape = ir.Shape(["batch", 3, "sequence", "sequence"])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_share_keys, "share key/value heads"),
        (_cap, "soft cap"),
        (_cache, "cache"),
        (_forget_mask_shape, "the mask has shape"),
        (_forget_type, "type of the attention's result"),
        (_wrong_head_axis, "3 values on its head axis"),
    ],
)
def test_leaves_an_attention_alone_and_says_why(change, reason):
    model = build(Architecture())
    change(model, attention_node(model))
    assert_untouched(DecomposeAttentionPass(), model, reason)


@PROPERTY
@given(architectures(form="3d"))
def test_any_attention_keeps_its_output(arch):
    model = build(arch)
    feeds = random_feeds(model, padding_mask("left"))
    before = run64(model, feeds)
    DecomposeAttentionPass()(model)
    assert_same(run64(model, feeds), before, 1e-6)


@pytest.mark.parametrize("padding", PADDINGS)
def test_a_query_that_sees_no_key_keeps_its_zeros(padding):
    model = build(Architecture(mask="window", dtype=np.float32, layers=2))
    feeds = random_feeds(model, padding_mask(padding, length=9))
    before = run32(model, feeds)
    assert DecomposeAttentionPass()(model).modified
    assert operators(model)["ReduceMax"] == 1  # found once for all layers
    assert_same(run32(model, feeds), before, tolerance=1e-5)
