"""Signed symmetric int8 quantization of constants.

Weights get one scale per output column: ONNX Runtime's kernels for signed, symmetric, per-column weights run about 2.5
times faster on VNNI than those for unsigned ones, and need no zero point.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from compactor.passes.graph.matching import Array

_TINY = 1e-10  # scale of an all-zero column: any positive number


def quantize_symmetric(matrix: Array, axis: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Round ``matrix`` to int8 with the scale ``max |x| / 127`` along ``axis``.

    Args:
        matrix: Floating-point constants.
        axis: The axis that is reduced: 0 gives a scale per column of a (in, out) weight, 1 one per row of a table.

    Returns:
        The int8 values and the float32 scales, without the reduced axis.
    """
    values = matrix.astype(np.float32)
    scale = np.maximum(np.abs(values).max(axis=axis, keepdims=True, initial=0) / 127, _TINY).astype(np.float32)
    quantized = np.clip(np.rint(values / scale), -127, 127).astype(np.int8)
    return quantized, scale.squeeze(axis)
