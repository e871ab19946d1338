from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compactor.passes.structure.remove_dead_neurons import RemoveDeadNeuronsPass
from tests.models import Architecture, build, random_weights
from tests.passes.strategies import PROPERTY, pruned
from tests.planting import empty_feed_forward, read_elsewhere
from tests.running import (
    PADDINGS,
    assert_rewrites_once,
    assert_same,
    assert_untouched,
    initializer_shapes,
    padding_mask,
    random_feeds,
    run32,
    run64,
)

ACTIVATIONS = ("gelu", "tanh-gelu", "relu", "silu", "erf-gelu")


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_folds_constant_neurons_and_drops_unread_ones(activation, gated):
    arch = Architecture(neurons=11, activation=activation, gated=gated)
    weights = random_weights(arch)
    weights["0.up"][:, [0, 3, 7]] = 0
    if gated:
        weights["0.gate"][:, [0, 3, 7]] = 0
    weights["0.down"][[3, 5]] = 0  # 3 is both: it counts as unread
    model = build(arch, weights)
    feeds = random_feeds(model)
    before = run64(model, feeds)

    result = assert_rewrites_once(RemoveDeadNeuronsPass(), model, unread_neuron=2, constant_neuron=2)

    assert len({event.layer for event in result.applied}) == 1
    shapes = initializer_shapes(model)
    assert shapes.count((8, 7)) == (2 if gated else 1)
    assert (7, 8) in shapes
    assert_same(run64(model, feeds), before)


def test_the_folded_constant_is_the_activation_of_the_bias():
    arch = Architecture(activation="relu", neurons=2, width=2)
    weights = random_weights(arch)
    weights["0.up"][:, 0] = 0
    weights["0.up.bias"][0] = 3
    weights["0.down"][0] = [1, 10]
    weights["0.down.bias"][:] = [0.5, 0.25]
    model = build(arch, weights)
    assert_rewrites_once(RemoveDeadNeuronsPass(), model, constant_neuron=1)
    folded = [v.const_value.numpy().tolist() for v in model.graph.initializers.values() if tuple(v.shape) == (2,)]
    assert [3.5, 30.25] in folded


@pytest.mark.parametrize(("up", "gate"), [(True, False), (False, True)])
def test_in_a_gated_block_one_exactly_zero_factor_is_enough(up, gate):
    arch = Architecture(activation="silu", gated=True)
    weights = random_weights(arch)
    for name, planted in (("0.up", up), ("0.gate", gate)):
        if planted:
            weights[name][:, [1, 4]] = 0
            weights[f"{name}.bias"][[1, 4]] = 0
    model = build(arch, weights)
    feeds = random_feeds(model)
    before = run64(model, feeds)
    assert_rewrites_once(RemoveDeadNeuronsPass(), model, constant_neuron=2)
    assert_same(run64(model, feeds), before)


def test_in_a_gated_block_a_constant_factor_that_is_not_zero_is_alive():
    arch = Architecture(activation="silu", gated=True)
    weights = random_weights(arch)
    weights["0.up"][:, [1, 4]] = 0
    weights["0.gate"][:, [2, 3]] = 0
    assert_untouched(RemoveDeadNeuronsPass(), build(arch, weights))


@pytest.mark.parametrize("how", ["constant", "unread"])
def test_goes_down_to_a_width_of_zero(how):
    weights = random_weights(Architecture())
    if how == "constant":
        empty_feed_forward(weights, 0)
    else:
        weights["0.down"][:] = 0
    model = build(Architecture(), weights)
    feeds = random_feeds(model)
    before = run64(model, feeds)
    assert_rewrites_once(RemoveDeadNeuronsPass(), model, **{f"{how}_neuron": 12})
    assert (8, 0) in initializer_shapes(model) and (0, 8) in initializer_shapes(model)
    assert_same(run64(model, feeds), before)


