from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compactor.passes.graph.blocks import attention_blocks, feed_forward_blocks
from compactor.passes.lowering.align_widths import AlignWidthsPass
from tests.attention import SPAN
from tests.models import Architecture, build, random_weights
from tests.passes.strategies import PROPERTY, pruned
from tests.planting import UNMATCHED, attention_node
from tests.running import (
    PADDINGS,
    assert_rewrites_once,
    assert_same,
    assert_untouched,
    initializer_shapes,
    padding_mask,
    random_feeds,
    run32,
    run64,
)

ARCH = Architecture(heads=3, qk=4, v=5, neurons=10)  # width 8


def test_pads_heads_and_neurons_up():
    model = build(ARCH)
    feeds = random_feeds(model, padding_mask("holes"))
    before = run64(model, feeds)

    assert_rewrites_once(AlignWidthsPass(head=8, neurons=16), model, padded_channel=(4 + 3) * 3, padded_neuron=6)

    shapes = initializer_shapes(model)
    assert shapes.count((8, 24)) == 3 and (24, 8) in shapes
    assert (8, 16) in shapes and (16, 8) in shapes
    node = attention_node(model)
    assert (node.attributes["q_num_heads"].value, node.attributes["scale"].value) == (3, 0.5)
    assert_same(run64(model, feeds), before)


def test_each_head_is_padded_at_its_own_end():
    model = build(ARCH)
    AlignWidthsPass(head=6)(model)
    query = attention_node(model).inputs[0].producer().inputs[0].producer().inputs[1].const_value.numpy()
    zero = ~query.any(axis=0)
    assert zero.reshape(3, 6).tolist() == [[False] * 4 + [True] * 2] * 3


@pytest.mark.parametrize(("qk", "v", "head", "width"), [(4, 5, 1, 5), (5, 4, 1, 5), (4, 5, 4, 8), (4, 4, 8, 8)])
def test_same_gives_both_sides_one_width(qk, v, head, width):
    model = build(Architecture(heads=3, qk=qk, v=v))
    feeds = random_feeds(model)
    before = run64(model, feeds)
    assert_rewrites_once(AlignWidthsPass(head=head, same=True), model, padded_channel=(2 * width - qk - v) * 3)
    assert [tuple(v.shape)[-1] for v in attention_node(model).inputs[:3]] == [3 * width] * 3
    assert_same(run64(model, feeds), before)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("activation", ["gelu", "silu", "relu", "erf-gelu"])
def test_a_padded_neuron_is_never_read(activation, gated):
    model = build(Architecture(neurons=9, activation=activation, gated=gated))
    feeds = random_feeds(model)
    before = run64(model, feeds)
    assert_rewrites_once(AlignWidthsPass(neurons=8), model, padded_neuron=7)
    assert_same(run64(model, feeds), before)


@pytest.mark.parametrize("options", [{}, {"head": 4}, {"neurons": 5}, {"head": 2, "neurons": 2}])
def test_widths_that_fit_are_left_alone(options):
    assert_untouched(AlignWidthsPass(**options), build(Architecture(neurons=10)))


@pytest.mark.parametrize("case", [case for case in UNMATCHED if case != "four-dimensional"])
def test_leaves_an_unmatched_attention_alone(case):
    assert_untouched(AlignWidthsPass(head=3), UNMATCHED[case][0]())


def test_onnx_runtime_agrees():
    model = build(Architecture(heads=3, qk=4, v=5, neurons=10, dtype=np.float32))
    feeds = random_feeds(model)
    before = run32(model, feeds)
    AlignWidthsPass(head=8, neurons=8, same=True)(model)
    assert_same(run32(model, feeds), before, tolerance=1e-5)


def test_its_text_names_its_options():
    assert str(AlignWidthsPass(head=8)) == "align-widths{head=8}"


@PROPERTY
@given(pruned(), st.integers(1, 5), st.integers(1, 5), st.booleans(), st.sampled_from(PADDINGS))
def test_keeps_the_output_of_any_model(case, head, neurons, same, padding):
    arch, weights = case
    model = build(arch, weights)
    feeds = random_feeds(model, padding_mask(padding))
    before = run64(model, feeds)
    rewrite = AlignWidthsPass(head=head, neurons=neurons, same=same)
    rewrite(model)
    assert not rewrite(model).modified
    assert_same(run64(model, feeds), before)


