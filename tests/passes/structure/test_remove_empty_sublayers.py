from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compactor.passes.structure.fold_value_biases import FoldValueBiasesPass
from compactor.passes.structure.remove_dead_neurons import RemoveDeadNeuronsPass
from compactor.passes.structure.remove_empty_sublayers import RemoveEmptySublayersPass
from tests.models import Architecture, build, random_weights
from tests.passes.strategies import PROPERTY, pruned
from tests.planting import empty_feed_forward, kill_values, read_elsewhere
from tests.running import (
    PADDINGS,
    assert_rewrites_once,
    assert_same,
    assert_untouched,
    check,
    operators,
    padding_mask,
    random_feeds,
    run32,
    run64,
)


def emptied(arch, *, attention=(), feed_forward=(), how="value", change=None, **options):
    """A model whose passes before this one have run, with these layers' sublayers emptied."""
    weights = random_weights(arch)
    for layer in attention:
        kill_values(weights, arch, layer, range(arch.heads), how)
    for layer in feed_forward:
        empty_feed_forward(weights, layer)
    if change is not None:
        change(weights)
    model = build(arch, weights, **options)
    FoldValueBiasesPass()(model)
    RemoveDeadNeuronsPass()(model)
    check(model)
    return model


def no_bias(weights):
    for name in ("0.value", "0.output"):
        del weights[f"{name}.bias"]


@pytest.mark.parametrize("how", ["value", "output"])
@pytest.mark.parametrize("front", ["hidden", "ids"])
@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize(
    ("attention", "feed_forward"),
    [((0,), ()), ((1,), ()), ((), (0,)), ((), (1,)), ((0,), (0,)), ((1,), (0,)), ((0, 1), ()), ((0, 1), (0, 1))],
)
def test_an_emptied_sublayer_is_no_node_at_all(attention, feed_forward, norm, front, how):
    arch = Architecture(layers=2, norm=norm, front=front)
    model = emptied(arch, attention=attention, feed_forward=feed_forward, how=how)
    feeds = random_feeds(model, padding_mask("holes"))
    before = run64(model, feeds)
    gone = len(attention) + len(feed_forward)

    assert_rewrites_once(RemoveEmptySublayersPass(), model, empty_sublayer_folded=gone)

    counts = operators(model)
    assert counts.get("Attention", 0) == 2 - len(attention)
    assert counts.get("Gelu", 0) == 2 - len(feed_forward)
    residuals = [node for node in model.graph if "residual" in (node.name or "")]
    assert len(residuals) == 4 - gone
    # post-norm: the normalisations stay, they are not part of the sublayer; pre-norm: those of the sublayers go
    assert counts["LayerNormalization"] == (5 if norm == "post" else 5 - gone)
    if len(attention) == 2 and front == "hidden":
        assert "Expand" not in counts  # nobody needs the mask
    assert_same(run64(model, feeds), before)


def test_the_shift_of_a_shared_normalisation_is_not_edited_in_place():
    arch = Architecture()

    def share(weights):
        for name in ("0.attention_norm", "0.feed_forward_norm"):
            weights[f"{name}.shift"] = weights["first.shift"].copy()

    model = emptied(arch, attention=[0], change=share)
    feeds = random_feeds(model)
    before = run64(model, feeds)
    assert_rewrites_once(RemoveEmptySublayersPass(), model, empty_sublayer_folded=1)
    assert_same(run64(model, feeds), before)


def test_a_normalisation_without_shift_gets_one():
    model = emptied(Architecture(), attention=[0])
    first = next(node for node in model.graph if node.name == "first")
    first.resize_inputs(2)
    feeds = random_feeds(model)
    before = run64(model, feeds)
    assert_rewrites_once(RemoveEmptySublayersPass(), model, empty_sublayer_folded=1)
    assert_same(run64(model, feeds), before)


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_where_the_stream_is_read_elsewhere_the_bias_stays(norm):
    arch = Architecture(norm=norm)
    model = emptied(arch, attention=[0], outputs=["first"])
    feeds = random_feeds(model)
    before = run64(model, feeds)

    if norm == "post":
        assert_rewrites_once(RemoveEmptySublayersPass(), model, empty_sublayer_bias_kept=1)
    else:
        RemoveEmptySublayersPass()(model)

    assert operators(model).get("Attention", 0) == 0
    assert_same(run64(model, feeds), before)


