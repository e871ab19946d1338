from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compactor.passes.equalisation.scale_gated_neurons import ScaleGatedNeuronsPass
from tests.models import Architecture, build, random_weights
from tests.passes.strategies import PROPERTY, pruned
from tests.running import assert_same, assert_untouched, check, padding_mask, random_feeds, run64

ACTIVATIONS = ("gelu", "tanh-gelu", "relu", "silu", "erf-gelu")


def uneven(arch, seed=0):
    """In this model ``gate`` is what the activation of ``up`` is multiplied by: the value."""
    weights = random_weights(arch, seed)
    by = np.exp2(np.random.default_rng(seed).integers(-6, 7, arch.neurons)).astype(arch.dtype)
    weights["0.gate"] *= by
    weights["0.gate.bias"] *= by
    return weights


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_changes_not_a_bit_of_the_output(activation):
    arch = Architecture(activation=activation, gated=True)
    weights = uneven(arch)
    model = build(arch, weights)
    feeds = random_feeds(model)
    before = run64(model, feeds)
    result = ScaleGatedNeuronsPass()(model)
    assert result.modified
    assert_same(run64(model, feeds), before, tolerance=0)
    arrays = {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}
    assert not np.array_equal(arrays["w.0.gate.compact"], weights["0.gate"])
    assert "w.0.up.compact" not in arrays  # what the activation takes keeps its size


def test_neurons_and_rows_end_close_to_each_other():
    """By sampling: every neuron is about as large as the row that reads it."""
    arch = Architecture(gated=True, width=16, neurons=24)
    model = build(arch, uneven(arch))
    assert ScaleGatedNeuronsPass()(model).modified
    check(model)
    arrays = {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}
    x = np.random.default_rng(0).standard_normal((4000, arch.width))
    gate = x @ arrays["w.0.up"] + arrays["w.0.up.bias"]
    value = x @ arrays["w.0.gate.compact"] + arrays["w.0.gate.compact_bias"]
    neurons = np.maximum(gate, 0) * value  # close enough to GELU
    rows = np.linalg.norm(arrays["w.0.down.compact"], axis=1)
    assert (np.abs(np.log2(np.sqrt((neurons**2).mean(axis=0)) / rows)) < 1.6).all()


def test_a_plain_block_is_left_alone():
    assert_untouched(ScaleGatedNeuronsPass(), build(Architecture(), random_weights(Architecture())))


def test_a_value_that_is_an_output_keeps_its_size():
    arch = Architecture(gated=True)
    assert_untouched(ScaleGatedNeuronsPass(), build(arch, uneven(arch), outputs=["0.gate"]))


@PROPERTY
@given(pruned(gated=True), st.sampled_from(["none", "right", "left", "holes"]))
def test_keeps_every_bit_of_any_model(drawn, padding):
    arch, weights = drawn
    model = build(arch, weights)
    feeds = random_feeds(model, padding_mask(padding))
    before = run64(model, feeds)
    ScaleGatedNeuronsPass()(model)
    assert_same(run64(model, feeds), before, tolerance=0)
    assert not ScaleGatedNeuronsPass()(model).modified
