"""Pointwise operators: which nodes are, and what a region of them computes for constant neurons.

``evaluate`` runs a region on float64 vectors in which NaN stands for *unknown*. Every operator passes NaN on, except
that an exact zero times an unknown is zero: a neuron whose result is not NaN is a constant of the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from compactor.passes.graph.matching import attribute, constant

Vector = NDArray[np.float64]

_erf: Callable[[Vector], Vector] = np.vectorize(math.erf, otypes=[np.float64])


def _gelu(node: ir.Node, x: Vector) -> Vector:
    if attribute(node, "approximate", "none") == "tanh":
        return np.asarray(0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))))
    return 0.5 * x * (1 + _erf(x / math.sqrt(2)))


def _sigmoid(x: Vector) -> Vector:
    return np.asarray(0.5 * (1 + np.tanh(0.5 * x)))


def _multiply(a: Vector, b: Vector) -> Vector:
    return np.where((a == 0) | (b == 0), 0.0, a * b)


_OPERATORS: dict[str, Callable[..., Any]] = {
    "Abs": lambda node, x: np.abs(x),
    "Add": lambda node, a, b: a + b,
    "Div": lambda node, a, b: a / b,
    "Elu": lambda node, x: np.where(x < 0, attribute(node, "alpha", 1.0) * np.expm1(np.minimum(x, 0)), x),
    "Erf": lambda node, x: _erf(x),
    "Exp": lambda node, x: np.exp(x),
    "Gelu": _gelu,
    "HardSigmoid": lambda node, x: np.clip(attribute(node, "alpha", 0.2) * x + attribute(node, "beta", 0.5), 0, 1),
    "HardSwish": lambda node, x: x * np.clip(x / 6 + 0.5, 0, 1),
    "LeakyRelu": lambda node, x: np.where(x < 0, attribute(node, "alpha", 0.01) * x, x),
    "Mish": lambda node, x: x * np.tanh(np.logaddexp(0, x)),
    "Mul": lambda node, a, b: _multiply(a, b),
    "Neg": lambda node, x: -x,
    "Pow": lambda node, a, b: np.power(a, b),
    "Relu": lambda node, x: np.where(np.isnan(x), x, np.maximum(x, 0)),
    "Sigmoid": lambda node, x: _sigmoid(x),
    "Softplus": lambda node, x: np.logaddexp(0, x),
    "Sqrt": lambda node, x: np.sqrt(x),
    "Sub": lambda node, a, b: a - b,
    "Swish": lambda node, x: _multiply(x, _sigmoid(attribute(node, "alpha", 1.0) * x)),
    "Tanh": lambda node, x: np.tanh(x),
}


def is_pointwise(node: ir.Node | None) -> bool:
    """Whether ``node`` is an operator that ``evaluate`` knows."""
    return node is not None and node.domain in ("", "ai.onnx") and node.op_type in _OPERATORS


def evaluate(region: Iterable[ir.Node], inputs: Mapping[ir.Value, Vector]) -> Vector:
    """Run a region of pointwise nodes on vectors with unknowns.

    Args:
        region: Nodes in graph order; every input is in ``inputs``, an earlier node's output, or a scalar constant.
        inputs: ``(N,)`` vectors, NaN where a neuron depends on the model's input.

    Returns:
        ``(N,)``: the constant each neuron is, NaN where it is none.
    """
    values = dict(inputs)
    result: Vector | None = None
    with np.errstate(all="ignore"):
        for node in region:
            arguments = []
            for value in node.inputs:
                if value is None:
                    continue
                if value not in values:
                    array = constant(value)
                    assert array is not None
                    values[value] = array.astype(np.float64).reshape(-1)
                arguments.append(values[value])
            result = np.asarray(_OPERATORS[node.op_type](node, *arguments), dtype=np.float64)
            values[node.outputs[0]] = result
    assert result is not None
    return result
