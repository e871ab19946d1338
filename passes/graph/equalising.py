"""Scale moved along a channel, from the matrix that writes it into those that read it.

    h = x U,  y = h W     ==>     h' = x (U A),  y = h' (A^-1 W)        A diagonal and positive

int8 rounds ``h`` in steps of the largest channel of its row, and a column of ``W`` in steps of its largest row. Both
errors together are least near ``a_c = sqrt(w_c / h_c)``, which leaves channels and rows as large as each other.
``A`` holds powers of two alone, so that fp32 computes the same bits as before.

References: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", 2019, equation 11;
Xiao et al., "SmoothQuant", 2023, equation 4 with alpha 1/2.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from compactor.passes.graph.matching import Array

_MOST = 16  # doublings of a channel; what is further out is left alone


def norms(matrix: Array, axis: int, bias: Array | None = None) -> NDArray[np.float64]:
    """The length of each column (``axis`` 0) or row (1) of ``matrix``, its bias included."""
    squares = np.square(matrix.astype(np.float64)).sum(axis=axis)
    return np.asarray(np.sqrt(squares if bias is None else squares + np.square(bias.astype(np.float64))))


def factors(written: NDArray[np.float64], read: NDArray[np.float64]) -> NDArray[np.float64]:
    """``(C,)`` powers of two: what channels are to be multiplied by where they are written.

    Args:
        written: ``(C,)``: how large each channel is.
        read: ``(C,)``: how large the rows are that read it.

    Returns:
        1 for a channel that is zero or not read; applied once, all are 1 the next time.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        exponents = np.rint(np.log2(read / written) / 2)
    usable = np.isfinite(exponents) & (np.abs(exponents) <= _MOST)
    return np.exp2(np.where(usable, exponents, 0))


def scaled(array: Array, by: NDArray[np.float64]) -> Array:
    """``array`` times powers of two, in its own type."""
    return np.asarray((array * by).astype(array.dtype))
