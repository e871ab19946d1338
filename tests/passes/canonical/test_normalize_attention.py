from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx_ir.passes.common import RemoveUnusedNodesPass

from compactor.passes.canonical.normalize_attention import NormalizeAttentionPass
from compactor.passes.graph.matching import CANONICAL
from tests.attention import HEAD_EPSILON
from tests.models import Architecture, build, random_weights
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

ARCH = Architecture(form="4d", qk=4, v=3)


@pytest.mark.parametrize("mask", ["none", "plain", "additive", "gathered", "bias"])
def test_replaces_the_4d_form_and_pins_the_scale(mask):
    model = build(dataclasses.replace(ARCH, mask=mask, layers=2))
    feeds = random_feeds(model, padding_mask("holes"))
    before = run64(model, feeds)

    assert_rewrites_once(NormalizeAttentionPass(), model, normalized_attention=2)

    counts = operators(model)
    assert counts["Attention"] == 2
    assert "Transpose" not in counts and "Reshape" not in counts
    node = attention_node(model)
    assert node.attributes["q_num_heads"].value == node.attributes["kv_num_heads"].value == 4
    assert node.attributes["scale"].value == 0.5
    assert [value.name for value in node.inputs[:3]] == ["0.query", "0.key", "0.value"]
    assert_same(run64(model, feeds), before)


def test_the_default_scale_is_that_of_the_original_width():
    model = build(ARCH)
    attention_node(model).attributes.pop("scale")
    feeds = random_feeds(model)
    before = run64(model, feeds)
    assert_rewrites_once(NormalizeAttentionPass(), model, normalized_attention=1)
    assert attention_node(model).attributes["scale"].value == 0.5
    assert_same(run64(model, feeds), before)


@pytest.mark.parametrize(("name", "attribute"), [("is_causal", ir.AttrInt64), ("softcap", ir.AttrFloat32)])
def test_keeps_what_else_the_attention_does(name, attribute):
    model = build(dataclasses.replace(ARCH, mask="none"))
    attention_node(model).attributes[name] = attribute(name, 1)
    feeds = random_feeds(model)
    before = run64(model, feeds)
    assert_rewrites_once(NormalizeAttentionPass(), model, normalized_attention=1)
    assert attention_node(model).attributes[name].value == 1
    assert_same(run64(model, feeds), before)


def test_keys_and_values_may_have_fewer_heads():
    weights = random_weights(ARCH)
    for role, size in (("key", 4), ("value", 3)):
        weights[f"0.{role}"] = weights[f"0.{role}"][:, : 2 * size]
        weights[f"0.{role}.bias"] = weights[f"0.{role}.bias"][: 2 * size]
    model = build(ARCH, weights)  # its Reshapes still say four heads
    for index, size in ((1, 4), (2, 3)):
        reshape = attention_node(model).inputs[index].producer().inputs[0].producer()
        reshape.replace_input_with(1, _shape(model, [0, 0, 2, size]))
        reshape.outputs[0].shape = ir.Shape(["batch", "sequence", 2, size])
    feeds = random_feeds(model)
    before = run64(model, feeds)
    assert_rewrites_once(NormalizeAttentionPass(), model, normalized_attention=1)
    node = attention_node(model)
    assert (node.attributes["q_num_heads"].value, node.attributes["kv_num_heads"].value) == (4, 2)
    assert_same(run64(model, feeds), before)


def test_keeps_a_result_that_is_a_graph_output():
    model = build(ARCH)
    merged = attention_node(model).outputs[0].uses()[0].node.outputs[0].uses()[0].node.outputs[0]
    model.graph.outputs.append(merged)
    feeds = random_feeds(model)
    before = run64(model, feeds)
    assert_rewrites_once(NormalizeAttentionPass(), model, normalized_attention=1)
    assert_same(run64(model, feeds), before)


def _shape(model, sizes):
    value = ir.Value(name=f"shape_{sizes}", const_value=ir.tensor(np.array(sizes), name=f"shape_{sizes}"))
    model.graph.register_initializer(value)
    return value


