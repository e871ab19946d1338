"""What a part of a graph computes that reads no input."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from compactor.passes.base import NoMatch
from compactor.passes.graph.evaluating import evaluate, spelling
from tests.builder import Builder

X = np.random.default_rng(0).standard_normal((3, 4))


def builder():
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.DOUBLE), shape=ir.Shape([3, 4]))
    return Builder([x], np.float64), x


def test_operators_on_constants_are_computed():
    b, _ = builder()
    y = b.node("Transpose", b.node("MatMul", b.constant(X), b.constant(X.T)), perm=[1, 0])
    y = b.node("Sub", y, b.node("ReduceMax", y, b.constant([1])))
    product = (X @ X.T).T
    np.testing.assert_allclose(evaluate(y), product - product.max(axis=1, keepdims=True), rtol=1e-12)


def test_a_constant_is_itself_and_a_value_may_be_given():
    b, x = builder()
    assert evaluate(b.constant(X)).tolist() == X.tolist()
    assert evaluate(x, {x: X}).tolist() == X.tolist()
    np.testing.assert_array_equal(evaluate(b.node("Add", x, b.constant(X)), {x: X}), X + X)


def test_only_one_of_several_outputs_may_be_wanted():
    b, _ = builder()
    _, second = b.node("Split", b.constant(X), outputs=2, axis=1, num_outputs=2)
    np.testing.assert_array_equal(evaluate(b.node("Neg", second)), -X[:, 2:])


def test_a_value_that_two_paths_read_is_computed_once_and_first():
    b, _ = builder()
    root = b.node("Neg", b.constant(X))
    y = root
    for _ in range(40):  # 2^40 paths
        y = b.node("Mul", b.node("Add", y, y), b.number(0.5))
    np.testing.assert_allclose(evaluate(b.node("Add", y, root)), -2 * X)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        pytest.param(lambda b, x: x, "it reads the input 'x'", id="input"),
        pytest.param(lambda b, x: b.node("Add", b.constant(X), x), "it reads the input 'x'", id="reads-an-input"),
        pytest.param(
            lambda b, x: b.node("Mystery", b.constant(X)), "it cannot be computed beforehand", id="unknown-operator"
        ),
        pytest.param(
            lambda b, x: b.node("Gelu", b.constant(X), domain="com.microsoft"),
            "it cannot be computed beforehand",
            id="operator-of-another-domain",
        ),
        pytest.param(
            lambda b, x: b.node("MatMul", b.constant(X), b.constant(X)), "it cannot be computed beforehand", id="fails"
        ),
        pytest.param(
            lambda b, x: b.node("Gather", b.constant(X), b.constant([7])),
            "it cannot be computed beforehand",
            id="index-out-of-range",
        ),
    ],
)
def test_anything_else_is_told(make, reason):
    b, x = builder()
    with pytest.raises(NoMatch, match=reason):
        evaluate(make(b, x))


def test_what_is_written_alike_is_spelled_alike():
    b, x = builder()

    def write(number, source, axis=1):
        return b.node("Softmax", b.node("Add", b.node("Neg", source), b.number(number)), axis=axis)

    first, again, other, turned = write(1, x), write(1, x), write(2, x), write(1, x, axis=0)
    told = [spelling(value, {x: None}) for value in (first, again, other, turned)]
    assert told[0] == told[1] and len(set(told)) == 3
    y = b.node("Exp", x)
    assert spelling(write(1, y), {y: "rows"}) == spelling(write(1, x), {x: "rows"})
    assert spelling(write(1, y), {y: None}) != spelling(write(1, x), {x: None})


def test_what_reads_an_input_has_no_spelling():
    b, x = builder()
    with pytest.raises(NoMatch, match="it reads the input 'x'"):
        spelling(b.node("Neg", x), {})
