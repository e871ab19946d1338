from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compactor.passes.equalisation.scale_values import ScaleValuesPass
from tests.models import Architecture, build, random_weights
from tests.passes.strategies import PROPERTY, architectures, grouped, pruned
from tests.planting import UNMATCHED
from tests.running import (
    PADDINGS,
    assert_same,
    assert_untouched,
    check,
    padding_mask,
    random_feeds,
    run64,
)


def uneven(arch, seed=0):
    """Weights whose value channels differ in size by many doublings."""
    weights = random_weights(arch, seed)
    random = np.random.default_rng(seed)
    for layer in range(arch.layers):
        weights[f"{layer}.value"] *= np.exp2(random.integers(-6, 7, arch.groups * arch.v)).astype(arch.dtype)
    return weights


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("kv_heads", [0, 2])
def test_changes_not_a_bit_of_the_output(kv_heads, padding):
    arch = Architecture(layers=2, kv_heads=kv_heads)
    model = build(arch, uneven(arch))
    feeds = random_feeds(model, padding_mask(padding))
    before = run64(model, feeds)
    assert ScaleValuesPass()(model).modified
    assert_same(run64(model, feeds), before, tolerance=0)


def test_channels_and_rows_end_within_a_doubling_of_each_other():
    arch = Architecture()
    weights = uneven(arch)
    del weights["0.value.bias"]
    model = build(arch, weights)
    assert ScaleValuesPass()(model).modified
    check(model)
    arrays = {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}
    columns = np.linalg.norm(arrays["w.0.value.compact"], axis=0)
    rows = np.linalg.norm(arrays["w.0.output.compact"], axis=1)
    assert (np.abs(np.log2(columns / rows)) <= 1).all()


def test_a_dead_channel_stays():
    arch = Architecture()
    weights = uneven(arch)
    weights["0.value"][:, 3] = weights["0.value.bias"][3] = 0
    weights["0.output"][5] = 0
    model = build(arch, weights)
    feeds = random_feeds(model)
    before = run64(model, feeds)
    ScaleValuesPass()(model)
    assert_same(run64(model, feeds), before, tolerance=0)
    assert all(np.isfinite(value.const_value.numpy()).all() for value in model.graph.initializers.values())


def test_normalised_values_are_left_alone():
    arch = Architecture(value_norm=True, head_norm="rms", rms=True)
    model = build(dataclasses.replace(arch, form="3d"), uneven(arch))
    assert_untouched(ScaleValuesPass(), model, "a norm takes the scale of the values away")


@pytest.mark.parametrize("case", UNMATCHED)
def test_leaves_alone_what_is_no_block(case):
    make, _ = UNMATCHED[case]
    assert_untouched(ScaleValuesPass(), make())


@PROPERTY
@given(st.one_of(pruned(), grouped()), st.sampled_from(PADDINGS))
def test_keeps_every_bit_of_any_model(drawn, padding):
    arch, weights = drawn
    model = build(arch, weights)
    feeds = random_feeds(model, padding_mask(padding))
    before = run64(model, feeds)
    ScaleValuesPass()(model)
    assert_same(run64(model, feeds), before, tolerance=0)
    assert not ScaleValuesPass()(model).modified


@PROPERTY
@given(architectures(dtype=np.float32), st.integers(0, 9))
def test_float32_keeps_its_bits_too(arch, seed):
    model = build(arch, uneven(arch, seed))
    feeds = random_feeds(model)
    before = run64(model, feeds)  # numpy, in float32
    ScaleValuesPass()(model)
    assert_same(run64(model, feeds), before, tolerance=0)
