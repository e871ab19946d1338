from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compactor.passes.lowering.write_relative_logits import WriteRelativeLogitsPass
from tests.attention import SPAN
from tests.models import Architecture, build
from tests.passes.strategies import PROPERTY, disentangled
from tests.running import (
    PADDINGS,
    assert_rewrites_once,
    assert_same,
    assert_untouched,
    check,
    operators,
    padding_mask,
    random_feeds,
    run32,
    run64,
)

ARCH = Architecture(mask="both_real", relative="both", layers=2)
LIMIT = 11


@pytest.mark.parametrize("length", range(1, LIMIT + 1))
def test_is_exact_at_every_length(length):
    model = build(ARCH)
    feeds = random_feeds(model, padding_mask("right", length=length))
    before = run64(model, feeds)

    assert_rewrites_once(WriteRelativeLogitsPass(), model, written_relative_logits=4)

    assert "RelativeLogits" not in operators(model)
    assert_same(run64(model, feeds), before)


@pytest.mark.parametrize("optimize", [False, True])
@pytest.mark.parametrize("padding", PADDINGS)
def test_onnx_runtime_agrees_at_every_length(padding, optimize):
    model = build(dataclasses.replace(ARCH, dtype=np.float32))
    written = model.clone()
    WriteRelativeLogitsPass()(written)
    for length in range(1, LIMIT + 1):
        feeds = random_feeds(model, padding_mask(padding, length=length))
        expected = run64(model, feeds)
        assert_same(run32(written, feeds, optimize=optimize), expected, tolerance=1e-4)


def test_what_depends_on_the_length_alone_is_written_once_for_all_layers():
    once, twice = (build(dataclasses.replace(ARCH, layers=layers, relative="c2p")) for layers in (1, 2))
    for model in (once, twice):
        WriteRelativeLogitsPass()(model)
    for kind in ("ReduceMin", "ReduceMax", "Expand", "Clip"):
        assert operators(once)[kind] == operators(twice)[kind] == 1
    assert (operators(once)["GatherElements"], operators(twice)["GatherElements"]) == (1, 2)


def test_only_the_rows_that_are_reached_are_multiplied():
    model = build(dataclasses.replace(ARCH, relative="c2p", layers=1))
    WriteRelativeLogitsPass()(model)
    product = next(node for node in model.graph if node.op_type == "GatherElements").inputs[0]
    model.graph.outputs[:] = [product]
    product.name = "product"
    check(model)
    for length, rows in ((1, 1), (3, 5), (SPAN, 2 * SPAN - 1), (SPAN + 1, 2 * SPAN), (LIMIT, 2 * SPAN)):
        found = run64(model, random_feeds(model, padding_mask("none", length=length)))["product"]
        assert found.shape == (3, ARCH.heads, length, rows)


def test_has_nothing_to_do_without_them():
    assert_untouched(WriteRelativeLogitsPass(), build(Architecture()))


@PROPERTY
@given(disentangled(form="3d"), st.sampled_from(PADDINGS), st.integers(1, LIMIT), st.integers(0, 9))
def test_changes_no_number(case, padding, length, seed):
    arch, weights = case
    model = build(arch, weights)
    feeds = random_feeds(model, padding_mask(padding, length=length, seed=seed), seed)
    before = run64(model, feeds)
    assert WriteRelativeLogitsPass()(model).modified
    check(model)
    assert_same(run64(model, feeds), before)