def around(model):
    """The Transposes and Reshapes of q, k, v and of the result."""
    node = attention_node(model)
    splits = [value.producer() for value in node.inputs[:3]]
    merge = node.outputs[0].uses()[0].node
    return node, splits, merge, merge.outputs[0].uses()[0].node


def no_transpose(model):
    node, splits, *_ = around(model)
    node.replace_input_with(1, splits[1].inputs[0])


def no_reshape(model):
    _, splits, *_ = around(model)
    splits[0].replace_input_with(0, splits[0].inputs[0].producer().inputs[0])


def wrong_split(model):
    around(model)[1][2].attributes["perm"] = ir.AttrInt64s("perm", [0, 1, 2, 3])


def wrong_merge(model):
    around(model)[2].attributes["perm"] = ir.AttrInt64s("perm", [0, 1, 2, 3])


def merge_without_transpose(model):
    node, _, merge, reshape = around(model)
    reshape.replace_input_with(0, node.outputs[0])
    model.graph.remove(merge, safe=True)


def merge_without_reshape(model):
    *_, merge, reshape = around(model)
    reshape.outputs[0].replace_all_uses_with(merge.outputs[0])
    model.graph.remove(reshape, safe=True)


def unknown_head_size(model):
    around(model)[1][0].inputs[0].shape = ir.Shape(["batch", "sequence", None, None])


def unknown_rank(model):
    around(model)[1][0].inputs[0].shape = None


def unknown_merge(model):
    around(model)[3].outputs[0].shape = None


def value_heads_differ(model):
    around(model)[1][2].inputs[0].shape = ir.Shape(["batch", "sequence", 6, 2])


def cache(model):
    node = around(model)[0]
    past = [
        ir.Value(name=f"past_{i}", type=ir.TensorType(ir.DataType.DOUBLE), shape=ir.Shape([1, 4, 2, 4])) for i in (0, 1)
    ]
    model.graph.inputs.extend(past)
    node.resize_inputs(6)
    for i, value in enumerate(past):
        node.replace_input_with(4 + i, value)


def logits_are_output(model):
    node = around(model)[0]
    node.resize_outputs(4)
    for i, value in enumerate(node.outputs[1:]):
        value.name, value.type = f"more_{i}", ir.TensorType(ir.DataType.DOUBLE)
    model.graph.outputs.append(node.outputs[3])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (no_transpose, "expected Transpose, found 'Reshape'"),
        (no_reshape, "expected Reshape, found 'Add'"),
        (wrong_split, "not split by a Transpose of (0, 2, 1, 3)"),
        (wrong_merge, "not merged by a Transpose"),
        (merge_without_transpose, "not merged by a Transpose"),
        (merge_without_reshape, "not merged by a Reshape"),
        (unknown_head_size, "the head count of"),
        (unknown_rank, "not split by a Reshape of (B, S, H*d)"),
        (unknown_merge, "the merged heads have shape None"),
        (value_heads_differ, "4 query heads, 4 key heads and 6 value heads"),
        (cache, "has a key/value cache"),
        (logits_are_output, "exposes"),
    ],
    ids=lambda v: getattr(v, "__name__", ""),
)
def test_leaves_an_attention_alone_and_says_why(change, reason):
    model = build(ARCH)
    change(model)
    RemoveUnusedNodesPass()(model)
    assert_untouched(NormalizeAttentionPass(), model, reason)


@pytest.mark.parametrize("wanted", ["0.attention"])
def test_leaves_alone_heads_that_are_read_elsewhere(wanted):
    assert_untouched(NormalizeAttentionPass(), build(ARCH, outputs=[wanted]), "is used outside the block")


def test_the_canonical_form_is_no_news():
    assert_untouched(NormalizeAttentionPass(), build(Architecture()))


def test_onnx_runtime_agrees():
    model = build(dataclasses.replace(ARCH, dtype=np.float32))
    feeds = random_feeds(model, padding_mask("left"))
    before = run32(model, feeds)
    assert_rewrites_once(NormalizeAttentionPass(), model, normalized_attention=1)
    assert_same(run32(model, feeds), before, tolerance=1e-5)


