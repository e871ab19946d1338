"""Whether int8 products could overflow the 16-bit sums of x86 without VNNI: told from a graph, on any processor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

_WEIGHT = {"MatMulIntegerToFloat": 1, "DynamicQuantizeMatMul": 1, "MatMulInteger": 1}


def product_in_16_bits(codes: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """``codes`` (T, in) uint8 times ``weight`` (in, out) int8 as that processor computes it: pairs saturate.

    Products of weight rows 2j and 2j+1 are added in 16 bits, the sums of pairs in 32.
    """
    if len(weight) % 2:
        codes, weight = np.pad(codes, ((0, 0), (0, 1))), np.pad(weight, ((0, 1), (0, 0)))
    products = codes.astype(np.int64)[:, :, None] * weight.astype(np.int64)
    pairs = products[:, 0::2] + products[:, 1::2]
    return np.clip(pairs, -(2**15), 2**15 - 1).sum(axis=1)


def worst_pair(weight: np.ndarray) -> int:
    """The largest sum of two products, in magnitude, that any codes of activations can make."""
    padded = np.pad(weight.astype(np.int64), ((0, len(weight) % 2), (0, 0)))
    pairs = np.stack([padded[0::2], padded[1::2]])
    return int(max(255 * np.maximum(pairs, 0).sum(axis=0).max(), 255 * np.maximum(-pairs, 0).sum(axis=0).max()))


def int8_weights(path: Path) -> dict[str, np.ndarray]:
    """The constant int8 matrices that a graph multiplies with, by name; those of tied heads are turned round in it."""
    graph = onnx.load(path).graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    turned = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Transpose"}
    names = {node.input[_WEIGHT[node.op_type]] for node in graph.node if node.op_type in _WEIGHT}

    def read(name: str) -> np.ndarray:
        if name in turned:
            return numpy_helper.to_array(constants[turned[name]], str(path.parent)).T
        return numpy_helper.to_array(constants[name], str(path.parent))

    return {name: read(name) for name in names}


def assert_cannot_saturate(path: Path) -> None:
    """No activation can overflow a 16-bit sum of the graph's int8 products."""
    weights = int8_weights(path)
    assert weights, f"{path} holds no int8 matrix"
    for name, weight in weights.items():
        assert worst_pair(weight) <= 2**15 - 1, f"'{name}' can overflow"
