"""Signed symmetric int8 quantization of constants.

Weights get one scale per output column: ONNX Runtime's kernels for signed, symmetric, per-column weights run about 2.5
times faster on VNNI than those for unsigned ones, and need no zero point.

x86 without VNNI multiplies codes of activations, 0 to 255, with those of weight rows 2j and 2j+1, and adds both
products in 16 bits, which end at 32767. The codes of ``quantize_weight`` cannot pass that: two neighbours of one sign
are 128 together at most, and 255 * 128 = 32640.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from compactor.passes.graph.matching import Array

PAIR = 128
"""The most that the codes of two neighbours of one sign are together."""

_BLOCK = 1 << 21  # elements that are rounded at once: rounding needs several times their memory
_TINY = 1e-10  # scale of an all-zero column: any positive number


def quantize_weight(matrix: Array) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Round a weight (in, out) to int8 codes of which no two neighbours in a column overflow 16 bits.

    Args:
        matrix: Floating-point constants.

    Returns:
        The codes (in, out), of which rows 2j and 2j+1 are ``PAIR`` together at most, sign by sign; the scales (out,).
    """
    rows, columns = matrix.shape
    codes, scale = np.empty_like(matrix, np.int8), np.empty(columns, np.float32)
    step = max(1, _BLOCK // max(1, rows))
    for start in range(0, columns, step):
        block = slice(start, start + step)
        codes[:, block], scale[block] = _quantize_columns(matrix[:, block].astype(np.float32, copy=False))
    return codes, scale


def _quantize_columns(values: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    largest = np.abs(values).max(axis=0, initial=0) / 127
    scale = np.maximum(np.maximum(largest, pair_sums(values).max(axis=0, initial=0) / PAIR), _TINY).astype(np.float32)
    codes = np.clip(np.rint(values / scale), -127, 127).astype(np.int16)
    excess = np.maximum(pair_sums(codes) - PAIR, 0)  # of a rounding in the scale
    first = codes[0 : 2 * (len(codes) // 2) : 2]
    first -= np.sign(first) * excess[: len(first)]
    return codes.astype(np.int8), scale


def pair_sums(matrix: Array) -> Array:
    """``(ceil(in / 2), out)``: what neighbours of one sign are together; the larger of the two signs."""
    even, odd = matrix[0::2], matrix[1::2]

    def total(sign: int) -> Array:
        sums = np.maximum(sign * even, 0)
        sums[: len(odd)] += np.maximum(sign * odd, 0)
        return np.asarray(sums)

    return np.maximum(total(1), total(-1))
