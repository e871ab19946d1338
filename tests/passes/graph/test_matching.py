"""``_match.py``: linear layers, and edits that never touch a shared initializer."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from compactor.passes.base import NoMatch
from compactor.passes.graph.matching import add_initializer, linear_from, linear_into, redirect
from tests.builder import Builder

X = np.random.default_rng(0).standard_normal((2, 3, 4))


def layer(bias, *, weight=(4, 5), bias_first=False):
    """``x @ weight + bias`` as a builder, x and the sum."""
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.DOUBLE), shape=ir.Shape(["batch", "sequence", 4]))
    b = Builder([x], np.float64)
    product = b.node("MatMul", x, b.constant(np.ones(weight), "weight"))
    operands = [product, b.constant(np.asarray(bias, dtype=np.float64), "bias")]
    return b, product, b.node("Add", *(reversed(operands) if bias_first else operands))


@pytest.mark.parametrize("bias_first", [False, True])
@pytest.mark.parametrize("shape", [(5,), (1, 5), (1, 1, 5)])
def test_reads_a_bias_on_either_side_and_with_leading_ones(shape, bias_first):
    _, product, total = layer(np.arange(5).reshape(shape), bias_first=bias_first)
    assert linear_into(total).bias.tolist() == [0, 1, 2, 3, 4]
    found = linear_from(product.producer().inputs[0])
    assert found.add is total.producer() and found.bias.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("shape", [(), (1,)])
def test_one_number_is_a_bias_before_but_not_behind(shape):
    _, product, total = layer(np.full(shape, 2.0))
    assert linear_into(total).bias.tolist() == [2] * 5
    assert linear_from(product.producer().inputs[0]).add is None


@pytest.mark.parametrize(("weight", "shape"), [((4, 5), (3, 5)), ((4, 5), (3, 1)), ((4, 1), (7,))])
def test_an_array_that_widens_the_product_is_no_bias(weight, shape):
    _, product, total = layer(np.ones(shape), weight=weight)
    with pytest.raises(NoMatch, match="is not a vector"):
        linear_into(total)
    assert linear_from(product.producer().inputs[0]).add is None


def test_a_product_that_is_read_twice_is_no_part_of_a_layer():
    b, product, total = layer(np.ones(5))
    b.node("Relu", product)
    with pytest.raises(NoMatch, match="used outside"):
        linear_into(total)


def test_refill_registers_new_initializers_and_clears_stale_shapes():
    b, product, total = layer(np.ones(5))
    product.shape = total.shape = ir.Shape(["batch", "sequence", 5])
    before = b.graph.initializers["weight"].const_value
    found = linear_into(total).refill(np.zeros((4, 3)), np.ones(3))
    assert b.graph.initializers["weight"].const_value is before
    assert found.weight.shape == (4, 3) and found.bias.shape == (3,)
    assert product.shape is None and total.shape is None


@pytest.mark.parametrize("bias", [None, np.zeros(3)])
def test_refill_without_a_bias_removes_the_addition(bias):
    b, _, total = layer(np.ones(5))
    b.graph.outputs.append(total)
    name = total.name
    found = linear_into(total).refill(np.ones((4, 3)), bias)
    assert found.add is None
    assert [node.op_type for node in b.graph] == ["MatMul"]
    assert b.graph.outputs[0].name == name and b.graph.outputs[0] is found.output


def test_names_that_are_taken_get_a_number():
    b, *_ = layer(np.ones(5))
    assert [add_initializer(b.graph, "weight", X).name for _ in range(2)] == ["weight_1", "weight_2"]


def test_redirect_keeps_the_name_of_a_graph_output():
    b, product, total = layer(np.ones(5))
    total.name = "answer"
    b.graph.outputs.append(total)
    redirect(total, product)
    assert b.graph.outputs[0] is product and product.name == "answer"
