"""What the exporter must leave free."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from compactor.errors import ModelDirectoryError
from compactor.importing.tracing import _check_axes


def traced(*shape: int | str) -> ir.Model:
    ids = ir.Value(name="input_ids", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape(shape))
    return ir.Model(ir.Graph([ids], [], nodes=[], opset_imports={"": 23}), ir_version=11)


def test_a_length_that_became_a_number_is_told() -> None:
    axes = {"input_ids": {0: "batch", 1: "sequence"}}
    _check_axes(traced("batch", "sequence"), axes, "Model", "model")
    with pytest.raises(ModelDirectoryError, match="one size of 'input_ids' alone: 16 along axis 1") as raised:
        _check_axes(traced("batch", 16), axes, "Model", "model")
    assert "transformers" in str(raised.value.todo)


def test_an_axis_that_may_be_fixed_may_be() -> None:
    _check_axes(traced("batch", 16), {"input_ids": {0: "batch"}}, "Model", "model")
