"""All structural passes where heads share keys or are normalised, logits depend on distances, and norms and rotary
embeddings are spelled out."""

from __future__ import annotations

import dataclasses

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compactor.passes.canonical.raise_attention import RaiseAttentionPass
from compactor.passes.canonical.raise_normalization import RaiseNormalizationPass
from compactor.passes.canonical.raise_relative_logits import RaiseRelativeLogitsPass
from compactor.passes.canonical.raise_rotary import RaiseRotaryPass
from compactor.passes.canonical.split_merged_heads import SplitMergedHeadsPass
from compactor.passes.lowering.align_widths import AlignWidthsPass
from compactor.passes.lowering.pack_tokens import PackTokensPass
from compactor.passes.lowering.repeat_shared_heads import RepeatSharedHeadsPass
from compactor.passes.lowering.write_head_norms import WriteHeadNormsPass
from compactor.passes.lowering.write_relative_logits import WriteRelativeLogitsPass
from tests.attention import POSITIONS
from tests.models import build, random_weights
from tests.passes.strategies import disentangled, grouped, pruned
from tests.passes.test_structure import STRUCTURE, compact
from tests.planting import as_float32
from tests.running import (
    PADDINGS,
    assert_same,
    check,
    operators,
    padding_mask,
    random_feeds,
    run32,
    run64,
)

RAISED = (RaiseNormalizationPass(), SplitMergedHeadsPass(), RaiseRelativeLogitsPass(), *STRUCTURE)
MANY = settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])


@MANY
@given(
    grouped(),
    st.sampled_from(["3d", "4d"]),
    st.sampled_from(["", "half", "interleaved"]),
    st.integers(0, 9),
    st.sampled_from(PADDINGS),
    st.integers(1, POSITIONS),
)
def test_query_heads_that_share_keys_keep_their_output(case, form, rotary, seed, padding, length):
    arch, weights = case
    turned = rotary if arch.front == "ids" and arch.qk % 2 == 0 else ""
    model = build(dataclasses.replace(arch, form=form, rotary=turned), weights)
    feeds = random_feeds(model, padding_mask(padding, length=length, seed=seed), seed)
    before = run64(model, feeds)
    compact(model)
    assert_same(run64(model, feeds), before)
    for rewrite in STRUCTURE[4:]:
        assert not rewrite(model).modified, rewrite.name
    RepeatSharedHeadsPass()(model)
    AlignWidthsPass(head=4, neurons=4)(model)
    check(model)
    assert_same(run64(model, feeds), before)
    kinds = ("q_num_heads", "kv_num_heads")
    for node in model.graph:
        if node.op_type == "Attention":
            assert len({node.attributes[kind].value for kind in kinds}) == 1


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(grouped(mask="additive", qk=4, form="spelled"), st.integers(0, 9), st.sampled_from(PADDINGS))
def test_shared_keys_that_are_repeated_before_a_spelled_attention(case, seed, padding):
    arch, weights = case
    model = build(arch, weights)
    feeds = random_feeds(model, padding_mask(padding, seed=seed), seed)
    before = run64(model, feeds)
    compact(model)
    assert "Softmax" not in operators(model)
    assert all(len(node.inputs[1].shape) == 3 for node in model.graph if node.op_type == "Attention")
    assert_same(run64(model, feeds), before)


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(grouped(mask="additive", front="ids", head="classifier"), st.integers(1, 4), st.sampled_from(PADDINGS))
def test_shared_keys_with_wider_heads_and_packed(case, multiple, padding):
    arch, weights = case
    model = build(arch, weights)
    feeds = random_feeds(model, padding_mask(padding))
    before = run64(model, feeds)
    compact(model)
    compact(model, (AlignWidthsPass(head=multiple, neurons=multiple), PackTokensPass()))
    assert_same(run64(model, feeds), before)


@settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow])
@given(grouped(mask="gathered", dtype=np.float32), st.sampled_from(PADDINGS), st.booleans())
def test_onnx_runtime_agrees_on_shared_keys(case, padding, optimize):
    arch, weights = case
    model = build(arch, weights)
    feeds = random_feeds(model, padding_mask(padding))
    before = run32(model, feeds)
    compact(model)
    assert_same(run32(model, feeds, optimize=optimize), before, tolerance=2e-4)


@MANY
@given(
    disentangled(),
    st.sampled_from(["3d", "spelled", "merged"]),
    st.integers(0, 9),
    st.sampled_from(PADDINGS),
    st.integers(1, 11),
)
def test_logits_of_distances_keep_their_output(case, form, seed, padding, length):
    arch, weights = case
    model = build(dataclasses.replace(arch, form=form), weights)
    feeds = random_feeds(model, padding_mask(padding, length=length, seed=seed), seed)
    before = run64(model, feeds)
    compact(model, RAISED)
    assert not {"Softmax", "GatherElements", "Tile"} & operators(model).keys()
    assert_same(run64(model, feeds), before)
    for rewrite in STRUCTURE[4:]:
        assert not rewrite(model).modified, rewrite.name
    AlignWidthsPass(head=3)(model)
    WriteRelativeLogitsPass()(model)
    check(model)
    assert "RelativeLogits" not in operators(model)
    assert_same(run64(model, feeds), before)


