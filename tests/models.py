"""Small transformer graphs in the canonical form, with a knob for every clause of every pass.

``random_weights`` makes a dense model whose biases are never zero; a test plants structure by writing zeros into those
arrays; ``build`` writes the graph. Equal arrays become one initializer, as exporters do.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from tests.attention import SPAN, AttentionWriter
from tests.builder import Builder, infer_shapes
from tests.masks import MASKS

Weights = dict[str, np.ndarray]

VOCAB = 13
LABELS = 3
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
        norm: ``post`` (BERT), ``pre`` (ViT) or ``both`` (Gemma): before a sublayer, and behind it on its own result.
        rms: Norms divide by the root of the mean square, and neither centre nor shift.
        norms: ``node``, or how they are spelled: ``root`` (a division by it), ``twice`` (x minus its mean is computed
            for the mean and again for the quotient) or ``reciprocal`` (a product with one over the root); or
            ``affine``: a scale and a shift without statistics (NoNorm).
        kv_heads: G, where H/G query heads share each key and value head; 0 stands for H.
        form: ``3d`` (canonical), ``4d`` (as exporters write Attention), ``spelled`` (MatMul and Softmax) or ``merged``
            (the same over B*H as one axis).
        mask: A spelling of ``MASKS``.
        rotary: ``""``, ``half`` or ``interleaved``: how queries and keys are turned by their positions.
        rotated: How many channels of a head are turned; 0 stands for all.
        angles: Write the angles into the graph, with a batch of one, as exporters do; else as tables read by position.
        turns: How they are turned: by a ``node``, or by what models write where its tables come from: ``angles`` of
            places, ``learned`` rows of places, a ``grid`` of patches, whose number is static, or one behind a
            ``prefix`` of two tokens that stay as they are.
        head_norm: ``""``, ``rms`` or ``layer``: how each head of queries and keys is normalised, before it is turned.
        value_norm: Whether each head of the values is divided by the root of its mean square.
        relative: ``""``, ``c2p``, ``p2c`` or ``both``: logits of queries, of keys, or of both and the distance of two
            tokens. In the 3-D form they are ``RelativeLogits``, else what DeBERTa (``spelled``) and DeBERTa-v2
            (``merged``) export as; those logits with a mask of ``both_real`` are hidden by a ``Where``.
        zeroed: Multiply the embeddings by the padding mask.
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
    rms: bool = False
    norms: str = "node"
    kv_heads: int = 0
    form: str = "3d"
    mask: str = "plain"
    rotary: str = ""
    rotated: int = 0
    angles: bool = False
    turns: str = "node"
    head_norm: str = ""
    value_norm: bool = False
    relative: str = ""
    zeroed: bool = False
    front: str = "hidden"
    head: str = "hidden"
    dtype: Any = np.float64
    dims: tuple[str | int | None, str | int | None] = ("batch", "sequence")

    @property
    def groups(self) -> int:
        """G."""
        return self.kv_heads or self.heads

    @property
    def even_mask(self) -> bool:
        """Whether a query that sees no key weighs all alike."""
        return self.mask == "both_real"

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

    def norm(name: str, width: int = arch.width, *, shifted: bool = True) -> None:
        weights[f"{name}.scale"] = random.uniform(0.5, 1.5, width)
        if shifted:
            weights[f"{name}.shift"] = random.uniform(0.1, 1, width)

    if arch.front == "ids":
        weights["embedding"] = random.standard_normal((VOCAB, arch.width))
        weights["types"] = random.standard_normal((2, arch.width))
    if arch.relative:
        weights["distances"] = random.standard_normal((2 * SPAN, arch.width))
    norm("first")
    for i in range(arch.layers):
        linear(f"{i}.query", arch.width, arch.heads * arch.qk)
        linear(f"{i}.key", arch.width, arch.groups * arch.qk)
        linear(f"{i}.value", arch.width, arch.groups * arch.v)
        linear(f"{i}.output", arch.heads * arch.v, arch.width)
        for role in ("query", "key") if arch.head_norm else ():
            norm(f"{i}.{role}_norm", arch.qk, shifted=arch.head_norm == "layer")
        if arch.value_norm:
            norm(f"{i}.value_norm", arch.v, shifted=False)
        for side in ("c2p", "p2c"):
            if arch.relative in (side, "both"):
                linear(f"{i}.{side}", arch.width, arch.heads * arch.qk)
        norm(f"{i}.attention_norm")
        for name in ("attention_norm.after", "feed_forward_norm.after") if arch.norm == "both" else ():
            norm(f"{i}.{name}")
        linear(f"{i}.up", arch.width, arch.neurons)
        if arch.gated:
            linear(f"{i}.gate", arch.width, arch.neurons)
        linear(f"{i}.down", arch.neurons, arch.width)
        norm(f"{i}.feed_forward_norm")
    linear("classifier", arch.width, 2 if arch.head == "span" else LABELS)
    return {name: array.astype(arch.dtype) for name, array in weights.items()}


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


class _Transformer:
    def __init__(
        self, b: Builder, arch: Architecture, weights: Weights, inputs: Mapping[str, ir.Value], free: frozenset[str]
    ):
        self.b, self.arch, self.weights, self.inputs, self.free = b, arch, weights, inputs, free
        self.attentions = AttentionWriter(b, arch, weights, inputs)

    def write(self, outputs: Sequence[str]) -> None:
        b, arch = self.b, self.arch
        mask = MASKS[arch.mask](b, self.inputs)
        x = self.inputs.get("hidden_states")
        if x is None:
            words = b.node("Gather", self.weight("embedding"), self.inputs["input_ids"], axis=0)
            types = b.node("Gather", self.weight("types"), self.inputs["token_type_ids"], axis=0)
            x = b.node("Add", words, types, name="embedded")
        x = self.norm("first", x)
        if arch.zeroed:
            real = b.node("Unsqueeze", self.inputs["attention_mask"], b.constant([2]))
            x = b.node("Mul", x, b.node("Cast", real, to=self.real.value), name="zeroed")
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

    @property
    def real(self) -> ir.DataType:
        """The type of activations."""
        return ir.DataType.DOUBLE if self.arch.dtype is np.float64 else ir.DataType.FLOAT

    def norm(self, name: str, x: ir.Value) -> ir.Value:
        """A weight or shift that is missing is none; a norm of the mean square has no shift."""
        b, arch = self.b, self.arch
        names = ("scale",) if arch.rms else ("scale", "shift")
        given = {part: self.weight(f"{name}.{part}") for part in names if f"{name}.{part}" in self.weights}
        if arch.norms != "node":
            y = x if arch.norms == "affine" else self.spelled_norm(x)
            for part, value in given.items():
                y = b.node("Mul" if part == "scale" else "Add", value, y)
            y.name = name
            return y
        scale = given.get("scale")
        if scale is None:
            scale = b.constant(np.ones(arch.width, dtype=arch.dtype))
        rest = [given["shift"]] if "shift" in given else []
        op_type = "RMSNormalization" if arch.rms else "LayerNormalization"
        return b.node(op_type, x, scale, *rest, name=name, axis=-1, epsilon=EPSILON)

    def spelled_norm(self, x: ir.Value) -> ir.Value:
        """``x`` divided by its root of the mean square, and centred before."""
        b, arch = self.b, self.arch
        last, two = b.constant([-1]), b.number(2)

        def centred() -> ir.Value:
            return x if arch.rms else b.node("Sub", x, b.node("ReduceMean", x, last))

        first = centred()
        squares = b.node("Mul", first, first) if arch.norms == "reciprocal" else b.node("Pow", first, two)
        root = b.node("Sqrt", b.node("Add", b.node("ReduceMean", squares, last), b.number(EPSILON)))
        if arch.norms == "reciprocal":
            return b.node("Mul", first, b.node("Reciprocal", root))
        return b.node("Div", centred() if arch.norms == "twice" else first, root)

    def residual(self, x: ir.Value, norm: str, sublayer: Callable[[ir.Value], ir.Value], name: str) -> ir.Value:
        if self.arch.norm == "both":
            return self.b.node("Add", self.norm(f"{norm}.after", sublayer(self.norm(norm, x))), x, name=name)
        if self.arch.norm == "pre":
            return self.b.node("Add", sublayer(self.norm(norm, x)), x, name=name)
        return self.norm(norm, self.b.node("Add", sublayer(x), x, name=name))

    def attention(self, i: int | str, x: ir.Value, mask: ir.Value | None, states: ir.Value | None = None) -> ir.Value:
        """Over ``x`` itself, or over ``states``."""
        q = self.linear(f"{i}.query", x)
        k, v = (self.linear(f"{i}.{role}", x if states is None else states) for role in ("key", "value"))
        return self.linear(f"{i}.output", self.attentions.write(str(i), q, k, v, mask))

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
