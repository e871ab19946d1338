"""What a graph weighs, and what it costs for one token."""

from __future__ import annotations

import math

import onnx_ir as ir

from compactor.passes.graph.matching import constant

_NOT_WEIGHTS = (ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL)


def macs_per_token(model: ir.Model) -> int:
    """Multiply-adds of the weight matrices for one token, in an fp32 graph.

    Counts the ``MatMul`` layers, which work on every token. Leaves out attention scores, which grow with the length,
    and the exporter's ``Gemm``: layers behind a pooled token, which work once a sequence.
    """
    weights = (constant(node.inputs[1]) for node in model.graph if node.op_type == "MatMul")
    return sum(math.prod(weight.shape) for weight in weights if weight is not None and weight.ndim == 2)


def constant_bytes(model: ir.Model) -> int:
    """Bytes of all constants."""
    return sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)


def count_parameters(model: ir.Model) -> int:
    """Elements of all constants but indices and flags."""
    return sum(
        math.prod(value.const_value.shape.numpy())
        for value in model.graph.initializers.values()
        if value.const_value is not None and value.const_value.dtype not in _NOT_WEIGHTS
    )
