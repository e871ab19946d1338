from __future__ import annotations

import itertools

import hypothesis
import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compactor.passes.canonical.split_projections import SplitProjectionsPass
from tests.builder import Builder
from tests.passes.strategies import PROPERTY
from tests.running import (
    assert_rewrites_once,
    assert_same,
    assert_untouched,
    check,
    initializer_shapes,
    operators,
    run64,
)

WIDTH, HEADS, SIZE = 5, 2, 3


def projected(read, columns=3 * HEADS * SIZE, bias=True):
    """A graph of one projection of (B, S, WIDTH), and what ``read`` makes of it."""
    random = np.random.default_rng(0)
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.DOUBLE), shape=ir.Shape(["batch", "sequence", WIDTH]))
    b = Builder([x], np.float64)
    y = b.node("MatMul", x, b.constant(random.standard_normal((WIDTH, columns)), "weight"), name="product")
    if bias:
        y = b.node("Add", y, b.constant(random.uniform(0.1, 1, columns), "bias"), name="projection")
    results = read(b, y)
    for number, value in enumerate(results):
        b.graph.outputs.append(b.node("Neg", value, name=f"out{number}"))
    model = ir.Model(b.graph, ir_version=11)
    check(model)
    return model


def feeds():
    return {"x": np.random.default_rng(1).standard_normal((3, 4, WIDTH))}


def split(b, y):
    return b.node("Split", y, outputs=2, axis=2, num_outputs=2)


def uneven(b, y):
    return b.node("Split", y, b.constant([4, 8, 6]), outputs=3, axis=-1)


def heads(b, y, shape=(3, HEADS, SIZE)):
    return b.node("Reshape", y, b.constant([0, 0, *shape]))


def slices(b, y):
    """As ModernBERT's Wqkv comes out of the exporter."""
    axis = b.constant([2])
    whole = heads(b, y)
    return [
        b.node("Squeeze", b.node("Slice", whole, b.constant([i]), b.constant([i + 1]), axis), axis) for i in range(3)
    ]


def gathers(b, y):
    whole = heads(b, y)
    return [b.node("Gather", whole, b.constant(i), axis=2) for i in range(3)]


def interleaved(b, y):
    """Queries, keys and values of a head beside each other."""
    return b.node("Split", heads(b, y, (HEADS, 3 * SIZE)), outputs=3, axis=3, num_outputs=3)


def transposed(b, y):
    """As ModernBERT of transformers 4 does: (B, S, 3, H, d) with H before 3."""
    axis = b.constant([2])
    whole = b.node("Transpose", heads(b, y), perm=[0, 3, 2, 1, 4])
    return [
        b.node("Squeeze", b.node("Slice", whole, b.constant([i]), b.constant([i + 1]), axis), axis) for i in range(3)
    ]


def last_axis(b, y):
    ends = [0, 6, 10, 18]
    return [b.node("Slice", y, b.constant([a]), b.constant([e]), b.constant([-1])) for a, e in itertools.pairwise(ends)]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("read", "parts"),
    [(split, 2), (uneven, 3), (slices, 3), (gathers, 3), (interleaved, 3), (transposed, 3), (last_axis, 3)],
)
def test_each_part_gets_a_layer_of_its_own(read, parts, bias):
    model = projected(read, bias=bias)
    before = run64(model, feeds())

    assert_rewrites_once(SplitProjectionsPass(), model, split_projection=parts)

    counts = operators(model)
    assert counts["MatMul"] == parts and counts.get("Add", 0) == (parts if bias else 0)
    assert not {"Split", "Slice", "Gather", "Squeeze"} & set(counts)
    assert (WIDTH, 3 * HEADS * SIZE) not in initializer_shapes(model)
    assert_same(run64(model, feeds()), before)


@pytest.mark.parametrize(
    "read",
    [
        lambda b, y: [y, *split(b, y)],  # one that reads all of it
        lambda b, y: [b.node("Split", y, outputs=2, axis=1, num_outputs=2)[0]],
        lambda b, y: [b.node("Reshape", y, b.constant([0, -1, 3]))],
        lambda b, y: [b.node("Slice", y, b.constant([0]), b.constant([2]), b.constant([1]))],
        lambda b, y: [b.node("Slice", y, b.constant([0]), b.constant([9]), b.constant([2]), b.constant([2]))],
        lambda b, y: [b.node("Gather", y, b.constant([0, 1]), axis=2)],
        lambda b, y: list(b.node("Split", y, outputs=18, axis=2, num_outputs=18)),
    ],
    ids=["whole", "tokens", "mixed", "rows", "steps", "several", "columns"],
)
def test_what_is_no_part_stays(read):
    assert_untouched(SplitProjectionsPass(), projected(read))


def test_a_projection_that_is_an_output_stays():
    model = projected(split)
    model.graph.outputs.append(next(node for node in model.graph if node.op_type == "Add").outputs[0])
    assert_untouched(SplitProjectionsPass(), model)


@PROPERTY
@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.booleans(), st.sampled_from([2, 3, 4]))
def test_any_axis_of_the_heads_may_be_split(parts, count, size, bias, axis):
    hypothesis.assume(count * size > 1)
    shape = {2: (parts, count, size), 3: (count, parts, size), 4: (count, size, parts)}[axis]

    def read(b, y):
        return [b.node("Gather", heads(b, y, shape), b.constant(i), axis=axis) for i in range(parts)]

    model = projected(read, columns=parts * count * size, bias=bias)
    before = run64(model, feeds())
    assert SplitProjectionsPass()(model).modified
    check(model)
    assert_same(run64(model, feeds()), before)