@PROPERTY
@given(architectures(form="4d"), st.integers(0, 9), st.sampled_from(PADDINGS))
def test_keeps_the_output_of_any_model(arch, seed, padding):
    model = build(arch, random_weights(arch, seed))
    feeds = random_feeds(model, padding_mask(padding, seed=seed), seed)
    before = run64(model, feeds)
    assert_rewrites_once(NormalizeAttentionPass(), model, normalized_attention=arch.layers)
    assert_same(run64(model, feeds), before)


@pytest.mark.parametrize("rotary", ["half", "interleaved"])
@pytest.mark.parametrize("rotated", [0, 2])
def test_rotary_embeddings_come_along(rotary, rotated):
    model = build(dataclasses.replace(ARCH, rotary=rotary, rotated=rotated, mask="plain"))
    feeds = random_feeds(model, padding_mask("left"))
    before = run64(model, feeds)
    assert_rewrites_once(NormalizeAttentionPass(), model, normalized_attention=1)
    nodes = [node for node in model.graph if node.op_type == "RotaryEmbedding"]
    assert [node.attributes["num_heads"].value for node in nodes] == [4, 4]
    assert [node.inputs[0].name for node in nodes] == ["0.query", "0.key"]
    assert "Transpose" not in operators(model)
    assert_same(run64(model, feeds), before)


def test_a_factor_of_the_queries_joins_the_scale():
    model = build(dataclasses.replace(ARCH, rotary="half", mask="plain"))
    node = next(node for node in model.graph if node.op_type == "RotaryEmbedding")
    factor = ir.Value(name="factor", const_value=ir.tensor(np.array(0.25)), type=ir.TensorType(ir.DataType.DOUBLE))
    model.graph.register_initializer(factor)
    scaled = ir.node("Mul", [node.inputs[0], factor])
    model.graph.insert_before(node, scaled)
    node.replace_input_with(0, scaled.outputs[0])
    feeds = random_feeds(model, padding_mask("holes"))
    before = run64(model, feeds)
    NormalizeAttentionPass()(model)
    assert attention_node(model).attributes["scale"].value == 0.5 * 0.25
    assert "Mul" not in operators(model)
    assert_same(run64(model, feeds), before)


def test_angles_without_positions_stay():
    model = build(dataclasses.replace(ARCH, rotary="half", mask="plain", angles=True))
    assert_untouched(NormalizeAttentionPass(), model, "does not read its tables by position")


@pytest.mark.parametrize("rotary", ["", "half"])
@pytest.mark.parametrize("kv_heads", [1, 2])
def test_keys_and_values_that_are_repeated_for_their_queries_are_read_once(kv_heads, rotary):
    arch = dataclasses.replace(ARCH, kv_heads=kv_heads, rotary=rotary, front="ids")
    model = build(arch)
    feeds = random_feeds(model, padding_mask("left"))
    before = run64(model, feeds)

    assert_rewrites_once(NormalizeAttentionPass(), model, normalized_attention=1)

    node = attention_node(model)
    assert (node.attributes["q_num_heads"].value, node.attributes["kv_num_heads"].value) == (4, kv_heads)
    assert not {"Transpose", "Reshape"} & operators(model).keys()
    assert_same(run64(model, feeds), before)


def repeated_in_turns(model):
    """(B, r, G, S, d): query head h reads key head h modulo G, not h divided by r."""
    axis = _shape(model, [1])
    for index in (1, 2):
        expand = attention_node(model).inputs[index].producer().inputs[0].producer()
        expand.inputs[0].producer().replace_input_with(1, axis)


def repeated_by_an_unknown_number(model):
    for index in (1, 2):
        expand = attention_node(model).inputs[index].producer().inputs[0].producer()
        sizes = list(expand.outputs[0].shape)
        expand.outputs[0].shape = ir.Shape([*sizes[:2], "times", *sizes[3:]])


def more_heads_than_keys_go_into(model):
    reshape = attention_node(model).inputs[1].producer()
    sizes = list(reshape.outputs[0].shape)
    reshape.outputs[0].shape = ir.Shape([sizes[0], 8, *sizes[2:]])


