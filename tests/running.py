"""Run graphs for the tests of passes: float64 by numpy, float32 by ONNX Runtime without its own rewrites."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from onnx.reference.ops.op_attention import Attention_23
from onnx_ir.passes.common import CheckerPass, RemoveUnusedNodesPass

from compactor.passes.graph.matching import CANONICAL
from tests.builder import infer_shapes
from tests.models import VOCAB

Arrays = dict[str, np.ndarray]


@functools.cache
def int8_saturates() -> bool:
    """Whether ONNX Runtime's int8 products overflow on this CPU: x86 without VNNI adds pairs of them in 16 bits."""
    left, right = np.full((1, 64), 255, np.uint8), np.full((64, 1), 127, np.int8)
    node = helper.make_node("MatMulInteger", ["x", "weight"], ["y"])
    x = helper.make_tensor_value_info("x", TensorProto.UINT8, [1, 64])
    y = helper.make_tensor_value_info("y", TensorProto.INT32, [1, 1])
    graph = helper.make_graph([node], "product", [x], [y], [numpy_helper.from_array(right, "weight")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return int(session.run(None, {"x": left})[0][0, 0]) != int((left.astype(int) @ right)[0, 0])


PADDINGS = ("none", "right", "left", "holes")

_erf = np.vectorize(math.erf, otypes=[np.float64])


class Erf(OpRun):
    """In the precision of its input; ONNX's own rounds to float32."""

    def _run(self, x):
        return (_erf(x).astype(x.dtype),)


class Gelu(OpRun):
    """In the precision of its input; ONNX's own is made of its Erf."""

    def _run(self, x, approximate=None):
        if approximate == "tanh":
            y = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        else:
            y = 0.5 * x * (1 + _erf(x / math.sqrt(2)))
        return (y.astype(x.dtype),)


class Attention(Attention_23):
    """In the precision of its input; ONNX's own takes the root of a float32 scale."""

    def _run(self, *inputs, scale=None, **attributes):
        return super()._run(*inputs, scale=None if scale is None else float(scale), **attributes)


class GatherElements(OpRun):
    """Over any axis; ONNX's own takes one that is counted from behind for another."""

    def _run(self, data, indices, axis=0):
        axis %= data.ndim
        taken = tuple(slice(None if n == axis else size) for n, size in enumerate(indices.shape))
        return (np.take_along_axis(data[taken], indices, axis),)


class RelativeLogits(OpRun):
    """``x[b, i, h] . table[index[i, j], h]``, of the canonical dialect."""

    op_domain = CANONICAL

    def _run(self, x, table, index, num_heads=None):
        queries, rows = (array.reshape(*array.shape[:-1], num_heads, -1) for array in (x, table[index]))
        return (np.einsum("bihd,ijhd->bhij", queries, rows),)


class RMSNormalization(OpRun):
    """In the precision of its input; ONNX's own computes in float32."""

    def _run(self, x, scale, axis=None, epsilon=None, stash_type=None):
        assert axis in (None, -1)
        return ((x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + epsilon) * scale).astype(x.dtype),)


class HeadRMSNormalization(OpRun):
    """``RMSNormalization`` of each head of (B, S, H*d) or (T, H*d), of the canonical dialect."""

    op_domain = CANONICAL

    def _run(self, x, scale, num_heads=None, epsilon=None):
        heads = x.reshape(*x.shape[:-1], num_heads, -1)
        y = heads / np.sqrt((heads * heads).mean(axis=-1, keepdims=True) + epsilon) * scale
        return (y.reshape(x.shape).astype(x.dtype),)


class HeadLayerNormalization(OpRun):
    """``LayerNormalization`` of each head of (B, S, H*d) or (T, H*d), of the canonical dialect."""

    op_domain = CANONICAL

    def _run(self, x, scale, shift=None, num_heads=None, epsilon=None):
        heads = x.reshape(*x.shape[:-1], num_heads, -1)
        heads = heads - heads.mean(axis=-1, keepdims=True)
        y = heads / np.sqrt((heads * heads).mean(axis=-1, keepdims=True) + epsilon) * scale
        y = y if shift is None else y + shift
        return (y.reshape(x.shape).astype(x.dtype),)


_OPERATORS = (
    *(Attention, Erf, GatherElements, Gelu, HeadLayerNormalization, HeadRMSNormalization, RelativeLogits),
    RMSNormalization,
)


def run64(model: ir.Model, feeds: Mapping[str, np.ndarray]) -> Arrays:
    """The outputs by name, computed by numpy in the types of the graph."""
    evaluator = ReferenceEvaluator(ir.to_proto(model), new_ops=list(_OPERATORS))
    return dict(zip(evaluator.output_names, evaluator.run(None, dict(feeds)), strict=True))


def session(model: ir.Model, *, optimize: bool = False) -> onnxruntime.InferenceSession:
    """One thread, and by default none of ONNX Runtime's own rewrites, so that they cannot hide ours."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(
        ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def run32(model: ir.Model, feeds: Mapping[str, np.ndarray], *, optimize: bool = False) -> Arrays:
    """The outputs by name, computed by ONNX Runtime."""
    opened = session(model, optimize=optimize)
    names = [output.name for output in opened.get_outputs()]
    return dict(zip(names, opened.run(None, dict(feeds)), strict=True))


def padding_mask(kind: str, batch: int = 3, length: int = 6, seed: int = 0) -> np.ndarray:
    """(B, S) of 0 and 1, examples of different lengths, at least one real token each."""
    random = np.random.default_rng(seed)
    lengths = random.integers(1, length + 1, batch)
    lengths[0] = length
    columns = np.arange(length)
    match kind:
        case "none":
            mask = np.ones((batch, length))
        case "right":
            mask = columns < lengths[:, None]
        case "left":
            mask = columns >= length - lengths[:, None]
        case "holes":
            mask = random.random((batch, length)) < 0.5
            mask[np.arange(batch), random.integers(0, length, batch)] = True
        case _:
            raise AssertionError(kind)
    return mask.astype(np.int64)


def random_feeds(model: ir.Model, mask: np.ndarray | None = None, seed: int = 0) -> Arrays:
    """Random values for every graph input, for a batch with the padding ``mask`` (B, S)."""
    mask = padding_mask("right") if mask is None else mask
    random = np.random.default_rng(seed)
    batch, length = mask.shape
    symbols: dict[str, int] = {"batch": batch, "sequence": length}
    feeds: Arrays = {}
    for value in model.graph.inputs:
        if value.const_value is not None:
            continue  # a weight that a caller may override; its default stands
        shape = [
            size if isinstance(size, int) else symbols.get(str(size.value), (batch, length)[min(axis, 1)])
            for axis, size in enumerate(value.shape)
        ]
        if value.name == "attention_mask":
            feeds[value.name] = mask
        elif value.name == "mask":
            feeds[value.name] = np.broadcast_to(mask[:, None, None, :].astype(bool), shape).copy()
        elif value.dtype == ir.DataType.INT64:
            feeds[value.name] = random.integers(0, 2 if "type" in value.name else VOCAB, shape)
        else:
            feeds[value.name] = random.standard_normal(shape).astype(value.dtype.numpy())
    return feeds


def check(model: ir.Model) -> None:
    """Clean up, then the full ONNX check: no stale shape may be left."""
    RemoveUnusedNodesPass()(model)
    CheckerPass(full_check=True)(infer_shapes(model))


def operators(model: ir.Model) -> dict[str, int]:
    """How many nodes there are of each type."""
    counts: dict[str, int] = {}
    for node in model.graph:
        counts[node.op_type] = counts.get(node.op_type, 0) + 1
    return counts


def initializer_shapes(model: ir.Model) -> list[tuple[int, ...]]:
    """The shapes of all initializers, sorted."""
    return sorted(tuple(value.shape) for value in model.graph.initializers.values())


def assert_same(after: Mapping[str, Any], before: Mapping[str, Any], tolerance: float = 1e-10) -> None:
    """Same outputs, same shapes, close everywhere; a NaN is a failure."""
    assert list(after) == list(before)
    for name, expected in before.items():
        assert np.isfinite(expected).all(), f"the test's own reference of '{name}' is not finite"
        assert after[name].shape == expected.shape
        np.testing.assert_allclose(after[name], expected, rtol=tolerance, atol=tolerance, err_msg=name)


def assert_untouched(rewrite: Any, model: ir.Model, reason: str | None = None) -> None:
    """``rewrite`` leaves ``model`` byte-identical, says so, and gives ``reason`` (None: nothing to explain)."""
    before = ir.to_proto(model)
    result = rewrite(model)
    assert not result.modified
    assert not result.applied
    assert ir.to_proto(model) == before
    if reason is not None:
        assert any(reason in refusal.reason for refusal in result.refused), result.refused
        assert all(refusal.layer for refusal in result.refused)


def assert_rewrites_once(rewrite: Any, model: ir.Model, **applied: int) -> Any:
    """``rewrite`` fires with these counts (rule_with_underscores=total), passes the full check, and is then done.

    Returns:
        The result of the first run.
    """
    result = rewrite(model)
    assert result.modified
    totals: dict[str, int] = {}
    for event in result.applied:
        totals[event.rule] = totals.get(event.rule, 0) + event.count
    assert totals == {rule.replace("_", "-"): count for rule, count in applied.items()}
    check(model)
    again = rewrite(model)
    assert not again.modified, again.applied
    return result
