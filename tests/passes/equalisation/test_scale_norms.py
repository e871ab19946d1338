from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compactor.passes.equalisation.scale_norms import ScaleNormsPass
from tests.models import VOCAB, Architecture, build, random_weights
from tests.passes.strategies import PROPERTY, pruned
from tests.running import assert_same, assert_untouched, check, padding_mask, random_feeds, run64

PRE = Architecture(norm="pre")


def uneven(arch, seed=0):
    weights = random_weights(arch, seed)
    random = np.random.default_rng(seed)
    for name in [name for name in weights if name.endswith("_norm.scale")]:
        by = np.exp2(random.integers(-6, 7, weights[name].size)).astype(arch.dtype)
        weights[name] *= by
        if not arch.rms:
            weights[name.replace("scale", "shift")] *= by
    return weights


@pytest.mark.parametrize("rms", [False, True])
@pytest.mark.parametrize("norm", ["pre", "both"])
def test_changes_not_a_bit_of_the_output(norm, rms):
    arch = Architecture(norm=norm, rms=rms, gated=True)
    model = build(arch, uneven(arch))
    feeds = random_feeds(model)
    before = run64(model, feeds)
    result = ScaleNormsPass()(model)
    assert len([event for event in result.applied if event.count]) == 2  # before attention and feed-forward
    assert_same(run64(model, feeds), before, tolerance=0)


def test_norms_and_rows_end_within_a_doubling_of_each_other():
    weights = {name: array for name, array in uneven(PRE).items() if not name.endswith("_norm.shift")}
    model = build(PRE, weights)
    assert ScaleNormsPass()(model).modified
    check(model)
    arrays = {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}
    readers = np.concatenate([arrays[f"w.0.{name}.scaled"] for name in ("query", "key", "value")], axis=1)
    ratio = np.abs(arrays["w.0.attention_norm.scale.scaled"]) / np.linalg.norm(readers, axis=1)
    assert (np.abs(np.log2(ratio)) <= 1).all()


def test_a_norm_beside_a_residual_is_left_alone():
    arch = Architecture(norm="post")
    assert_untouched(ScaleNormsPass(), build(arch, uneven(arch)), "reads the norm as it is")


def test_a_norm_that_is_an_output_is_left_alone():
    arch = Architecture(norm="pre", layers=1)
    model = build(arch, uneven(arch), outputs=["0.attention_norm", "0.feed_forward_norm"])
    assert_untouched(ScaleNormsPass(), model, "is an output")


def test_weights_that_a_caller_may_override_are_left_alone():
    names = ["0.attention_norm.scale", "0.feed_forward_norm.scale"]
    assert_untouched(ScaleNormsPass(), build(PRE, uneven(PRE), inputs=names), "no constants")


def test_a_matrix_that_is_the_table_of_embeddings_is_left_alone():
    arch = Architecture(norm="pre", front="ids", neurons=VOCAB)
    weights = uneven(arch)
    weights["0.up"] = np.ascontiguousarray(weights["embedding"].T)
    model = build(arch, weights)
    result = ScaleNormsPass()(model)
    assert [refusal.reason for refusal in result.refused if "table" in refusal.reason]
    assert sum(event.count for event in result.applied) and len(result.applied) == 1


@PROPERTY
@given(pruned(norm="pre"), st.sampled_from(["none", "right", "left", "holes"]))
def test_keeps_every_bit_of_any_model(drawn, padding):
    arch, weights = drawn
    model = build(arch, weights)
    feeds = random_feeds(model, padding_mask(padding))
    before = run64(model, feeds)
    ScaleNormsPass()(model)
    assert_same(run64(model, feeds), before, tolerance=0)
    assert not ScaleNormsPass()(model).modified
