from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compactor.passes.lowering.pack_tokens import PackTokensPass
from compactor.passes.precision.merge_projections import MergeProjectionsPass
from tests.models import Architecture, build, random_weights
from tests.passes.strategies import PROPERTY, architectures
from tests.running import (
    PADDINGS,
    assert_rewrites_once,
    assert_same,
    assert_untouched,
    operators,
    padding_mask,
    random_feeds,
    run64,
)


def packed(arch, weights=None, **options):
    model = build(arch, weights, **options)
    assert PackTokensPass()(model).modified
    return model


@pytest.mark.parametrize("padding", PADDINGS)
def test_queries_keys_and_values_become_one_product(padding):
    model = packed(Architecture(layers=2))
    feeds = random_feeds(model, padding_mask(padding))
    before, products = run64(model, feeds), operators(model)["MatMul"]
    assert_rewrites_once(MergeProjectionsPass(), model, merged_projection=6)
    assert_same(run64(model, feeds), before)
    assert operators(model)["MatMul"] == products - 4
    assert sum(node.op_type == "Mul" for node in model.graph) == 1  # the rows are computed once for both layers


def test_a_missing_bias_is_zeros():
    arch = Architecture()
    weights = random_weights(arch)
    del weights["0.key.bias"], weights["0.value.bias"]
    model = packed(arch, weights)
    feeds = random_feeds(model)
    before = run64(model, feeds)
    assert_rewrites_once(MergeProjectionsPass(), model, merged_projection=3)
    assert_same(run64(model, feeds), before)


def test_without_any_bias_nothing_is_added():
    arch = Architecture()
    weights = {
        name: array for name, array in random_weights(arch).items() if not name.startswith("0.") or "bias" not in name
    }
    model = packed(arch, weights)
    adds = operators(model)["Add"]
    feeds = random_feeds(model)
    before = run64(model, feeds)
    MergeProjectionsPass()(model)
    assert_same(run64(model, feeds), before)
    assert operators(model)["Add"] == adds + 2  # the rows of keys and values


def test_parts_of_another_width_stay():
    model = packed(Architecture(v=3))
    feeds = random_feeds(model)
    before = run64(model, feeds)
    assert_rewrites_once(MergeProjectionsPass(), model, merged_projection=2)  # queries and keys
    assert_same(run64(model, feeds), before)


def test_shared_keys_and_values_are_merged_without_the_queries():
    model = packed(Architecture(kv_heads=2))
    feeds = random_feeds(model)
    before = run64(model, feeds)
    assert_rewrites_once(MergeProjectionsPass(), model, merged_projection=2)
    assert_same(run64(model, feeds), before)


def test_what_is_not_packed_is_left_alone():
    assert_untouched(MergeProjectionsPass(), build(Architecture()))


def test_a_projection_that_is_an_output_stays():
    model = packed(Architecture(), outputs=["0.query"])
    feeds = random_feeds(model)
    before = run64(model, feeds)
    assert_rewrites_once(MergeProjectionsPass(), model, merged_projection=2)
    assert_same(run64(model, feeds), before)


@PROPERTY
@given(architectures(mask="plain"), st.integers(0, 9), st.sampled_from(PADDINGS))
def test_keeps_the_output_of_any_model(arch, seed, padding):
    model = packed(arch, random_weights(arch, seed)) if arch.head in ("hidden", "classifier", "span") else build(arch)
    feeds = random_feeds(model, padding_mask(padding, seed=seed), seed)
    before = run64(model, feeds)
    MergeProjectionsPass()(model)
    assert_same(run64(model, feeds), before)
    assert not MergeProjectionsPass()(model).modified
