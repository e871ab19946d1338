"""``_pointwise.py``: regions on vectors with unknowns, against ONNX Runtime on numbers."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
import pytest

from compactor.passes.graph.pointwise import _OPERATORS, evaluate, is_pointwise
from tests.builder import Builder
from tests.running import run32

X = np.array([-3.0, -1.0, -0.25, 0.0, 0.25, 1.0, 3.0])
BINARY = {"Add", "Div", "Mul", "Pow", "Sub"}
ATTRIBUTES = {
    "Elu": [{}, {"alpha": 0.5}],
    "Gelu": [{}, {"approximate": "tanh"}],
    "HardSigmoid": [{}, {"alpha": 0.3, "beta": 0.4}],
    "LeakyRelu": [{}, {"alpha": 0.2}],
    "Swish": [{}, {"alpha": 1.5}],
}
NEWER = {"Swish": 24}  # than opset 23


def region(op_type, *others, attributes=None, dtype=np.float64):
    """``op_type(x, *others)`` as a builder and its value."""
    real = ir.DataType.FLOAT if dtype is np.float32 else ir.DataType.DOUBLE
    x = ir.Value(name="x", type=ir.TensorType(real), shape=ir.Shape([len(X)]))
    builder = Builder([x], dtype)
    y = builder.node(op_type, x, *(builder.number(other) for other in others), **(attributes or {}))
    y.type, y.shape = x.type, x.shape
    builder.graph.outputs.append(y)
    return builder, x


@pytest.mark.parametrize(
    ("op_type", "attributes"), [(op, attrs) for op in sorted(_OPERATORS) for attrs in ATTRIBUTES.get(op, [{}])]
)
def test_every_operator_computes_what_onnx_runtime_does(op_type, attributes):
    others = (2.0,) if op_type in BINARY else ()
    x_values = np.abs(X) if op_type == "Sqrt" else X
    builder, x = region(op_type, *others, attributes=attributes)
    computed = evaluate(builder.graph, {x: x_values})
    if op_type in NEWER:
        expected = x_values / (1 + np.exp(-attributes.get("alpha", 1.0) * x_values))
    else:
        builder, _ = region(op_type, *others, attributes=attributes, dtype=np.float32)
        (expected,) = run32(ir.Model(builder.graph, ir_version=11), {"x": x_values.astype(np.float32)}).values()
    np.testing.assert_allclose(computed, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("op_type", sorted(_OPERATORS))
def test_every_operator_passes_the_unknown_on(op_type):
    others = (2.0,) if op_type in BINARY else ()
    builder, x = region(op_type, *others)
    unknown = np.full(len(X), math.nan)
    assert np.isnan(evaluate(builder.graph, {x: unknown})).all()


def test_an_exact_zero_times_an_unknown_is_zero():
    builder, x = region("Mul", 0.0)
    assert evaluate(builder.graph, {x: np.full(len(X), math.nan)}).tolist() == [0.0] * len(X)


def test_a_region_of_several_nodes():
    """x * sigmoid(x), known in the first neuron only."""
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.DOUBLE), shape=ir.Shape([2]))
    builder = Builder([x], np.float64)
    builder.node("Mul", x, builder.node("Sigmoid", x))
    result = evaluate(builder.graph, {x: np.array([2.0, math.nan])})
    assert result[0] == pytest.approx(2 / (1 + math.exp(-2)), rel=1e-15)
    assert math.isnan(result[1])


def test_large_inputs_neither_warn_nor_become_unknown():
    for op_type in ("Sigmoid", "Softplus", "Tanh", "Elu", "Gelu", "Mish", "Swish"):
        builder, x = region(op_type)
        assert np.isfinite(evaluate(builder.graph, {x: np.array([-1e4, 1e4])})).all(), op_type


@pytest.mark.parametrize(
    ("domain", "op_type"), [("", "Softmax"), ("com.microsoft", "Gelu"), ("", "LayerNormalization")]
)
def test_other_operators_are_not_pointwise(domain, op_type):
    assert not is_pointwise(ir.Node(domain, op_type, []))
    assert not is_pointwise(None)
