from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compactor.passes.lowering.decompose_rotary import DecomposeRotaryPass
from tests.models import Architecture, build
from tests.passes.strategies import PROPERTY, architectures
from tests.running import (
    PADDINGS,
    assert_rewrites_once,
    assert_same,
    assert_untouched,
    operators,
    padding_mask,
    random_feeds,
    run32,
    run64,
)

ARCH = Architecture(layers=2, qk=6, rotary="half")


@pytest.mark.parametrize("rotary", ["half", "interleaved"])
@pytest.mark.parametrize("rotated", [0, 4])
def test_turns_by_operators_that_every_runtime_has(rotary, rotated):
    model = build(dataclasses.replace(ARCH, rotary=rotary, rotated=rotated))
    feeds = random_feeds(model, padding_mask("left"))
    before = run64(model, feeds)
    rows = operators(model).get("Gather", 0)

    assert_rewrites_once(DecomposeRotaryPass(), model, spelled_out_rotary=4)

    counts = operators(model)
    assert "RotaryEmbedding" not in counts
    assert counts["Gather"] - rows == 2  # a row of cosines and one of sines a token, for all layers
    assert_same(run64(model, feeds), before)


def test_onnxruntime_agrees_with_its_own_operator():
    model = build(dataclasses.replace(ARCH, dtype=np.float32))
    feeds = random_feeds(model, padding_mask("right"))
    before = run32(model, feeds)
    DecomposeRotaryPass()(model)
    assert_same(run32(model, feeds), before, tolerance=1e-5)


def test_the_4d_form_stays():
    assert_untouched(DecomposeRotaryPass(), build(dataclasses.replace(ARCH, form="4d")), "not in the 3-D form")


@PROPERTY
@given(
    architectures(qk=4, front="ids"),
    st.sampled_from(["half", "interleaved"]),
    st.sampled_from([0, 2]),
    st.sampled_from(PADDINGS),
)
def test_changes_no_number(arch, rotary, rotated, padding):
    model = build(dataclasses.replace(arch, rotary=rotary, rotated=rotated))
    feeds = random_feeds(model, padding_mask(padding))
    before = run64(model, feeds)
    assert DecomposeRotaryPass()(model).modified
    assert_same(run64(model, feeds), before)
