from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compactor.passes.graph.matching import add_to_bias
from compactor.passes.structure.fold_value_biases import FoldValueBiasesPass
from tests.models import Architecture, build, random_weights
from tests.passes.strategies import PROPERTY, architectures
from tests.planting import UNMATCHED
from tests.running import (
    PADDINGS,
    assert_rewrites_once,
    assert_same,
    assert_untouched,
    padding_mask,
    random_feeds,
    run64,
)


@pytest.mark.parametrize(
    ("mask", "padding"),
    [
        *((mask, padding) for mask in ("none", "plain", "additive", "bias") for padding in PADDINGS),
        ("causal", "right"),  # left padding and holes leave the first queries of a causal model without a key
    ],
)
def test_drops_the_key_bias_and_moves_the_value_bias(mask, padding):
    model = build(Architecture(mask=mask, layers=2))
    feeds = random_feeds(model, padding_mask(padding))
    before = run64(model, feeds)

    assert_rewrites_once(FoldValueBiasesPass(), model, key_bias=2, value_bias=2)

    # first: the query, output, up and down projections of both layers still add a bias, and two residuals each
    assert sum(node.op_type == "Add" and node.name[:2] in ("0.", "1.") for node in model.graph) == 12
    assert_same(run64(model, feeds), before)


def test_makes_an_output_bias_where_there_was_none():
    arch = Architecture()
    weights = random_weights(arch)
    del weights["0.output.bias"]
    model = build(arch, weights)
    feeds = random_feeds(model)
    before = run64(model, feeds)

    assert_rewrites_once(FoldValueBiasesPass(), model, key_bias=1, value_bias=1)

    assert_same(run64(model, feeds), before)


def test_has_nothing_to_do_without_biases():
    weights = random_weights(Architecture())
    del weights["0.key.bias"], weights["0.value.bias"]
    assert_untouched(FoldValueBiasesPass(), build(Architecture(), weights))


def test_a_shared_initializer_keeps_its_other_readers():
    arch = Architecture()
    weights = random_weights(arch)
    weights["0.value.bias"] = weights["0.query.bias"].copy()  # one initializer in the graph
    weights["0.value"] = weights["0.query"].copy()
    model = build(arch, weights)
    feeds = random_feeds(model)
    before = run64(model, feeds)

    assert_rewrites_once(FoldValueBiasesPass(), model, key_bias=1, value_bias=1)

    assert_same(run64(model, feeds), before)


def test_keeps_an_output_projection_that_is_a_graph_output():
    model = build(Architecture(), outputs=["0.output"])
    feeds = random_feeds(model)
    before = run64(model, feeds)

    assert_rewrites_once(FoldValueBiasesPass(), model, key_bias=1, value_bias=1)

    assert_same(run64(model, feeds), before)


def test_an_output_projection_without_bias_that_is_a_graph_output_keeps_its_name():
    weights = random_weights(Architecture())
    del weights["0.output.bias"]
    model = build(Architecture(), weights, outputs=["0.output"])
    feeds = random_feeds(model)
    before = run64(model, feeds)

    assert_rewrites_once(FoldValueBiasesPass(), model, key_bias=1, value_bias=1)

    assert_same(run64(model, feeds), before)


@pytest.mark.parametrize("case", UNMATCHED)
def test_leaves_a_block_alone_and_says_why(case):
    make, reason = UNMATCHED[case]
    assert_untouched(FoldValueBiasesPass(), make(), reason)


def test_add_to_bias_sums_in_float64_and_keeps_the_dtype():
    total = add_to_bias(np.float32([1e8, 0]), np.float32([1.0, -1e8]), np.float32([[1, 0], [1, 0]]))
    assert total.dtype == np.float32
    assert total.tolist() == [1, 0]


@PROPERTY
@given(architectures(), st.integers(0, 9), st.sampled_from(PADDINGS))
def test_keeps_the_output_of_any_model(arch, seed, padding):
    model = build(arch, random_weights(arch, seed))
    feeds = random_feeds(model, padding_mask(padding, seed=seed), seed)
    before = run64(model, feeds)
    assert_rewrites_once(FoldValueBiasesPass(), model, key_bias=arch.layers, value_bias=arch.layers)
    assert_same(run64(model, feeds), before)