def test_where_another_node_reads_the_stream_the_bias_stays():
    model = read_elsewhere(emptied(Architecture(), attention=[0]), "first")
    feeds = random_feeds(model)
    before = run64(model, feeds)
    assert_rewrites_once(RemoveEmptySublayersPass(), model, empty_sublayer_bias_kept=1)
    assert_same(run64(model, feeds), before)


def test_the_bias_of_a_stream_that_is_a_graph_input_stays():
    model = emptied(Architecture(norm="pre"), attention=[0])
    first = next(node for node in model.graph if node.name == "first")
    first.outputs[0].replace_all_uses_with(first.inputs[0])
    feeds = random_feeds(model)
    before = run64(model, feeds)
    assert_rewrites_once(RemoveEmptySublayersPass(), model, empty_sublayer_bias_kept=1)
    assert_same(run64(model, feeds), before)


def test_without_a_bias_the_stream_goes_straight_on():
    model = emptied(Architecture(), attention=[0], outputs=["first"], change=no_bias)
    feeds = random_feeds(model)
    before = run64(model, feeds)
    assert_rewrites_once(RemoveEmptySublayersPass(), model, empty_sublayer_folded=1)
    assert not [node for node in model.graph if node.name == "0.residual"]
    assert_same(run64(model, feeds), before)


def test_a_stream_that_is_an_output_stays_beside_the_residual_that_is_one():
    """As with ``output_hidden_states``: x and x + 0 are two outputs with two names."""
    model = emptied(Architecture(norm="pre"), attention=[0], outputs=["first", "0.residual"], change=no_bias)
    feeds = random_feeds(model)
    before = run64(model, feeds)
    RemoveEmptySublayersPass()(model)
    assert operators(model).get("Attention", 0) == 0
    assert_same(run64(model, feeds), before)


def test_a_graph_input_keeps_its_name_when_the_residual_is_an_output():
    model = emptied(Architecture(norm="pre"), attention=[0], outputs=["0.residual"], change=no_bias)
    first = next(node for node in model.graph if node.name == "first")
    first.outputs[0].replace_all_uses_with(first.inputs[0])
    feeds = random_feeds(model)
    before = run64(model, feeds)
    RemoveEmptySublayersPass()(model)
    assert_same(run64(model, feeds), before)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        pytest.param(emptied(Architecture(), attention=[0], outputs=["0.output"]), "used outside", id="output"),
        pytest.param(emptied(Architecture(), feed_forward=[0], outputs=["0.down"]), "used outside", id="ffn-output"),
    ],
)
def test_leaves_alone_a_block_that_feeds_no_residual_and_says_why(model, reason):
    assert_untouched(RemoveEmptySublayersPass(), model, reason)


def test_leaves_alone_a_block_that_feeds_a_normalisation():
    model = emptied(Architecture(), attention=[0])
    residual = next(node for node in model.graph if node.name == "0.residual")
    residual.outputs[0].replace_all_uses_with(residual.inputs[0])
    model.graph.remove(residual, safe=True)
    check(model)
    assert_untouched(RemoveEmptySublayersPass(), model, "not a residual addition")


def test_leaves_a_live_model_alone():
    assert_untouched(RemoveEmptySublayersPass(), build(Architecture()))


def test_a_value_bias_that_was_not_folded_keeps_the_block():
    weights = random_weights(Architecture())
    kill_values(weights, Architecture(), 0, range(4))
    assert_untouched(RemoveEmptySublayersPass(), build(Architecture(), weights))


def test_onnx_runtime_agrees():
    arch = Architecture(layers=2, dtype=np.float32)
    model = emptied(arch, attention=[0], feed_forward=[0, 1])
    feeds = random_feeds(model)
    before = run32(model, feeds)
    assert_rewrites_once(RemoveEmptySublayersPass(), model, empty_sublayer_folded=3)
    assert_same(run32(model, feeds), before, tolerance=1e-5)


