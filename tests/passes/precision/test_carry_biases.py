from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compactor.passes.lowering.pack_tokens import PackTokensPass
from compactor.passes.precision.carry_biases import CarryBiasesPass
from tests.models import Architecture, build, random_weights
from tests.passes.strategies import PROPERTY, pruned
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
@pytest.mark.parametrize("packed", [False, True])
def test_moves_the_bias_of_every_sublayer_into_the_norm_before_it(packed, padding):
    model = build(Architecture(layers=2))
    feeds = random_feeds(model, padding_mask(padding))
    if packed:
        PackTokensPass()(model)
    before = run64(model, feeds)

    assert_rewrites_once(CarryBiasesPass(), model, carried_bias=4)

    assert_same(run64(model, feeds), before)
    products = {node.outputs[0] for node in model.graph if node.op_type == "MatMul"}
    residuals = [node for node in model.graph if node.name.endswith("residual")]
    assert len(residuals) == 4 and all(set(node.inputs) & products for node in residuals)


def test_readers_without_a_bias_get_one():
    arch = Architecture()
    weights = random_weights(arch)
    for role in ("query", "key", "value", "up"):
        del weights[f"0.{role}.bias"]
    model = build(arch, weights)
    feeds = random_feeds(model)
    before = run64(model, feeds)
    assert_rewrites_once(CarryBiasesPass(), model, carried_bias=2)
    assert_same(run64(model, feeds), before)


def test_there_is_nothing_to_carry_without_biases():
    arch = Architecture()
    weights = random_weights(arch)
    del weights["0.output.bias"], weights["0.down.bias"]
    assert_untouched(CarryBiasesPass(), build(arch, weights))


def test_a_stream_that_is_normalised_before_the_sublayer_has_no_shift_to_take_it():
    assert_untouched(CarryBiasesPass(), build(Architecture(norm="pre")))


@pytest.mark.parametrize("outputs", [["first", "0.attention_norm"], ["0.output", "0.down"]])
def test_what_a_caller_reads_keeps_its_numbers(outputs):
    assert_untouched(CarryBiasesPass(), build(Architecture(), outputs=outputs))


@PROPERTY
@given(pruned(), st.sampled_from(PADDINGS))
def test_keeps_the_output_of_any_model(drawn, padding):
    arch, weights = drawn
    model = build(arch, weights)
    feeds = random_feeds(model, padding_mask(padding))
    before = run64(model, feeds)
    CarryBiasesPass()(model)
    assert_same(run64(model, feeds), before)
    assert not CarryBiasesPass()(model).modified
