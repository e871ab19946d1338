from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compactor.passes.lowering.repeat_shared_heads import RepeatSharedHeadsPass
from tests.models import Architecture, build, random_weights
from tests.passes.strategies import PROPERTY, grouped
from tests.planting import UNMATCHED, attention_node
from tests.running import (
    PADDINGS,
    assert_rewrites_once,
    assert_same,
    assert_untouched,
    check,
    padding_mask,
    random_feeds,
    run32,
    run64,
)

ARCH = Architecture(heads=6, kv_heads=2, qk=4, v=3, front="ids", mask="plain")


@pytest.mark.parametrize("rotary", ["", "half"])
def test_each_key_and_value_head_stands_as_often_as_queries_share_it(rotary):
    arch = dataclasses.replace(ARCH, rotary=rotary)
    weights = random_weights(arch)
    model = build(arch, weights)
    feeds = random_feeds(model, padding_mask("left"))
    before = run64(model, feeds)

    assert_rewrites_once(RepeatSharedHeadsPass(), model, repeated_head=4)

    node = attention_node(model)
    assert node.attributes["q_num_heads"].value == node.attributes["kv_num_heads"].value == 6
    turned = [node for node in model.graph if node.op_type == "RotaryEmbedding"]
    assert [node.attributes["num_heads"].value for node in turned] == [6] * len(turned)
    for name, size in (("key", 4), ("value", 3)):
        heads = weights[f"0.{name}"].reshape(-1, 2, size)[:, [0, 0, 0, 1, 1, 1]].reshape(-1, 6 * size)
        bias = weights[f"0.{name}.bias"].reshape(2, size)[[0, 0, 0, 1, 1, 1]].reshape(-1)
        arrays = [value.const_value.numpy() for value in model.graph.initializers.values()]
        for wanted in (heads, bias):
            assert any(array.shape == wanted.shape and (array == wanted).all() for array in arrays)
    assert_same(run64(model, feeds), before)


def test_heads_that_share_nothing_stay():
    assert_untouched(RepeatSharedHeadsPass(), build(Architecture()))


@pytest.mark.parametrize("case", UNMATCHED)
def test_leaves_what_is_no_block(case):
    make, _ = UNMATCHED[case]
    assert_untouched(RepeatSharedHeadsPass(), make())


def test_onnx_runtime_agrees():
    model = build(dataclasses.replace(ARCH, dtype=np.float32))
    feeds = random_feeds(model, padding_mask("holes"))
    before = run32(model, feeds)
    assert RepeatSharedHeadsPass()(model).modified
    assert_same(run32(model, feeds), before, tolerance=1e-5)


@PROPERTY
@given(grouped(), st.sampled_from(PADDINGS), st.integers(0, 9))
def test_changes_no_number(case, padding, seed):
    arch, weights = case
    model = build(arch, weights)
    feeds = random_feeds(model, padding_mask(padding, seed=seed), seed)
    before = run64(model, feeds)
    assert RepeatSharedHeadsPass()(model).modified
    check(model)
    assert not RepeatSharedHeadsPass()(model).modified
    assert_same(run64(model, feeds), before)
