"""How exporters and models spell the attention mask. Each takes the builder and the graph's inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir

from tests.builder import Builder


def _keys(b: Builder, inputs: Mapping[str, ir.Value], *, boolean: bool) -> ir.Value:
    mask = inputs["attention_mask"]
    mask = b.node("Cast", mask, to=ir.DataType.BOOL.value) if boolean else mask
    return b.node("Unsqueeze", mask, b.constant([1, 2]))


def _square(b: Builder, inputs: Mapping[str, ir.Value]) -> ir.Value:
    """(B, 1, S, S), for Expand."""
    batch, length = _sizes(b, inputs)
    return b.node("Concat", batch, b.constant([1]), length, length, axis=0)


def _sizes(b: Builder, inputs: Mapping[str, ir.Value]) -> tuple[ir.Value, ir.Value]:
    mask = inputs["attention_mask"]
    return b.node("Shape", mask, start=0, end=1), b.node("Shape", mask, start=1, end=2)


def _plain(b: Builder, inputs: Mapping[str, ir.Value]) -> ir.Value:
    return b.node("Expand", _keys(b, inputs, boolean=True), _square(b, inputs))


def _additive(b: Builder, inputs: Mapping[str, ir.Value]) -> ir.Value:
    """transformers 4, BERT: 1 - mask, then the lowest float where that is true."""
    to = ir.DataType.DOUBLE.value if b.dtype is np.float64 else ir.DataType.FLOAT.value
    expanded = b.node("Cast", b.node("Expand", _keys(b, inputs, boolean=False), _square(b, inputs)), to=to)
    inverted = b.node("Sub", b.number(1), expanded)
    lowest = b.number(float(np.finfo(np.float32).min))
    return b.node("Where", b.node("Cast", inverted, to=ir.DataType.BOOL.value), lowest, inverted)


def _scaled(b: Builder, inputs: Mapping[str, ir.Value], factor: float = float(np.finfo(np.float32).min)) -> ir.Value:
    """transformers 4, MPNet: (1 - mask) * lowest, not expanded over queries."""
    to = ir.DataType.DOUBLE.value if b.dtype is np.float64 else ir.DataType.FLOAT.value
    inverted = b.node("Sub", b.number(1), b.node("Cast", _keys(b, inputs, boolean=False), to=to))
    return b.node("Mul", inverted, b.number(factor))


def gathered(b: Builder, inputs: Mapping[str, ir.Value], *, swap: bool = False) -> ir.Value:
    """transformers 5: and(every query, mask[batch grid, key grid])."""
    mask = b.node("Cast", inputs["attention_mask"], to=ir.DataType.BOOL.value)
    batch, length = (b.node("Squeeze", size) for size in _sizes(b, inputs))
    zero, one = b.constant(0), b.constant(1)
    examples, positions = (b.node("Range", zero, size, one) for size in (batch, length))
    # The exporter knows these sizes; shape inference does not.
    for index, size in zip((examples, positions), inputs["attention_mask"].shape, strict=True):
        index.type, index.shape = ir.TensorType(ir.DataType.INT64), ir.Shape([size])
    rows = b.node("Unsqueeze", examples, b.constant([1, 2, 3]))
    columns = b.node("Unsqueeze", positions, b.constant([0, 1, 2]))
    queries = b.node("Unsqueeze", positions, b.constant([0, 1, 3]))
    shape = b.node("Shape", b.node("Add", rows, columns))
    grid = [
        b.node("Unsqueeze", b.node("Expand", index, shape), b.constant([-1]))
        for index in ((columns, rows) if swap else (rows, columns))
    ]
    gathered = b.node("GatherND", mask, b.node("Concat", *grid, axis=-1), batch_dims=0)
    every = b.node("And", b.constant(np.array(True)), b.node("GreaterOrEqual", queries, zero))
    return b.node("And", every, gathered)


def _gathered_additive(b: Builder, inputs: Mapping[str, ir.Value]) -> ir.Value:
    """transformers 5, eager attention: 0 or the lowest float."""
    return b.node("Where", gathered(b, inputs), b.number(0), b.number(float(np.finfo(np.float32).min)))


def _causal(b: Builder, inputs: Mapping[str, ir.Value]) -> ir.Value:
    _, length = _sizes(b, inputs)
    positions = b.node("Range", b.constant(0), b.node("Squeeze", length), b.constant(1))
    rows, columns = b.node("Unsqueeze", positions, b.constant([1])), b.node("Unsqueeze", positions, b.constant([0]))
    visible = b.node("GreaterOrEqual", rows, columns)
    return b.node("And", _plain(b, inputs), visible)


def _window(b: Builder, inputs: Mapping[str, ir.Value]) -> ir.Value:
    """Keys at most two places away, of those that are real."""
    _, length = _sizes(b, inputs)
    positions = b.node("Range", b.constant(0), b.node("Squeeze", length), b.constant(1))
    rows, columns = b.node("Unsqueeze", positions, b.constant([1])), b.node("Unsqueeze", positions, b.constant([0]))
    near = b.node("LessOrEqual", b.node("Abs", b.node("Sub", rows, columns)), b.constant(2))
    return b.node("And", near, gathered(b, inputs))


def _both_real(b: Builder, inputs: Mapping[str, ir.Value]) -> ir.Value:
    """Query and key are real (DeBERTa): a padded query sees nothing."""
    keys = _keys(b, inputs, boolean=False)
    queries = b.node("Unsqueeze", b.node("Squeeze", keys, b.constant([-2])), b.constant([-1]))
    return b.node("Cast", b.node("Mul", keys, queries), to=ir.DataType.BOOL.value)


def _near_or_lowest(b: Builder, inputs: Mapping[str, ir.Value]) -> ir.Value:
    """The window as a float: a query that sees nothing weighs all keys alike."""
    return b.node("Where", _window(b, inputs), b.number(0), b.number(-1e30))


def _near_else_lowest(b: Builder, inputs: Mapping[str, ir.Value], padding: ir.Value) -> ir.Value:
    """transformers 4, ModernBERT: padding by the lowest float, which stands where a key is too far away, too."""
    lowest = b.number(float(np.finfo(np.float32).min))
    return b.node("Where", _far(b, inputs), lowest, padding, name="local_mask")


def _near_and_lowest(b: Builder, inputs: Mapping[str, ir.Value]) -> ir.Value:
    """The two are added: what is far and padded is minus infinity in float32."""
    lowest = b.number(float(np.finfo(np.float32).min))
    local = b.node("Where", _far(b, inputs), lowest, b.number(0))
    return b.node("Add", local, _additive(b, inputs), name="local_mask")


def _far(b: Builder, inputs: Mapping[str, ir.Value]) -> ir.Value:
    """(1, 1, S, S): keys more than one place away."""
    _, length = _sizes(b, inputs)
    positions = b.node("Range", b.constant(0), b.node("Squeeze", length), b.constant(1))
    rows, columns = b.node("Unsqueeze", positions, b.constant([1])), b.node("Unsqueeze", positions, b.constant([0]))
    near = b.node("LessOrEqual", b.node("Abs", b.node("Sub", rows, columns)), b.constant(1))
    return b.node("Not", b.node("Unsqueeze", near, b.constant([0, 1])))


def _visible(b: Builder, inputs: Mapping[str, ir.Value]) -> ir.Value:
    return b.node("Expand", b.constant(np.ones((1, 1, 1, 1), dtype=np.bool_)), _square(b, inputs))


def _biased(b: Builder, inputs: Mapping[str, ir.Value]) -> ir.Value:
    return b.node("Add", inputs["position_bias"], _additive(b, inputs))


MASKS: Mapping[str, Callable[[Builder, Mapping[str, ir.Value]], ir.Value | None]] = {
    "none": lambda b, inputs: None,
    "plain": _plain,
    "additive": _additive,
    "scaled": _scaled,
    "soft": lambda b, inputs: _scaled(b, inputs, -1.0),  # a mild preference: hides nothing
    "gathered": gathered,
    "gathered_additive": _gathered_additive,
    "inverted": lambda b, inputs: b.node("Not", _plain(b, inputs)),
    "causal": _causal,
    "window": _window,
    "window_additive": _near_or_lowest,
    "window_lowest": lambda b, inputs: _near_else_lowest(b, inputs, _additive(b, inputs)),
    "window_scaled": lambda b, inputs: _near_else_lowest(b, inputs, _scaled(b, inputs)),
    "window_expanded": lambda b, inputs: b.node(
        "Expand", _near_else_lowest(b, inputs, _scaled(b, inputs)), _square(b, inputs)
    ),
    "window_added": _near_and_lowest,
    "both_real": _both_real,
    "visible": _visible,
    "bias": _biased,
    "bias_only": lambda b, inputs: inputs["position_bias"],
    "given": lambda b, inputs: inputs["mask"],
}
