from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from compactor.passes.graph.int8 import quantize_weight
from tests.saturation import product_in_16_bits, worst_pair

MATRICES = arrays.arrays(
    np.float32,
    arrays.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=7),
    elements=st.floats(-8, 8, width=32).map(lambda x: x if abs(x) > 1e-3 else 0.0),
)


@given(MATRICES)
def test_no_activation_overflows_a_16_bit_sum(matrix):
    codes, scale = quantize_weight(matrix)
    assert codes.shape == matrix.shape and scale.shape == matrix.shape[1:]
    assert worst_pair(codes) <= 2**15 - 1 if codes.size else True
    assert (np.abs(codes * scale - matrix) <= scale * 1.001).all()  # half a step, and one where a sum was cut


@pytest.mark.parametrize("rows", [6, 7])
def test_saturating_products_are_the_exact_ones(rows):
    random = np.random.default_rng(0)
    codes, _ = quantize_weight(random.standard_normal((rows, 5)))
    activations = random.choice(np.array([0, 1, 254, 255], np.uint8), (64, rows))
    np.testing.assert_array_equal(product_in_16_bits(activations, codes), activations.astype(int) @ codes.astype(int))


def test_codes_that_fill_8_bits_would_saturate():
    """What the scale is for: two large neighbours."""
    matrix = np.array([[1.0], [0.9], [0.1], [-1.0]])
    full = np.rint(matrix * 127).astype(np.int8)
    assert worst_pair(full) > 2**15 - 1
    loud = np.full((1, 4), 255, np.uint8)
    assert product_in_16_bits(loud, full)[0, 0] != int((loud.astype(int) @ full.astype(int))[0, 0])
    codes, scale = quantize_weight(matrix)
    assert scale[0] == pytest.approx(1.9 / 128)
    assert product_in_16_bits(loud, codes)[0, 0] == int((loud.astype(int) @ codes.astype(int))[0, 0])


def test_lone_and_opposite_neighbours_keep_eight_bits():
    codes, scale = quantize_weight(np.array([[1.0], [-0.9], [0.1], [0.0], [0.5]]))
    assert codes[:, 0].tolist() == [127, -114, 13, 0, 64] and scale[0] == pytest.approx(1 / 127)


def test_a_column_of_zeros_has_a_scale():
    codes, scale = quantize_weight(np.zeros((4, 2)))
    assert not codes.any() and (scale > 0).all()


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_large_weight_is_rounded_a_few_columns_at_once(order, monkeypatch):
    """Each column stands alone, so the codes are the same; and they lie in memory as the weight does."""
    matrix = np.asarray(np.random.default_rng(1).standard_normal((6, 11)), order=order)
    whole, scale = quantize_weight(matrix)
    monkeypatch.setattr("compactor.passes.graph.int8._BLOCK", 13)
    codes, scales = quantize_weight(matrix)
    np.testing.assert_array_equal(codes, whole)
    np.testing.assert_array_equal(scales, scale)
    assert codes.strides == tuple(step // matrix.itemsize for step in matrix.strides)