@PROPERTY
@given(pruned(), st.integers(0, 9), st.sampled_from(PADDINGS))
def test_keeps_the_output_of_any_model(case, seed, padding):
    arch, weights = case
    model = build(arch, weights)
    FoldValueBiasesPass()(model)
    RemoveDeadNeuronsPass()(model)
    feeds = random_feeds(model, padding_mask(padding, seed=seed), seed)
    before = run64(model, feeds)
    RemoveEmptySublayersPass()(model)
    assert not RemoveEmptySublayersPass()(model).modified
    assert_same(run64(model, {k: v for k, v in feeds.items()}), before)


# A norm behind the sublayer, on its own result


@pytest.mark.parametrize("how", ["value", "output"])
@pytest.mark.parametrize("rms", [False, True])
@pytest.mark.parametrize(("attention", "feed_forward"), [((1,), ()), ((), (0,)), ((0, 1), (0, 1))])
def test_a_norm_of_nothing_but_a_bias_is_a_bias(attention, feed_forward, rms, how):
    arch = Architecture(layers=2, norm="both", rms=rms, front="ids")
    model = emptied(arch, attention=attention, feed_forward=feed_forward, how=how)
    feeds = random_feeds(model, padding_mask("holes"))
    before = run64(model, feeds)
    gone = len(attention) + len(feed_forward)

    result = RemoveEmptySublayersPass()(model)

    assert not result.refused
    assert sum(event.count for event in result.applied) == gone
    counts = operators(model)
    assert counts.get("Attention", 0) == 2 - len(attention)
    assert counts.get("Gelu", 0) == 2 - len(feed_forward)
    assert counts["RMSNormalization" if rms else "LayerNormalization"] == 9 - 2 * gone
    check(model)
    assert_same(run64(model, feeds), before)
    assert not RemoveEmptySublayersPass()(model).modified


def test_without_any_bias_a_norm_of_the_mean_square_leaves_nothing():
    model = emptied(Architecture(norm="both", rms=True), attention=[0], change=no_bias)
    feeds = random_feeds(model)
    before = run64(model, feeds)
    assert_rewrites_once(RemoveEmptySublayersPass(), model, empty_sublayer_folded=1)
    assert not [node for node in model.graph if node.name == "0.residual"]
    assert_same(run64(model, feeds), before)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"outputs": ["0.attention_norm.after"]}, "feeds 'LayerNormalization', not a residual addition"),
        ({"inputs": ["0.attention_norm.after.scale"]}, "weights that are no constants"),
        ({"inputs": ["0.attention_norm.after.shift"]}, "weights that are no constants"),
    ],
)
def test_a_norm_that_others_need_or_may_change_stays(options, reason):
    model = emptied(Architecture(norm="both"), attention=[0], **options)
    assert_untouched(RemoveEmptySublayersPass(), model, reason)


def test_a_norm_over_another_axis_stays():
    model = emptied(Architecture(norm="both"), attention=[0])
    node = next(node for node in model.graph if node.name == "0.attention_norm.after")
    node.attributes["axis"] = ir.AttrInt64("axis", 1)
    assert_untouched(RemoveEmptySublayersPass(), model, "feeds 'LayerNormalization'")


@PROPERTY
@given(pruned(norm="both"), st.booleans(), st.integers(0, 9), st.sampled_from(PADDINGS))
def test_keeps_the_output_where_norms_stand_on_both_sides(case, rms, seed, padding):
    arch, weights = case
    model = build(dataclasses.replace(arch, rms=rms), weights)
    feeds = random_feeds(model, padding_mask(padding, seed=seed), seed)
    before = run64(model, feeds)
    for rewrite in (FoldValueBiasesPass(), RemoveDeadNeuronsPass(), RemoveEmptySublayersPass()):
        rewrite(model)
    check(model)
    assert_same(run64(model, feeds), before)
