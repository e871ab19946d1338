"""Small transformer graphs in the canonical form, with a knob for every clause of every pass.

``random_weights`` makes a dense model whose biases are never zero; a test plants structure by writing zeros into those
arrays; ``build`` writes the graph. Equal arrays become one initializer, as exporters do.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx import numpy_helper
from onnx_ir.passes.common import RemoveUnusedNodesPass, ShapeInferencePass

Weights = dict[str, np.ndarray]

VOCAB = 13
LABELS = 3
POSITIONS = 12  # of the tables of a rotary embedding
EPSILON = 1e-12


@dataclasses.dataclass(frozen=True)
class Architecture:
    """What the graph looks like.

    Attributes:
        layers: Pairs of attention and feed-forward.
        width: D.
        heads: H of every layer.
        qk: Q.K width of a head.
        v: V width of a head.
        neurons: N of every layer.
        activation: ``gelu``, ``tanh-gelu``, ``relu``, ``silu`` (spelled x * sigmoid(x)) or ``erf-gelu`` (spelled out).
        gated: Multiply the activation by a second projection.
        norm: ``post`` (BERT) or ``pre`` (ViT).
        form: ``3d`` (canonical), ``4d`` (as exporters write Attention) or ``spelled`` (MatMul and Softmax).
        mask: A spelling of ``MASKS``.
        rotary: ``""``, ``half`` or ``interleaved``: how queries and keys are turned by their positions.
        rotated: How many channels of a head are turned; 0 stands for all.
        angles: Write the angles into the graph, with a batch of one, as exporters do; else as tables read by position.
        front: ``ids`` (embeddings) or ``hidden`` (the graph reads ``hidden_states``).
        head: ``hidden``, ``classifier`` (position 0), ``tokens``, ``span`` (two logits a position), or one that mixes
            positions: ``mean``, ``pooled``, ``mixed``.
        dtype: Of weights and activations.
        dims: The symbols of the batch and sequence axes.
    """

    layers: int = 1
    width: int = 8
    heads: int = 4
    qk: int = 4
    v: int = 4
    neurons: int = 12
    activation: str = "gelu"
    gated: bool = False
    norm: str = "post"
    form: str = "3d"
    mask: str = "plain"
    rotary: str = ""
    rotated: int = 0
    angles: bool = False
    front: str = "hidden"
    head: str = "hidden"
    dtype: Any = np.float64
    dims: tuple[str | int | None, str | int | None] = ("batch", "sequence")

    @property
    def scale(self) -> float:
        """The factor of the logits."""
        return 1 / math.sqrt(self.qk)


def random_weights(arch: Architecture, seed: int = 0) -> Weights:
    """Dense weights (in, out) by name, ``"0.query"``, and their biases, ``"0.query.bias"``."""
    random = np.random.default_rng(seed)
    weights: Weights = {}

    def linear(name: str, rows: int, columns: int) -> None:
        weights[name] = random.standard_normal((rows, columns)) / math.sqrt(max(rows, 1))
        weights[f"{name}.bias"] = random.uniform(0.1, 1, columns) * random.choice((-1, 1), columns)

    def norm(name: str) -> None:
        weights[f"{name}.scale"] = random.uniform(0.5, 1.5, arch.width)
        weights[f"{name}.shift"] = random.uniform(0.1, 1, arch.width)

    if arch.front == "ids":
        weights["embedding"] = random.standard_normal((VOCAB, arch.width))
        weights["types"] = random.standard_normal((2, arch.width))
    norm("first")
    for i in range(arch.layers):
        linear(f"{i}.query", arch.width, arch.heads * arch.qk)
        linear(f"{i}.key", arch.width, arch.heads * arch.qk)
        linear(f"{i}.value", arch.width, arch.heads * arch.v)
        linear(f"{i}.output", arch.heads * arch.v, arch.width)
        norm(f"{i}.attention_norm")
        linear(f"{i}.up", arch.width, arch.neurons)
        if arch.gated:
            linear(f"{i}.gate", arch.width, arch.neurons)
        linear(f"{i}.down", arch.neurons, arch.width)
        norm(f"{i}.feed_forward_norm")
    linear("classifier", arch.width, 2 if arch.head == "span" else LABELS)
    return {name: array.astype(arch.dtype) for name, array in weights.items()}


class Builder:
    """Appends named nodes to a graph; equal constants become one initializer."""

    def __init__(self, inputs: Sequence[ir.Value], dtype: Any) -> None:
        self.graph = ir.Graph(list(inputs), [], nodes=[], opset_imports={"": 23}, name="graph")
        self.dtype = dtype
        self._seen: dict[tuple[Any, ...], ir.Value] = {}
        self._numbers = itertools.count()

    def constant(self, array: Any, name: str | None = None, dtype: Any = np.int64) -> ir.Value:
        """An initializer; one that equals an earlier one is that one."""
        array = np.asarray(array) if isinstance(array, np.ndarray) else np.asarray(array, dtype=dtype)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._seen:
            name = name or f"constant_{next(self._numbers)}"
            tensor = ir.tensor(array, name=name)
            value = ir.Value(
                name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape)
            )
            self.graph.register_initializer(value)
            self._seen[key] = value
        return self._seen[key]

    def number(self, value: float) -> ir.Value:
        """A scalar of the model's type."""
        return self.constant(np.asarray(value, dtype=self.dtype))

    def node(
        self, op_type: str, *inputs: ir.Value | None, name: str | None = None, outputs: int = 1, **attributes: Any
    ) -> Any:
        """The output of a new node (a tuple of them when ``outputs`` > 1), called ``name``."""
        node = ir.Node(
            "",
            op_type,
            inputs,
            attributes=[ir.convenience.convert_attribute(key, value) for key, value in attributes.items()],
            num_outputs=outputs,
        )
        node.name = name or f"{op_type}_{next(self._numbers)}"
        for i, value in enumerate(node.outputs):
            value.name = node.name if i == 0 else f"{node.name}.{i}"
        self.graph.append(node)
        return node.outputs[0] if outputs == 1 else tuple(node.outputs)