def test_dense_weights_are_not_edited_in_place():
    weights = random_weights(ARCH)
    model = build(ARCH, weights)
    kept = {name: value.const_value for name, value in model.graph.initializers.items()}
    AlignWidthsPass(head=8, neurons=16)(model)
    for name, tensor in kept.items():
        if name in model.graph.initializers:
            assert model.graph.initializers[name].const_value is tensor


WASTE = [(523, 544), (187, 192), (61, 64), (74, 74), (64, 64), (1000, 1024), (17, 17), (1218, 1248), (1248, 1248)]


@pytest.mark.parametrize(("width", "padded"), WASTE)
def test_a_block_is_padded_to_a_smaller_multiple_rather_than_by_much(width, padded):
    model = build(Architecture(neurons=width))
    for _ in range(2):
        AlignWidthsPass(neurons=64, waste=0.05)(model)
        assert {block.width for block in feed_forward_blocks(model.graph)} == {padded}


@pytest.mark.parametrize("rotary", ["half", "interleaved"])
@pytest.mark.parametrize("kv_heads", [0, 2])
def test_channels_behind_those_that_are_turned_stand_still(kv_heads, rotary):
    arch = Architecture(heads=4, kv_heads=kv_heads, qk=6, v=5, rotary=rotary, front="ids")
    model = build(arch)
    feeds = random_feeds(model, padding_mask("left"))
    before = run64(model, feeds)
    assert_rewrites_once(AlignWidthsPass(head=8), model, padded_channel=4 * (2 + 3))
    for node in model.graph:
        if node.op_type == "RotaryEmbedding":
            assert node.attributes["rotary_embedding_dim"].value == 6
            assert node.outputs[0].shape[-1] == node.attributes["num_heads"].value * 8
    assert_same(run64(model, feeds), before)


def test_tables_of_distances_are_as_wide_as_their_heads():
    arch = Architecture(heads=2, qk=3, v=4, mask="both_real", relative="both")
    model = build(arch)
    feeds = random_feeds(model, padding_mask("holes"))
    before = run64(model, feeds)
    assert_rewrites_once(AlignWidthsPass(head=4), model, padded_channel=2 * 1)
    tables = [node.inputs[1].const_value.numpy() for node in model.graph if node.op_type == "RelativeLogits"]
    assert [table.shape for table in tables] == [(2 * SPAN, 2 * 4)] * 2
    assert all((table[:, [3, 7]] == 0).all() for table in tables)
    assert_same(run64(model, feeds), before)


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_shared_heads_are_widened_once(kv_heads):
    model = build(Architecture(heads=4, kv_heads=kv_heads, qk=3, v=2))
    feeds = random_feeds(model)
    before = run64(model, feeds)
    assert_rewrites_once(AlignWidthsPass(head=4), model, padded_channel=4 * (1 + 2))
    node = next(node for node in model.graph if node.op_type == "Attention")
    assert [tuple(value.shape)[-1] for value in node.inputs[:3]] == [4 * 4, kv_heads * 4, kv_heads * 4]
    assert_same(run64(model, feeds), before)


@pytest.mark.parametrize(("same", "width"), [(False, 8), (True, 8)])
@pytest.mark.parametrize("head_norm", ["rms", "layer"])
def test_heads_that_are_normalised_get_no_zeros_that_the_norm_would_count(head_norm, same, width):
    model = build(Architecture(heads=3, qk=4, v=5, head_norm=head_norm))
    feeds = random_feeds(model)
    before = run64(model, feeds)
    assert_rewrites_once(AlignWidthsPass(head=8, same=same), model, padded_channel=(width - 5) * 3)
    assert [layer.weight.shape[1] for layer in _projections(model)] == [12, 12, 3 * width]
    assert_same(run64(model, feeds), before)


def _projections(model):
    [(_, block)] = attention_blocks(model.graph)
    return block.query, block.key, block.value


@pytest.mark.parametrize(("v", "head", "width"), [(3, 1, 4), (2, 4, 4), (4, 4, 4)])
def test_values_are_as_wide_as_normalised_keys_where_that_is_asked_for(v, head, width):
    model = build(Architecture(heads=3, qk=4, v=v, head_norm="rms"))
    feeds = random_feeds(model)
    before = run64(model, feeds)
    AlignWidthsPass(head=head, same=True)(model)
    assert [layer.weight.shape[1] for layer in _projections(model)] == [12, 12, 3 * width]
    assert_same(run64(model, feeds), before)
