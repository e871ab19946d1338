"""All structural passes in the order of the pipeline, on models with dead structure of every kind."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compactor.passes.canonical.label_layers import LabelLayersPass
from compactor.passes.canonical.normalize_attention import NormalizeAttentionPass
from compactor.passes.canonical.raise_attention import RaiseAttentionPass
from compactor.passes.canonical.simplify_masks import SimplifyMasksPass
from compactor.passes.canonical.tabulate_rotary import TabulateRotaryPass
from compactor.passes.lowering.align_widths import AlignWidthsPass
from compactor.passes.lowering.pack_tokens import PackTokensPass
from compactor.passes.lowering.write_residuals_as_sum import WriteResidualsAsSumPass
from compactor.passes.structure.fold_value_biases import FoldValueBiasesPass
from compactor.passes.structure.remove_dead_heads import RemoveDeadHeadsPass
from compactor.passes.structure.remove_dead_neurons import RemoveDeadNeuronsPass
from compactor.passes.structure.remove_empty_sublayers import RemoveEmptySublayersPass
from compactor.passes.structure.trim_head_channels import TrimHeadChannelsPass
from tests.attention import POSITIONS
from tests.models import Architecture, build, random_weights
from tests.passes.strategies import pruned
from tests.planting import attention_node, columns, empty_feed_forward, kill_values, make_uniform
from tests.running import PADDINGS, assert_same, check, operators, padding_mask, random_feeds, run32, run64

STRUCTURE = (
    RaiseAttentionPass(),
    NormalizeAttentionPass(),
    LabelLayersPass(),
    SimplifyMasksPass(),
    FoldValueBiasesPass(),
    RemoveDeadHeadsPass(),
    TrimHeadChannelsPass(),
    RemoveDeadNeuronsPass(),
    RemoveEmptySublayersPass(),
)


def compact(model, passes=STRUCTURE):
    events = [event for rewrite in passes for event in rewrite(model).applied]
    check(model)
    return {rule: sum(e.count for e in events if e.rule == rule) for rule in {e.rule for e in events}}


@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(pruned(), st.sampled_from(["3d", "4d"]), st.integers(0, 9), st.sampled_from(PADDINGS), st.integers(1, 7))
def test_the_pipeline_keeps_the_output_of_any_model(case, form, seed, padding, length):
    arch, weights = case
    model = build(dataclasses.replace(arch, form=form), weights)
    feeds = random_feeds(model, padding_mask(padding, length=length, seed=seed), seed)
    before = run64(model, feeds)
    compact(model)
    assert_same(run64(model, feeds), before)
    for rewrite in STRUCTURE:
        if isinstance(rewrite, LabelLayersPass):
            continue  # its labels are those of the original model
        assert not rewrite(model).modified, rewrite.name


@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(
    pruned(qk=4, front="ids"),
    st.sampled_from(["half", "interleaved"]),
    st.sampled_from([0, 2]),
    st.booleans(),
    st.integers(0, 9),
    st.sampled_from(PADDINGS),
    st.integers(1, POSITIONS),
)
def test_the_pipeline_keeps_the_output_of_any_rotary_model(case, rotary, rotated, angles, seed, padding, length):
    arch, weights = case
    arch = dataclasses.replace(arch, rotary=rotary, rotated=rotated, angles=angles, form="4d" if angles else "3d")
    model = build(arch, weights)
    feeds = random_feeds(model, padding_mask(padding, length=length, seed=seed), seed)
    before = run64(model, feeds)
    compact(model, (TabulateRotaryPass(positions=POSITIONS), *STRUCTURE))
    assert_same(run64(model, feeds), before)
    for rewrite in STRUCTURE[4:]:
        assert not rewrite(model).modified, rewrite.name


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(pruned(mask="additive", qk=4, form="spelled"), st.integers(0, 9), st.sampled_from(PADDINGS))
def test_spelled_out_attention_comes_out_the_same(case, seed, padding):
    arch, weights = case
    model = build(arch, weights)
    feeds = random_feeds(model, padding_mask(padding, seed=seed), seed)
    before = run64(model, feeds)
    compact(model)
    assert "Softmax" not in operators(model)
    assert_same(run64(model, feeds), before)


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(pruned(mask="additive", front="ids", head="classifier"), st.integers(1, 4), st.sampled_from(PADDINGS))
def test_with_padding_of_widths_and_packing_behind_it(case, multiple, padding):
    arch, weights = case
    model = build(arch, weights)
    feeds = random_feeds(model, padding_mask(padding))
    before = run64(model, feeds)
    compact(model)
    compact(model, (AlignWidthsPass(head=multiple, neurons=multiple), PackTokensPass(), WriteResidualsAsSumPass()))
    assert_same(run64(model, feeds), before)


@settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow])
@given(pruned(mask="gathered", dtype=np.float32), st.sampled_from(PADDINGS), st.booleans())
def test_onnx_runtime_agrees(case, padding, optimize):
    arch, weights = case
    model = build(arch, weights)
    feeds = random_feeds(model, padding_mask(padding))
    before = run32(model, feeds)
    compact(model)
    assert_same(run32(model, feeds, optimize=optimize), before, tolerance=2e-4)


ARCH = Architecture(layers=3, heads=4, qk=4, v=4, neurons=12, mask="additive", front="ids")


def test_one_model_with_everything():
    """Layer 0: dead and uniform heads. Layer 1: no attention left. Layer 2: nothing left at all."""
    weights = random_weights(ARCH)
    kill_values(weights, ARCH, 0, [1])
    make_uniform(weights, ARCH, 0, [2])
    weights["0.query"][:, columns(4, 3, [0, 1])] = 0
    weights["0.query.bias"][columns(4, 3, [0, 1])] = 0
    weights["0.key"][:, columns(4, 0, [3])] = 0
    weights["0.output"][columns(4, [0, 2, 3], [0, 1])] = 0
    weights["0.up"][:, [0, 1]] = 0
    weights["0.down"][[1, 2]] = 0
    kill_values(weights, ARCH, 1, range(4), "output")
    kill_values(weights, ARCH, 2, range(4))
    empty_feed_forward(weights, 2)
    model = build(ARCH, weights)
    feeds = random_feeds(model, padding_mask("holes"))
    before = run64(model, feeds)

    counts = compact(model)

    assert counts == {
        "labelled-sublayer": 6,
        "padding-mask": 3,
        "key-bias": 3,
        "value-bias": 3,
        "dead-head": 1,
        "dead-qk-channel": 3,  # the widest live head has three
        "dead-v-channel": 6,
        "unread-neuron": 2,
        "constant-neuron": 1 + 12,
        "empty-sublayer-folded": 3,
    }
    assert operators(model)["Attention"] == 1 and operators(model)["Gelu"] == 2
    node = attention_node(model)
    assert [tuple(value.shape)[-1] for value in node.inputs[:3]] == [3 * 3, 3 * 3, 3 * 2]
    assert_same(run64(model, feeds), before)


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_a_model_of_which_nothing_is_left(norm):
    arch = dataclasses.replace(ARCH, norm=norm)
    weights = random_weights(arch)
    for layer in range(3):
        kill_values(weights, arch, layer, range(4))
        empty_feed_forward(weights, layer)
    model = build(arch, weights)
    feeds = random_feeds(model)
    before = run64(model, feeds)
    compact(model)
    assert not {"Attention", "MatMul", "Gelu"} & operators(model).keys()
    after = run64(model, feeds)
    assert_same(after, before)


def test_a_dense_model_keeps_its_shapes():
    model = build(ARCH)
    feeds = random_feeds(model)
    before = run64(model, feeds)
    counts = compact(model)
    assert counts == {"labelled-sublayer": 6, "padding-mask": 3, "key-bias": 3, "value-bias": 3}
    assert_same(run64(model, feeds), before)