@pytest.mark.parametrize("missing", ["0.up.bias", "0.down.bias"])
def test_biases_may_be_missing(missing):
    weights = random_weights(Architecture())
    del weights[missing]
    weights["0.up"][:, :4] = 0
    model = build(Architecture(), weights)
    feeds = random_feeds(model)
    before = run64(model, feeds)
    assert_rewrites_once(RemoveDeadNeuronsPass(), model, constant_neuron=4)
    assert_same(run64(model, feeds), before)


def test_a_shared_initializer_keeps_its_other_readers():
    arch = Architecture(layers=2)
    weights = random_weights(arch)
    weights["0.up"][:, 2] = 0
    weights["1.up"], weights["1.up.bias"] = weights["0.up"].copy(), weights["0.up.bias"].copy()
    weights["0.down"][5] = 0
    model = build(arch, weights)
    feeds = random_feeds(model)
    before = run64(model, feeds)
    assert_rewrites_once(RemoveDeadNeuronsPass(), model, unread_neuron=1, constant_neuron=2)
    assert_same(run64(model, feeds), before)


def test_keeps_an_output_projection_that_is_a_graph_output():
    weights = random_weights(Architecture())
    weights["0.up"][:, 2] = 0
    del weights["0.down.bias"]
    model = build(Architecture(), weights, outputs=["0.down"])
    feeds = random_feeds(model)
    before = run64(model, feeds)
    assert_rewrites_once(RemoveDeadNeuronsPass(), model, constant_neuron=1)
    assert_same(run64(model, feeds), before)


def dead_neuron_model(arch=Architecture(), **options):  # noqa: B008 - frozen
    weights = random_weights(arch)
    weights["0.up"][:, :4] = 0
    if arch.gated:
        weights["0.gate"][:, :4] = 0
    weights["0.down"][6] = 0
    return build(arch, weights, **options)


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(read_elsewhere(dead_neuron_model(), "0.up"), id="projection-read-elsewhere"),
        pytest.param(read_elsewhere(dead_neuron_model(), "0.active"), id="activation-read-elsewhere"),
        pytest.param(dead_neuron_model(outputs=["0.up"]), id="projection-used-elsewhere"),
        pytest.param(dead_neuron_model(outputs=["0.active"]), id="activation-used-elsewhere"),
        pytest.param(dead_neuron_model(Architecture(gated=True), outputs=["0.gate"]), id="gate-used-elsewhere"),
        pytest.param(dead_neuron_model(inputs=["0.up"]), id="input-weight-not-constant"),
        pytest.param(dead_neuron_model(inputs=["0.up.bias"]), id="input-bias-not-constant"),
        pytest.param(dead_neuron_model(inputs=["0.down"]), id="output-weight-not-constant"),
        pytest.param(dead_neuron_model(Architecture(activation="per-neuron")), id="constant-per-neuron"),
        pytest.param(dead_neuron_model(Architecture(activation="softmax")), id="not-pointwise"),
        pytest.param(build(Architecture()), id="dense"),
    ],
)
def test_leaves_a_block_alone(model):
    assert_untouched(RemoveDeadNeuronsPass(), model)


def test_does_not_take_attention_for_a_feed_forward():
    weights = random_weights(Architecture())
    weights["0.output"][:] = 0
    assert_untouched(RemoveDeadNeuronsPass(), build(Architecture(), weights))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_onnx_runtime_agrees(activation):
    model = dead_neuron_model(Architecture(activation=activation, dtype=np.float32))
    feeds = random_feeds(model)
    before = run32(model, feeds)
    assert_rewrites_once(RemoveDeadNeuronsPass(), model, unread_neuron=1, constant_neuron=4)
    assert_same(run32(model, feeds), before, tolerance=1e-5)


@PROPERTY
@given(pruned(), st.integers(0, 9), st.sampled_from(PADDINGS))
def test_keeps_the_output_of_any_model(case, seed, padding):
    arch, weights = case
    model = build(arch, weights)
    feeds = random_feeds(model, padding_mask(padding, seed=seed), seed)
    before = run64(model, feeds)
    RemoveDeadNeuronsPass()(model)
    assert not RemoveDeadNeuronsPass()(model).modified
    assert_same(run64(model, feeds), before)
