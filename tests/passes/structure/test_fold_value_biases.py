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


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("mask", ["none", "plain", "additive", "bias"])
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


@pytest.mark.parametrize(("rotated", "kept"), [(0, [True] * 4), (2, [True, True, False, False])])
def test_a_key_bias_stays_where_it_is_turned(rotated, kept):
    arch = Architecture(rotary="half", rotated=rotated)
    weights = random_weights(arch)
    model = build(arch, weights)
    feeds = random_feeds(model, padding_mask("left"))
    before = run64(model, feeds)
    rules = {event.rule for event in FoldValueBiasesPass()(model).applied}
    assert rules == ({"value-bias"} if all(kept) else {"key-bias", "value-bias"})
    biases = [value.const_value.numpy() for value in model.graph.initializers.values()]
    expected = np.where(np.tile(kept, arch.heads), weights["0.key.bias"], 0)
    assert any(bias.shape == expected.shape and (bias == expected).all() for bias in biases)
    assert_same(run64(model, feeds), before)
    assert not FoldValueBiasesPass()(model).modified


@pytest.mark.parametrize("mask", ["window", "causal"])
def test_a_value_bias_stays_where_a_query_may_see_no_key(mask):
    """Padding on the left, or a hole, leaves it none."""
    result = FoldValueBiasesPass()(build(Architecture(mask=mask)))
    assert {event.rule for event in result.applied} == {"key-bias"}
    assert "the mask may hide every key" in result.refused[0].reason


def test_a_key_bias_stays_exactly_where_a_table_of_keys_reads_it():
    arch = Architecture(mask="both_real", relative="both")
    weights = random_weights(arch)
    for name in ("p2c", "p2c.bias"):
        weights[f"0.{name}"][..., [0, 5, 6]] = 0
    for name in ("c2p", "c2p.bias"):
        weights[f"0.{name}"][..., [7]] = 0  # queries have nothing to do with it
    model = build(arch, weights)
    feeds = random_feeds(model, padding_mask("left"))
    before = run64(model, feeds)

    assert_rewrites_once(FoldValueBiasesPass(), model, key_bias=1, value_bias=1)

    expected = weights["0.key.bias"].copy()
    expected[[0, 5, 6]] = 0
    biases = [value.const_value.numpy() for value in model.graph.initializers.values()]
    assert any(bias.shape == expected.shape and (bias == expected).all() for bias in biases)
    assert_same(run64(model, feeds), before)


def test_a_key_bias_goes_where_only_queries_have_a_table():
    model = build(Architecture(mask="both_real", relative="c2p"))
    feeds = random_feeds(model, padding_mask("holes"))
    before = run64(model, feeds)
    assert_rewrites_once(FoldValueBiasesPass(), model, key_bias=1, value_bias=1)
    key = next(node for node in model.graph if node.op_type == "Attention").inputs[1].producer()
    assert key.op_type == "MatMul"
    assert_same(run64(model, feeds), before)


@pytest.mark.parametrize("rotary", ["", "half"])
@pytest.mark.parametrize("kv_heads", [1, 2])
def test_a_shared_value_bias_is_folded_for_each_of_its_queries(kv_heads, rotary):
    arch = Architecture(heads=4, kv_heads=kv_heads, rotary=rotary, front="ids")
    weights = random_weights(arch)
    model = build(arch, weights)
    feeds = random_feeds(model, padding_mask("left"))
    before = run64(model, feeds)
    counts = {"value_bias": 1} if rotary else {"key_bias": 1, "value_bias": 1}
    assert_rewrites_once(FoldValueBiasesPass(), model, **counts)
    row = weights["0.value.bias"].reshape(kv_heads, -1).repeat(4 // kv_heads, axis=0).reshape(-1)
    total = weights["0.output.bias"] + row @ weights["0.output"]
    biases = [value.const_value.numpy() for value in model.graph.initializers.values()]
    assert any(bias.shape == total.shape and np.allclose(bias, total, rtol=1e-12) for bias in biases)
    assert_same(run64(model, feeds), before)


@pytest.mark.parametrize("head_norm", ["rms", "layer"])
@pytest.mark.parametrize(("bare", "dropped"), [("", 0), ("query", 0), ("key", 1)])
def test_a_key_bias_in_front_of_a_norm_stays(bare, dropped, head_norm):
    """The norm divides by what it is a part of; one of the queries alone does not."""
    arch = Architecture(head_norm=head_norm)
    weights = random_weights(arch)
    for name in [name for name in weights if bare and name.startswith(f"0.{bare}_norm")]:
        del weights[name]
    model = build(arch, weights)
    feeds = random_feeds(model, padding_mask("holes"))
    before = run64(model, feeds)
    assert_rewrites_once(FoldValueBiasesPass(), model, **({"key_bias": 1} if dropped else {}), value_bias=1)
    assert_same(run64(model, feeds), before)
