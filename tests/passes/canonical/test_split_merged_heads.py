from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compactor.passes.canonical.split_merged_heads import SplitMergedHeadsPass
from tests.builder import Builder
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

ARCH = Architecture(form="merged", mask="both_real", layers=2)


@pytest.mark.parametrize("mask", ["both_real", "additive"])
@pytest.mark.parametrize("relative", ["", "c2p", "p2c", "both"])
def test_products_of_merged_heads_are_written_on_four_axes(relative, mask):
    model = build(dataclasses.replace(ARCH, relative=relative, mask=mask))
    feeds = random_feeds(model, padding_mask("left"))
    before = run64(model, feeds)

    assert_rewrites_once(SplitMergedHeadsPass(), model, split_merged_heads=2 * 2)  # logits and the weighted values

    for node in model.graph:
        if node.op_type in ("MatMul", "Softmax", "GatherElements") and node.name.partition(".")[2] != "output":
            shape = node.outputs[0].shape
            assert shape is None or len(shape) != 3 or shape[0] in ("batch", 1)
    assert "Tile" not in operators(model)
    assert_same(run64(model, feeds), before)


def merged(write, *, rows=None):
    """``write(b, x)`` between a Reshape of x (B, 2, S, 4) to (B*2, S, 4) and one back to (B, 2, rows or S, 4)."""
    shape = ir.Shape(["batch", 2, "sequence", 4])
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.DOUBLE), shape=shape)
    b = Builder([x], np.float64)
    length = b.node("Shape", x, start=2, end=3)
    flat = b.node("Reshape", x, b.node("Concat", b.constant([-1]), length, b.constant([4]), axis=0))
    flat.type, flat.shape = x.type, ir.Shape(["batch*2", "sequence", 4])
    y = write(b, flat)
    kept = length if rows is None else b.constant([rows])
    back = b.node("Reshape", y, b.node("Concat", b.constant([-1, 2]), kept, b.constant([4]), axis=0), name="y")
    back.type, back.shape = x.type, ir.Shape(["batch", 2, rows or "sequence", 4])
    b.graph.outputs.append(back)
    return ir.Model(b.graph, ir_version=11)


def like(value, reference):
    value.type, value.shape = reference.type, reference.shape
    return value


FEEDS = {"x": np.random.default_rng(0).standard_normal((3, 2, 5, 4))}


def test_pointwise_operators_with_numbers_are_followed():
    model = merged(lambda b, x: like(b.node("Div", like(b.node("Add", x, x), x), b.number(3.0)), x))
    before = run64(model, FEEDS)
    assert_rewrites_once(SplitMergedHeadsPass(), model, split_merged_heads=1)
    assert_same(run64(model, FEEDS), before)


@pytest.mark.parametrize(
    "write",
    [
        pytest.param(lambda b, x: like(b.node("Softmax", x, axis=1), x), id="softmax-over-rows"),
        pytest.param(lambda b, x: like(b.node("Softmax", x, axis=0), x), id="softmax-over-heads"),
        pytest.param(lambda b, x: like(b.node("CumSum", x, b.constant(0)), x), id="sums-over-heads"),
        pytest.param(lambda b, x: like(b.node("Add", x, b.constant(np.ones((1, 4)))), x), id="more-than-a-number"),
        pytest.param(lambda b, x: b.node("Add", x, x), id="of-unknown-shape"),
    ],
)
def test_what_comes_to_no_inverse_stays(write):
    assert_untouched(SplitMergedHeadsPass(), merged(write))


def test_another_number_of_heads_is_no_inverse():
    model = merged(lambda b, x: like(b.node("Mul", x, b.number(2.0)), x))
    back = model.graph.outputs[0]
    back.shape = ir.Shape(["other", 1, "sequence", 4])
    assert_untouched(SplitMergedHeadsPass(), model)


def test_tables_of_another_number_of_heads_stay():
    """(4, a, b) repeated for half as many examples has as many rows as (2, a, b) for all, but other ones."""

    def write(b, x):
        table = b.constant(np.random.default_rng(1).standard_normal((4, 4, 4)))
        size = b.node("Shape", x, start=0, end=1)
        times = b.node("Concat", b.node("Div", size, b.constant([4])), b.constant([1]), b.constant([1]), axis=0)
        tiled = b.node("Tile", table, times)
        tiled.type, tiled.shape = x.type, ir.Shape([x.shape[0], 4, 4])
        return like(b.node("MatMul", x, tiled), x)

    model = merged(write)
    feeds = {"x": np.random.default_rng(0).standard_normal((4, 2, 5, 4))}
    before = run64(model, feeds)
    assert_untouched(SplitMergedHeadsPass(), model)
    assert_same(run64(model, feeds), before)


def test_rows_gathered_of_some_rows_stay():
    """GatherElements gives as many rows as its index has, which may be fewer than there are."""

    def write(b, x):
        index = b.constant(np.array([[[1, 0, 3, 2]]]))
        size = b.node("Concat", b.node("Shape", x, start=0, end=1), b.constant([1, 4]), axis=0)
        grid = b.node("Expand", index, size)
        grid.type, grid.shape = ir.TensorType(ir.DataType.INT64), ir.Shape([x.shape[0], 1, 4])
        gathered = b.node("GatherElements", x, grid, axis=-1)
        gathered.type, gathered.shape = x.type, ir.Shape([x.shape[0], 1, 4])
        return gathered

    model = merged(write, rows=1)
    before = run64(model, FEEDS)
    assert_untouched(SplitMergedHeadsPass(), model)
    assert_same(run64(model, FEEDS), before)


def test_a_merged_value_that_is_read_elsewhere_stays_beside():
    model = build(ARCH, outputs=["0.logits"])
    feeds = random_feeds(model)
    before = run64(model, feeds)
    assert SplitMergedHeadsPass()(model).modified
    check(model)
    assert_same(run64(model, feeds), before)


def test_onnx_runtime_agrees():
    model = build(dataclasses.replace(ARCH, relative="both", dtype=np.float32))
    feeds = random_feeds(model, padding_mask("holes"))
    before = run32(model, feeds)
    assert SplitMergedHeadsPass()(model).modified
    assert_same(run32(model, feeds), before, tolerance=1e-5)


@PROPERTY
@given(disentangled(form="merged"), st.sampled_from(PADDINGS), st.integers(1, 11), st.integers(0, 9))
def test_changes_no_number(case, padding, length, seed):
    arch, weights = case
    model = build(arch, weights)
    feeds = random_feeds(model, padding_mask(padding, length=length, seed=seed), seed)
    before = run64(model, feeds)
    assert SplitMergedHeadsPass()(model).modified
    check(model)
    assert not SplitMergedHeadsPass()(model).modified
    assert_same(run64(model, feeds), before)