def build(
    arch: Architecture, weights: Weights | None = None, *, outputs: Sequence[str] = (), inputs: Sequence[str] = ()
) -> ir.Model:
    """Write the graph.

    Args:
        arch: What it looks like.
        weights: From ``random_weights``, zeros planted; a missing bias means none. Widths are read off them.
        outputs: Inner values to expose: ``"0.query"``, ``"0.attention"``, ``"0.up"``, ``"0.active"``, ``"0.residual"``…
        inputs: Weights that are graph inputs (with the array as default) and so no constants.
    """
    weights = random_weights(arch) if weights is None else weights
    batch, length = arch.dims
    real = ir.DataType.DOUBLE if arch.dtype is np.float64 else ir.DataType.FLOAT

    def graph_input(name: str, dtype: ir.DataType, shape: Sequence[Any]) -> ir.Value:
        return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))

    values = []
    if arch.front == "ids":
        values += [graph_input(name, ir.DataType.INT64, [batch, length]) for name in ("input_ids", "token_type_ids")]
    else:
        values.append(graph_input("hidden_states", real, [batch, length, arch.width]))
    if arch.mask not in ("none", "bias_only", "given"):
        values.append(graph_input("attention_mask", ir.DataType.INT64, [batch, length]))
    if arch.mask in ("bias", "bias_only"):
        values.append(graph_input("position_bias", real, [1, arch.heads, length, length]))
    if arch.mask == "given":
        values.append(graph_input("mask", ir.DataType.BOOL, [batch, 1, length, length]))
    builder = Builder(values, arch.dtype)
    _Transformer(builder, arch, weights, {v.name: v for v in values}, frozenset(inputs)).write(outputs)
    model = ir.Model(builder.graph, ir_version=11)
    RemoveUnusedNodesPass()(model)
    infer_shapes(model)
    return model


def infer_shapes(model: ir.Model) -> ir.Model:
    """Infer shapes, and return the model itself; or its float32 twin, where an operator is not defined in float64."""
    rotary = any(node.op_type == "RotaryEmbedding" and not node.domain for node in model.graph)
    if not rotary or not any(value.dtype == ir.DataType.DOUBLE for value in model.graph.initializers.values()):
        ShapeInferencePass()(model)
        return model
    proto = ir.to_proto(model)
    double, single = ir.DataType.DOUBLE.value, ir.DataType.FLOAT.value
    for tensor in proto.graph.initializer:
        if tensor.data_type == double:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    for entry in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        if entry.type.tensor_type.elem_type == double:
            entry.type.tensor_type.elem_type = single
    for node in proto.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == double:
                attribute.i = single
    twin = ir.from_proto(proto)
    ShapeInferencePass()(twin)
    known = {value.name: value for node in twin.graph for value in node.outputs}
    for node in model.graph:
        for value in node.outputs:
            found = known[value.name]
            value.shape = found.shape
            if found.dtype is not None:
                value.type = ir.TensorType(ir.DataType.DOUBLE if found.dtype == ir.DataType.FLOAT else found.dtype)
    return twin


