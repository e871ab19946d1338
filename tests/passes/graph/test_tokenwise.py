"""``_tokenwise.py``: which operators treat every row of (B, S, W) alone."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from compactor.passes.graph.tokenwise import token_wise_nodes
from tests.builder import Builder

VECTOR, SQUARE = np.ones(4), np.ones((4, 4))


def is_token_wise(op_type, *constants, others=0, dims=("batch", "sequence"), **attributes):
    """Whether ``op_type(x, *others, *constants)`` is, for x and others (B, S, 4)."""
    mask = ir.Value(name="attention_mask", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape(("batch", "sequence")))
    values = [
        ir.Value(name=f"x{i}", type=ir.TensorType(ir.DataType.DOUBLE), shape=ir.Shape([*dims, 4]))
        for i in range(1 + others)
    ]
    b = Builder([mask, *values], np.float64)
    result = b.node(op_type, *values, *map(b.constant, constants), **attributes)
    return result.producer() in token_wise_nodes(b.graph, mask)


@pytest.mark.parametrize(
    ("op_type", "constants", "options"),
    [
        ("MatMul", [SQUARE], {}),
        ("Add", [VECTOR], {}),
        ("Add", [], {"others": 1}),
        ("Sum", [], {"others": 2}),
        ("Gelu", [], {}),
        ("LayerNormalization", [VECTOR, VECTOR * 2], {"axis": -1}),
        ("Cast", [], {"to": 1}),
    ],
)
def test_operators_that_treat_rows_alone(op_type, constants, options):
    assert is_token_wise(op_type, *constants, **options)


@pytest.mark.parametrize(
    ("op_type", "constants", "options"),
    [
        ("MatMul", [], {"others": 1}),  # a product of two activations mixes rows
        ("MatMul", [np.ones((2, 4, 4))], {}),
        ("LayerNormalization", [np.ones((6, 4))], {"axis": 1}),
        ("LayerNormalization", [VECTOR, VECTOR * 2], {"axis": 2}),  # the packed matrix has no such axis
        ("Add", [np.ones((1, 1, 4))], {}),  # would widen the packed matrix to three axes
        ("Add", [np.ones((6, 4))], {}),  # one row a position, as positions are
        ("Softmax", [], {"axis": 1}),
        ("ReduceMean", [np.array([1])], {}),
        ("Gelu", [], {"dims": ("sequence", "batch")}),
        ("Gelu", [], {"dims": ("batch", "patches")}),
    ],
)
def test_operators_and_values_that_are_not_token_wise(op_type, constants, options):
    assert not is_token_wise(op_type, *constants, **options)