@pytest.mark.parametrize(
    "change",
    [repeated_in_turns, repeated_by_an_unknown_number, more_heads_than_keys_go_into],
    ids=lambda change: change.__name__,
)
def test_keys_that_are_repeated_in_another_way_are_not_read(change):
    model = build(dataclasses.replace(ARCH, kv_heads=2, front="ids"))
    change(model)
    assert_untouched(NormalizeAttentionPass(), model, "reshaped in a way that is not known")


@pytest.mark.parametrize("kv_heads", [0, 2])
@pytest.mark.parametrize("rotary", ["", "half"])
@pytest.mark.parametrize("head_norm", ["rms", "layer"])
def test_norms_of_each_head_come_along(head_norm, rotary, kv_heads):
    model = build(dataclasses.replace(ARCH, head_norm=head_norm, rotary=rotary, kv_heads=kv_heads, front="ids"))
    feeds = random_feeds(model, padding_mask("left"))
    before = run64(model, feeds)

    assert_rewrites_once(NormalizeAttentionPass(), model, normalized_attention=1)

    norms = [node for node in model.graph if node.domain == CANONICAL]
    kind = {"rms": "HeadRMSNormalization", "layer": "HeadLayerNormalization"}[head_norm]
    assert [node.op_type for node in norms] == [kind, kind]
    assert [node.attributes["num_heads"].value for node in norms] == [4, kv_heads or 4]
    assert [node.attributes["epsilon"].value for node in norms] == [HEAD_EPSILON] * 2
    assert [node.inputs[0].name for node in norms] == ["0.query", "0.key"]
    assert [node.outputs[0].shape for node in norms] == [node.inputs[0].shape for node in norms]
    assert not {"Transpose", "Reshape"} & operators(model).keys()
    assert_same(run64(model, feeds), before)


@pytest.mark.parametrize("role", ["query", "key"])
def test_queries_or_keys_may_be_normalised_alone(role):
    weights = random_weights(dataclasses.replace(ARCH, head_norm="rms"))
    del weights[f"0.{role}_norm.scale"]
    model = build(dataclasses.replace(ARCH, head_norm="rms"), weights)
    feeds = random_feeds(model)
    before = run64(model, feeds)
    assert_rewrites_once(NormalizeAttentionPass(), model, normalized_attention=1)
    assert [node.domain for node in model.graph].count(CANONICAL) == 1
    assert_same(run64(model, feeds), before)


def test_a_norm_of_each_head_joins_a_factor_behind_it():
    model = build(dataclasses.replace(ARCH, head_norm="rms"))
    node = next(node for node in model.graph if node.name == "0.query_norm")
    factor = ir.Value(name="factor", const_value=ir.tensor(np.array(0.25)), type=ir.TensorType(ir.DataType.DOUBLE))
    model.graph.register_initializer(factor)
    scaled = ir.node("Mul", [node.outputs[0], factor])
    model.graph.insert_after(node, scaled)
    attention_node(model).replace_input_with(0, scaled.outputs[0])
    feeds = random_feeds(model)
    before = run64(model, feeds)
    assert_rewrites_once(NormalizeAttentionPass(), model, normalized_attention=1)
    assert attention_node(model).attributes["scale"].value == 0.5 * 0.25
    assert_same(run64(model, feeds), before)


def over_the_heads(model, node):
    node.attributes["axis"] = ir.AttrInt64("axis", 1)


def by_an_input(model, node):
    model.graph.inputs.append(node.inputs[1])


def by_a_number_for_each_head(model, node):
    node.replace_input_with(1, _shape(model, [[1], [2], [3], [4]]))


def shifted_by_a_number_for_each_head(model, node):
    node.replace_input_with(2, _shape(model, [[1], [2], [3], [4]]))


@pytest.mark.parametrize(
    "change",
    [over_the_heads, by_an_input, by_a_number_for_each_head, shifted_by_a_number_for_each_head],
    ids=lambda change: change.__name__,
)
def test_other_norms_of_queries_stay(change):
    model = build(dataclasses.replace(ARCH, head_norm="layer"))
    change(model, next(node for node in model.graph if node.name == "0.query_norm"))
    RemoveUnusedNodesPass()(model)
    assert_untouched(NormalizeAttentionPass(), model, "normalised by something else than numbers for the channels")