@MANY
@given(
    disentangled(mask="both_real", front="ids", head="classifier", zeroed=True, norm="post"),
    st.sampled_from(["3d", "spelled", "merged"]),
    st.integers(0, 9),
    st.sampled_from(PADDINGS),
    st.integers(1, 11),
)
def test_logits_of_distances_packed_are_exact_at_every_first_token(case, form, seed, padding, length):
    """Real or not: where it is padded, it weighs all keys alike."""
    arch, weights = case
    model = build(dataclasses.replace(arch, form=form), weights)
    feeds = random_feeds(model, padding_mask(padding, length=length, seed=seed), seed)
    before = run64(model, feeds)
    compact(model, RAISED)
    attentions = operators(model).get("Attention", 0)
    result = PackTokensPass()(model)
    assert result.modified == bool(attentions), result.refused
    WriteRelativeLogitsPass()(model)
    check(model)
    assert_same(run64(model, feeds), before)


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(
    disentangled(mask="both_real", front="ids", zeroed=True, dtype=np.float32),
    st.sampled_from(["spelled", "merged"]),
    st.sampled_from(PADDINGS),
    st.integers(1, 11),
    st.booleans(),
)
def test_onnx_runtime_agrees_on_logits_of_distances(case, form, padding, length, optimize):
    arch, weights = case
    model = build(dataclasses.replace(arch, form=form), weights)
    feeds = random_feeds(model, padding_mask(padding, length=length))
    before = run32(model, feeds)
    compact(model, (*RAISED, WriteRelativeLogitsPass()))
    assert_same(run32(model, feeds, optimize=optimize), before, tolerance=5e-4)


@settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.one_of(grouped(), disentangled(form="merged")),
    st.sampled_from(["root", "twice", "reciprocal"]),
    st.booleans(),
    st.sampled_from(PADDINGS),
    st.data(),
)
def test_norms_that_are_spelled_out_are_folded_into_like_any_other(case, norms, rms, padding, data):
    arch, weights = case
    for name in [name for name in weights if name.endswith((".scale", ".shift"))]:
        if data.draw(st.integers(0, 3)) == 0:
            del weights[name]
    model = build(dataclasses.replace(arch, norms=norms, rms=rms), weights)
    feeds = random_feeds(model, padding_mask(padding))
    before = run64(model, feeds)
    compact(model, RAISED)
    assert "Sqrt" not in operators(model)
    assert_same(run64(model, feeds), before)


TURNED = (RaiseAttentionPass(), RaiseRotaryPass(positions=POSITIONS), *STRUCTURE[1:])


@MANY
@given(
    st.one_of(grouped(front="ids", qk=4), pruned(front="ids", qk=4)),
    st.sampled_from(["rms", "layer"]),
    st.sampled_from([("3d", "node"), ("4d", "node"), ("4d", "angles"), ("spelled", "angles"), ("spelled", "learned")]),
    st.sampled_from(["", "half", "interleaved"]),
    st.sampled_from([("value",), ("query", "value"), ("key", "value"), (), ("query", "key")]),
    st.sampled_from(PADDINGS),
    st.integers(1, POSITIONS),
)
def test_heads_that_are_normalised_keep_their_output(case, head_norm, form, rotary, bare, padding, length):
    arch, weights = case
    knobs = {"form": form[0], "turns": form[1], "rotary": rotary}
    arch = dataclasses.replace(arch, head_norm=head_norm, value_norm=True, **knobs)
    norms = random_weights(arch)
    kept = {name: norms[name] for name in norms if "query_norm" in name or "key_norm" in name or "value_norm" in name}
    weights |= {name: array for name, array in kept.items() if not any(f"{side}_norm" in name for side in bare)}
    if form[0] == "spelled" and arch.mask not in ("none", "additive", "scaled", "bias", "bias_only"):
        arch = dataclasses.replace(arch, mask="additive")  # a bool mask is not added
    model = build(arch, weights)
    feeds = random_feeds(model, padding_mask(padding, length=length))
    before = run64(model, feeds)
    compact(model, TURNED)
    attentions = [node for node in model.graph if node.op_type == "Attention"]
    assert all(node.attributes["q_num_heads"].value for node in attentions)
    assert [node.op_type for node in model.graph].count("Softmax") == 0
    assert_same(run64(model, feeds), before)
    for rewrite in STRUCTURE[4:]:
        assert not rewrite(model).modified, rewrite.name
    RepeatSharedHeadsPass()(model)
    AlignWidthsPass(head=3, neurons=4)(model)
    check(model)
    assert_same(run64(model, feeds), before)
    WriteHeadNormsPass()(model)
    check(model)
    assert not any(node.domain for node in model.graph)
    assert_same(run64(model, feeds), before)


@settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.one_of(grouped(front="ids", mask="additive"), pruned(front="ids", mask="gathered")),
    st.sampled_from(["rms", "layer"]),
    st.sampled_from(["", "half"]),
    st.sampled_from(["classifier", "span", "tokens"]),
    st.sampled_from(PADDINGS),
    st.booleans(),
)
def test_onnx_runtime_agrees_on_heads_that_are_normalised(case, head_norm, rotary, head, padding, pack):
    arch, weights = case
    rotary = rotary if arch.qk % 2 == 0 else ""
    arch = dataclasses.replace(arch, head_norm=head_norm, rotary=rotary, head="classifier" if pack else head)
    given = random_weights(arch)
    weights = {name: weights.get(name, given[name]) for name in given if name in weights or "_norm" in name}
    weights |= {name: given[name] for name in ("classifier", "classifier.bias")}
    model = build(arch, weights)
    feeds = random_feeds(model, padding_mask(padding))
    before = run64(model, feeds)
    compact(model, TURNED)
    if pack and "Attention" in operators(model):
        result = PackTokensPass()(model)
        assert result.modified, result.refused
    assert_same(run64(model, feeds), before)
    single = build(dataclasses.replace(arch, dtype=np.float32), as_float32(weights))
    compact(single, (*TURNED, *([PackTokensPass()] if pack else []), WriteHeadNormsPass()))
    assert_same(run32(single, feeds), before, tolerance=5e-4)
