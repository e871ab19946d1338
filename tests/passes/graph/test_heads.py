"""How heads are split from one matrix, and what multiplies them on the way."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from compactor.passes.base import NoMatch
from compactor.passes.graph.heads import scaled_heads, split_heads
from tests.builder import Builder


def heads(*, sizes=(0, 0, 4, 2), perm=(0, 2, 1, 3), shape=("batch", "sequence", 4, 2)):
    """Four heads of two channels, split from x (B, S, 8)."""
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.DOUBLE), shape=ir.Shape(["batch", "sequence", 8]))
    b = Builder([x], np.float64)
    apart = b.node("Reshape", x, b.constant(list(sizes)))
    apart.shape = None if shape is None else ir.Shape(shape)
    return b, b.node("Transpose", apart, perm=list(perm))


def test_source_heads_and_width_are_told():
    _, value = heads()
    found = split_heads(value)
    assert (found.source.name, found.heads, found.width, found.factor) == ("x", 4, 2, 1.0)


def test_a_head_count_is_told_by_the_width():
    _, value = heads(sizes=(0, 0, -1, 2), shape=("batch", "sequence", None, 2))
    assert split_heads(value).heads == 4


@pytest.mark.parametrize(
    ("write", "factor"),
    [
        (lambda b, x: b.node("Mul", x, b.number(3.0)), 3.0),
        (lambda b, x: b.node("Mul", b.number(3.0), x), 3.0),
        (lambda b, x: b.node("Div", x, b.number(4.0)), 0.25),
        (lambda b, x: b.node("Div", b.node("Mul", x, b.number(3.0)), b.constant(np.full((1, 1), 2.0))), 1.5),
        (lambda b, x: x, 1.0),
    ],
)
def test_numbers_on_the_way_are_a_factor(write, factor):
    b, value = heads()
    found = scaled_heads(write(b, value))
    assert (found.source.name, found.factor) == ("x", factor)


@pytest.mark.parametrize(
    "write",
    [
        pytest.param(lambda b, x: b.node("Div", b.number(4.0), x), id="one-over"),
        pytest.param(lambda b, x: b.node("Mul", x, b.number(0.0)), id="zero"),
        pytest.param(lambda b, x: b.node("Mul", x, b.constant(np.ones(2))), id="more-than-a-number"),
        pytest.param(lambda b, x: b.node("Add", x, b.number(1.0)), id="added"),
    ],
)
def test_anything_else_on_the_way_is_no_factor(write):
    b, value = heads()
    with pytest.raises(NoMatch, match="expected Transpose"):
        scaled_heads(write(b, value))


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"perm": (0, 2, 3, 1)}, "not split by a Transpose"),
        ({"shape": None}, "not split by a Reshape"),
        ({"shape": ("batch", "sequence", None, None)}, "is not static"),
        ({"shape": ("batch", "sequence", 2, 2)}, "is not static"),
    ],
)
def test_what_is_no_split_is_told(changed, reason):
    with pytest.raises(NoMatch, match=reason):
        split_heads(heads(**changed)[1])
