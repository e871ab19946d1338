from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compactor.passes.equalisation.scale_relu_neurons import ScaleReluNeuronsPass
from tests.models import Architecture, build, random_weights
from tests.passes.strategies import PROPERTY, pruned
from tests.running import assert_same, assert_untouched, check, padding_mask, random_feeds, run64

ARCH = Architecture(activation="relu")


def uneven(arch=ARCH, seed=0):
    weights = random_weights(arch, seed)
    by = np.exp2(np.random.default_rng(seed).integers(-6, 7, arch.neurons)).astype(arch.dtype)
    weights["0.up"] *= by
    weights["0.up.bias"] *= by
    return weights


def test_changes_not_a_bit_of_the_output():
    model = build(ARCH, uneven())
    feeds = random_feeds(model)
    before = run64(model, feeds)
    assert ScaleReluNeuronsPass()(model).modified
    check(model)
    assert_same(run64(model, feeds), before, tolerance=0)


def test_neurons_and_rows_end_within_a_doubling_of_each_other():
    weights = uneven()
    del weights["0.up.bias"]
    model = build(ARCH, weights)
    ScaleReluNeuronsPass()(model)
    arrays = {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}
    columns = np.linalg.norm(arrays["w.0.up.compact"], axis=0)
    rows = np.linalg.norm(arrays["w.0.down.compact"], axis=1)
    assert (np.abs(np.log2(columns / rows)) <= 1).all()


@pytest.mark.parametrize("activation", ["gelu", "tanh-gelu", "silu", "erf-gelu"])
def test_an_activation_that_is_not_homogeneous_is_left_alone(activation):
    arch = Architecture(activation=activation)
    assert_untouched(ScaleReluNeuronsPass(), build(arch, uneven(arch)))


def test_a_gated_block_is_another_pass():
    arch = Architecture(activation="relu", gated=True)
    assert_untouched(ScaleReluNeuronsPass(), build(arch, uneven(arch)))


def test_neurons_that_are_an_output_keep_their_size():
    assert_untouched(ScaleReluNeuronsPass(), build(ARCH, uneven(), outputs=["0.active"]))


@PROPERTY
@given(pruned(activation="relu"), st.sampled_from(["none", "right", "left", "holes"]))
def test_keeps_every_bit_of_any_model(drawn, padding):
    arch, weights = drawn
    model = build(arch, weights)
    feeds = random_feeds(model, padding_mask(padding))
    before = run64(model, feeds)
    ScaleReluNeuronsPass()(model)
    assert_same(run64(model, feeds), before, tolerance=0)
    assert not ScaleReluNeuronsPass()(model).modified