class _Transformer:
    def __init__(
        self, b: Builder, arch: Architecture, weights: Weights, inputs: Mapping[str, ir.Value], free: frozenset[str]
    ):
        self.b, self.arch, self.weights, self.inputs, self.free = b, arch, weights, inputs, free
        self.places: ir.Value | None = None  # of tokens, where queries and keys are turned by them

    def write(self, outputs: Sequence[str]) -> None:
        b, arch = self.b, self.arch
        mask = MASKS[arch.mask](b, self.inputs)
        x = self.inputs.get("hidden_states")
        if x is None:
            words = b.node("Gather", self.weight("embedding"), self.inputs["input_ids"], axis=0)
            types = b.node("Gather", self.weight("types"), self.inputs["token_type_ids"], axis=0)
            x = b.node("Add", words, types, name="embedded")
        x = self.norm("first", x)
        for i in range(arch.layers):
            x = self.residual(x, f"{i}.attention_norm", lambda y, i=i: self.attention(i, y, mask), f"{i}.residual")
            x = self.residual(
                x, f"{i}.feed_forward_norm", lambda y, i=i: self.feed_forward(i, y), f"{i}.second_residual"
            )
        results = self.finish(x)
        exposed = [v for node in b.graph for v in node.outputs if v.name in outputs]
        assert len(exposed) == len(outputs), "every name in outputs must exist"
        b.graph.outputs.extend([*results, *exposed])

    def weight(self, name: str) -> ir.Value:
        value = self.b.constant(self.weights[name], f"w.{name}")
        if name in self.free and not value.is_graph_input():
            self.b.graph.inputs.append(value)
        return value

    def linear(self, name: str, x: ir.Value) -> ir.Value:
        bias = f"{name}.bias"
        if bias not in self.weights:
            return self.b.node("MatMul", x, self.weight(name), name=name)
        return self.b.node("Add", self.b.node("MatMul", x, self.weight(name)), self.weight(bias), name=name)

    def norm(self, name: str, x: ir.Value) -> ir.Value:
        shift, scale = self.weight(f"{name}.shift"), self.weight(f"{name}.scale")
        return self.b.node("LayerNormalization", x, scale, shift, name=name, axis=-1, epsilon=EPSILON)

    def residual(self, x: ir.Value, norm: str, sublayer: Callable[[ir.Value], ir.Value], name: str) -> ir.Value:
        if self.arch.norm == "pre":
            return self.b.node("Add", sublayer(self.norm(norm, x)), x, name=name)
        return self.norm(norm, self.b.node("Add", sublayer(x), x, name=name))

    def attention(self, i: int | str, x: ir.Value, mask: ir.Value | None, states: ir.Value | None = None) -> ir.Value:
        """Over ``x`` itself, or over ``states``."""
        b, arch = self.b, self.arch
        q = self.linear(f"{i}.query", x)
        k, v = (self.linear(f"{i}.{role}", x if states is None else states) for role in ("key", "value"))
        if arch.rotary and arch.form == "3d":
            q, k = (
                self.turn(f"{i}.{role}.turned", value, num_heads=arch.heads)
                for role, value in zip("qk", (q, k), strict=True)
            )
        name = f"{i}.attention"
        masks = [mask] if mask is not None else []
        if arch.form == "3d":
            heads = {"q_num_heads": arch.heads, "kv_num_heads": arch.heads}
            y = b.node("Attention", q, k, v, *masks, name=name, scale=arch.scale, **heads)
            return self.linear(f"{i}.output", y)
        q, k, v = (
            b.node("Transpose", b.node("Reshape", value, b.constant([0, 0, arch.heads, size])), perm=[0, 2, 1, 3])
            for value, size in ((q, arch.qk), (k, arch.qk), (v, arch.v))
        )
        if arch.rotary:
            q, k = (self.turn(f"{i}.{role}.turned", value) for role, value in zip("qk", (q, k), strict=True))
        if arch.form == "4d":
            y = b.node("Attention", q, k, v, *masks, name=name, scale=arch.scale)
        else:
            logits = b.node("MatMul", q, b.node("Transpose", k, perm=[0, 1, 3, 2]), name=f"{i}.logits")
            logits = b.node("Mul", logits, b.number(arch.scale))
            for term in masks:
                logits = b.node("Add", logits, term)
            y = b.node("MatMul", b.node("Softmax", logits, axis=-1, name=f"{i}.probabilities"), v, name=name)
        merged = b.node("Transpose", y, perm=[0, 2, 1, 3])
        return self.linear(f"{i}.output", b.node("Reshape", merged, b.constant([0, 0, arch.heads * arch.v])))

    def turn(self, name: str, x: ir.Value, **options: Any) -> ir.Value:
        """A rotary embedding of ``x``."""
        b, arch = self.b, self.arch
        rotated = arch.rotated or arch.qk
        options |= {"interleaved": int(arch.rotary == "interleaved"), "rotary_embedding_dim": arch.rotated}
        given = {key: value for key, value in options.items() if value}
        frequencies = (10.0 ** -np.arange(rotated // 2)).astype(arch.dtype)
        source = next(value for value in self.inputs.values() if len(value.shape) == 2)
        if self.places is None:
            length = b.node("Squeeze", b.node("Shape", source, start=1, end=2))
            span = b.node("Range", b.constant(0), length, b.constant(1))
            span.type, span.shape = ir.TensorType(ir.DataType.INT64), ir.Shape([source.shape[1]])
            self.places = span if arch.angles else b.node("Expand", span, b.node("Shape", source))
        if not arch.angles:
            tables = [
                b.constant(turn(np.outer(np.arange(POSITIONS), frequencies)).astype(arch.dtype))
                for turn in (np.cos, np.sin)
            ]
            return b.node("RotaryEmbedding", x, *tables, self.places, name=name, **given)
        places = b.node("Unsqueeze", b.node("Unsqueeze", self.places, b.constant([0])), b.constant([2]))
        to = ir.DataType.DOUBLE.value if arch.dtype is np.float64 else ir.DataType.FLOAT.value
        angles = b.node("Mul", b.node("Cast", places, to=to), b.constant(frequencies))
        return b.node("RotaryEmbedding", x, b.node("Cos", angles), b.node("Sin", angles), name=name, **given)

    def feed_forward(self, i: int, x: ir.Value) -> ir.Value:
        y = self.activation(self.linear(f"{i}.up", x))
        if self.arch.gated:
            y = self.b.node("Mul", y, self.linear(f"{i}.gate", x))
        y.name = f"{i}.active"
        return self.linear(f"{i}.down", y)

    def activation(self, x: ir.Value) -> ir.Value:
        b = self.b
        match self.arch.activation:
            case "gelu":
                return b.node("Gelu", x)
            case "tanh-gelu":
                return b.node("Gelu", x, approximate="tanh")
            case "relu":
                return b.node("Relu", x)
            case "silu":
                return b.node("Mul", x, b.node("Sigmoid", x))
            case "erf-gelu":
                erf = b.node("Erf", b.node("Div", x, b.number(math.sqrt(2))))
                return b.node("Mul", b.node("Mul", x, b.node("Add", erf, b.number(1))), b.number(0.5))
            case "per-neuron":
                return b.node(
                    "Relu", b.node("Mul", x, b.constant(np.arange(1, self.arch.neurons + 1, dtype=self.arch.dtype)))
                )
            case "softmax":
                return b.node("Softmax", x, axis=-1)
        raise AssertionError(self.arch.activation)

    def finish(self, x: ir.Value) -> list[ir.Value]:
        b = self.b
        match self.arch.head:
            case "hidden":
                return [x]
            case "classifier":
                first = b.node("Gather", x, b.constant(0), axis=1, name="first_token")
                names = ("classifier", "classifier.bias")
                return [b.node("Gemm", first, *map(self.weight, names), name="logits")]
            case "tokens":
                return [self.linear("classifier", x)]
            case "span":
                start, end = b.node(
                    "Split", self.linear("classifier", x), outputs=2, axis=-1, num_outputs=2, name="split"
                )
                axis = b.constant([-1])
                return [b.node("Squeeze", v, axis, name=n) for v, n in ((start, "start_logits"), (end, "end_logits"))]
            case "mean":
                return [b.node("ReduceMean", x, b.constant([1]), keepdims=0, name="pooled")]
            case "mixed":  # every position sees every other, unmasked
                scores = b.node("Softmax", b.node("MatMul", x, b.node("Transpose", x, perm=[0, 2, 1])), axis=-1)
                return [b.node("MatMul", scores, x, name="mixed")]
            case "transposed":
                return [b.node("Transpose", x, perm=[0, 2, 1], name="transposed")]
        raise AssertionError(self.arch.head)


# How exporters and models spell the attention mask. Each takes the builder and the graph's inputs.


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


def _gathered(b: Builder, inputs: Mapping[str, ir.Value], *, swap: bool = False) -> ir.Value:
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
    return b.node("Where", _gathered(b, inputs), b.number(0), b.number(float(np.finfo(np.float32).min)))


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
    return b.node("And", near, _gathered(b, inputs))


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
    "gathered": _gathered,
    "gathered_additive": _gathered_additive,
    "inverted": lambda b, inputs: b.node("Not", _plain(b, inputs)),
    "causal": _causal,
    "window": _window,
    "visible": _visible,
    "bias": _biased,
    "bias_only": lambda b, inputs: inputs["position_bias"],
    "given": lambda b, inputs: inputs["mask"],
}
