"""Writes attention in every form that passes meet, from the canonical one to what exporters make of older code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from compactor.passes.graph.heads import HEAD_NORMS
from compactor.passes.graph.matching import CANONICAL
from tests import rotary
from tests.builder import Builder
from tests.rotary import POSITIONS

if TYPE_CHECKING:
    from tests.models import Architecture, Weights

HEAD_EPSILON = 2.0**-20  # exact in the float32 that an attribute holds
SPAN = 4  # distances of this many places and more are one row of a table of distances
EVEN = -1e30  # swallows any logit
LOWEST = float(np.finfo(np.float32).min)


class AttentionWriter:
    """Attention between projected queries, keys and values (B, S, heads * width)."""

    def __init__(self, b: Builder, arch: Architecture, weights: Weights, inputs: Mapping[str, ir.Value]) -> None:
        self.b, self.arch, self.weights, self.inputs = b, arch, weights, inputs
        self.places: ir.Value | None = None  # of tokens, where queries and keys are turned by them
        self._indices: dict[str, tuple[ir.Value, list[ir.Value] | None]] = {}
        self._grids: dict[str, ir.Value] = {}
        self._additive: dict[ir.Value, ir.Value] = {}

    def write(self, layer: str, q: ir.Value, k: ir.Value, v: ir.Value, mask: ir.Value | None) -> ir.Value:
        """The result (B, S, H * v)."""
        form = {"3d": self._canonical, "4d": self._four_axes, "spelled": self._spelled, "merged": self._merged}
        return form[self.arch.form](layer, q, k, v, mask)

    def _canonical(self, layer: str, q: ir.Value, k: ir.Value, v: ir.Value, mask: ir.Value | None) -> ir.Value:
        b, arch = self.b, self.arch
        terms = [mask] if mask is not None else []
        if arch.even_mask:
            terms = [self._added(mask)]
        for side, x in self._sides(q, k):
            index, _ = self._index(side)
            table = b.constant((self._table(layer, side) * arch.scale).astype(arch.dtype))
            term = b.node(
                "RelativeLogits", x, table, index, name=f"{layer}.{side}", domain=CANONICAL, num_heads=arch.heads
            )
            self._logits(term)
            terms.append(self._turned_round(term, side))
        q, k, v = (
            self._normed(layer, role, x, domain=CANONICAL, num_heads=heads)
            for role, x, heads in (("query", q, arch.heads), ("key", k, arch.groups), ("value", v, arch.groups))
        )
        if arch.rotary:
            q = self.turn(f"{layer}.q.turned", q, num_heads=arch.heads)
            k = self.turn(f"{layer}.k.turned", k, num_heads=arch.groups)
        heads = {"q_num_heads": arch.heads, "kv_num_heads": arch.groups}
        masks = [self._sum(terms)] if terms else []
        return b.node("Attention", q, k, v, *masks, name=f"{layer}.attention", scale=arch.scale, **heads)

    def _four_axes(self, layer: str, q: ir.Value, k: ir.Value, v: ir.Value, mask: ir.Value | None) -> ir.Value:
        split = self._split(layer, q, k, v)
        if self.arch.even_mask:
            mask = self._added(mask)
        masks = [mask] if mask is not None else []
        y = self.b.node("Attention", *split, *masks, name=f"{layer}.attention", scale=self.arch.scale)
        return self._merge(y)

    def _spelled(self, layer: str, q: ir.Value, k: ir.Value, v: ir.Value, mask: ir.Value | None) -> ir.Value:
        b, arch = self.b, self.arch
        split_q, split_k, split_v = self._split(layer, q, k, v)
        logits = b.node("MatMul", split_q, b.node("Transpose", split_k, perm=[0, 1, 3, 2]), name=f"{layer}.logits")
        logits = b.node("Mul", logits, b.number(arch.scale))
        for side, x in self._sides(split_q, split_k):
            logits = b.node("Add", logits, self._gathered(layer, side, x, merged=False))
            self._logits(logits)
        if arch.even_mask:
            logits = b.node("Where", b.node("Not", mask), b.number(LOWEST), logits)
        elif mask is not None:
            logits = b.node("Add", logits, mask)
        weights = b.node("Softmax", logits, axis=-1, name=f"{layer}.probabilities")
        return self._merge(b.node("MatMul", weights, split_v, name=f"{layer}.attention"))

    def _merged(self, layer: str, q: ir.Value, k: ir.Value, v: ir.Value, mask: ir.Value | None) -> ir.Value:
        """Over (B*H, S, d), as DeBERTa-v2 does."""
        b, arch = self.b, self.arch
        batch, length = arch.dims
        rows = f"{batch}*{arch.heads}"
        split_q, split_k, split_v = (
            self._shaped(
                b.node("Reshape", x, self._sizes(-1, "length", size)), rows, length, size, name=f"{layer}.{role}.merged"
            )
            for role, x, size in zip("qkv", self._split(layer, q, k, v), (arch.qk, arch.qk, arch.v), strict=True)
        )
        turned = b.node("Div", b.node("Transpose", split_k, perm=[0, 2, 1]), b.number(1 / arch.scale))
        logits = b.node("MatMul", split_q, turned, name=f"{layer}.logits")
        self._shaped(logits, rows, length, length)
        for side, x in self._sides(split_q, split_k):
            logits = self._shaped(
                b.node("Add", logits, self._gathered(layer, side, x, merged=True)), rows, length, length
            )
        logits = b.node("Reshape", logits, self._sizes(-1, arch.heads, "length", "length"))
        self._logits(logits)
        if arch.even_mask:
            logits = b.node("Where", b.node("Not", mask), b.number(LOWEST), logits)
        elif mask is not None:
            logits = b.node("Add", logits, mask)
        self._logits(logits)
        weights = b.node("Softmax", logits, axis=-1, name=f"{layer}.probabilities")
        weights = self._shaped(b.node("Reshape", weights, self._sizes(-1, "length", "length")), rows, length, length)
        y = self._shaped(b.node("MatMul", weights, split_v, name=f"{layer}.attention"), rows, length, arch.v)
        y = b.node("Reshape", y, self._sizes(-1, arch.heads, "length", arch.v))
        return self._merge(self._shaped(y, batch, arch.heads, length, arch.v))

    def _split(self, layer: str, q: ir.Value, k: ir.Value, v: ir.Value) -> list[ir.Value]:
        """(B, H, S, d) each: turned by the positions, and keys and values as often as queries share them."""
        b, arch = self.b, self.arch
        found = []
        for value, heads, size in ((q, arch.heads, arch.qk), (k, arch.groups, arch.qk), (v, arch.groups, arch.v)):
            apart = b.node("Reshape", value, b.constant([0, 0, heads, size]))
            found.append(b.node("Transpose", apart, perm=[0, 2, 1, 3]))
        found = [self._normed(layer, role, x) for role, x in zip(("query", "key", "value"), found, strict=True)]
        if arch.rotary:
            found[:2] = (self.turn(f"{layer}.{role}.turned", x) for role, x in zip("qk", found[:2], strict=True))
        if arch.groups != arch.heads:
            found[1:] = (self._repeated(x, size) for x, size in zip(found[1:], (arch.qk, arch.v), strict=True))
        return found

    def _repeated(self, x: ir.Value, size: int) -> ir.Value:
        """(B, G, S, d) -> (B, H, S, d), as ``repeat_kv`` of transformers."""
        b, arch = self.b, self.arch
        batch, length = arch.dims
        times = arch.heads // arch.groups
        apart = self._shaped(b.node("Unsqueeze", x, b.constant([2])), batch, arch.groups, 1, length, size)
        copies = b.node("Expand", apart, self._sizes("batch", arch.groups, times, "length", size))
        self._shaped(copies, batch, arch.groups, times, length, size)
        together = b.node("Reshape", copies, self._sizes("batch", arch.heads, "length", size))
        return self._shaped(together, batch, arch.heads, length, size)

    def _merge(self, y: ir.Value) -> ir.Value:
        turned = self.b.node("Transpose", y, perm=[0, 2, 1, 3])
        return self.b.node("Reshape", turned, self.b.constant([0, 0, self.arch.heads * self.arch.v]))

    def _normed(self, layer: str, role: str, x: ir.Value, *, domain: str = "", **options: int) -> ir.Value:
        """Each head of ``x`` normalised over its channels; a side without weights is not."""
        b, name = self.b, f"{layer}.{role}_norm"
        parts = [self.weights[f"{name}.{part}"] for part in ("scale", "shift") if f"{name}.{part}" in self.weights]
        if not parts:
            return x
        op_type = "LayerNormalization" if self.arch.head_norm == "layer" and role != "value" else "RMSNormalization"
        if domain:
            op_type = HEAD_NORMS[op_type]
        else:
            options["axis"] = -1
        given = [b.constant(part, f"w.{name}.{number}") for number, part in enumerate(parts)]
        y = b.node(op_type, x, *given, name=name, domain=domain, epsilon=HEAD_EPSILON, **options)
        y.type, y.shape = x.type, x.shape
        if domain:
            real = ir.DataType.DOUBLE if self.arch.dtype is np.float64 else ir.DataType.FLOAT
            y.type, y.shape = ir.TensorType(real), ir.Shape([*self.arch.dims, options["num_heads"] * len(parts[0])])
        return y

    # Rotary embeddings

    def turn(self, name: str, x: ir.Value, **options: Any) -> ir.Value:
        """A rotary embedding of ``x``."""
        b, arch = self.b, self.arch
        options |= {"interleaved": int(arch.rotary == "interleaved"), "rotary_embedding_dim": arch.rotated}
        given = {key: value for key, value in options.items() if value}
        frequencies = rotary.frequencies(arch)
        source = next(value for value in self.inputs.values() if len(value.shape) == 2)
        if self.places is None:
            length = b.node("Squeeze", b.node("Shape", source, start=1, end=2))
            span = b.node("Range", b.constant(0), length, b.constant(1))
            span.type, span.shape = ir.TensorType(ir.DataType.INT64), ir.Shape([source.shape[1]])
            self.places = (
                span if arch.angles or arch.turns != "node" else b.node("Expand", span, b.node("Shape", source))
            )
        if arch.turns != "node":
            return rotary.turn(b, arch, x, self.places, name)
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

    # Logits of distances

    def _sides(self, q: ir.Value, k: ir.Value) -> list[tuple[str, ir.Value]]:
        both = (("c2p", q), ("p2c", k))
        return [(side, x) for side, x in both if self.arch.relative in (side, "both")]

    def _table(self, layer: str, side: str) -> np.ndarray:
        """(R, H*d)."""
        weights, name = self.weights, f"{layer}.{side}"
        return weights["distances"] @ weights[name] + weights[f"{name}.bias"]

    def _index(self, side: str) -> tuple[ir.Value, list[ir.Value] | None]:
        """(S, T) rows for pairs of tokens; and where a table begins and ends that is cut to what the length reaches."""
        if side in self._indices:
            return self._indices[side]
        b, arch = self.b, self.arch
        length = b.node("Squeeze", self._length())
        positions = b.node("Range", b.constant(0), length, b.constant(1))
        positions.type, positions.shape = ir.TensorType(ir.DataType.INT64), ir.Shape([arch.dims[1]])
        rows, columns = (b.node("Unsqueeze", positions, b.constant([axis])) for axis in (1, 0))
        distances = b.node("Sub", rows, columns)
        if side == "p2c":
            distances = b.node("Neg", distances)
        span = b.constant(SPAN)
        cut = None
        if arch.form == "spelled":
            most, span = b.constant([SPAN]), b.node("Min", length, span)
            cut = [b.node(op_type, most, b.node("Reshape", span, b.constant([1]))) for op_type in ("Sub", "Add")]
        last = b.node("Sub", b.node("Mul", span, b.constant(2)), b.constant(1))
        index = b.node("Clip", b.node("Add", distances, span), b.constant(0), last, name=f"{side}.index")
        index.type, index.shape = ir.TensorType(ir.DataType.INT64), ir.Shape([arch.dims[1], arch.dims[1]])
        self._indices[side] = index, cut
        return self._indices[side]

    def _gathered(self, layer: str, side: str, x: ir.Value, *, merged: bool) -> ir.Value:
        """Logits as DeBERTa writes them: a product with all rows, of which a row is gathered for each pair."""
        b, arch, weights = self.b, self.arch, self.weights
        batch, length = arch.dims
        index, cut = self._index(side)
        table = b.constant(weights["distances"], "w.distances")
        if cut is not None:
            table = b.node("Slice", table, *cut, b.constant([0]), b.constant([1]))
        count = 2 * SPAN if cut is None else None
        table = b.node("Unsqueeze", table, b.constant([0]))
        factors = b.node("MatMul", table, b.constant(weights[f"{layer}.{side}"], f"w.{layer}.{side}"))
        factors = b.node("Add", factors, b.constant(weights[f"{layer}.{side}.bias"], f"w.{layer}.{side}.bias"))
        factors = b.node("Reshape", factors, b.constant([1, -1, arch.heads, arch.qk]))
        factors = b.node("Transpose", factors, perm=[0, 2, 1, 3])
        if side == "p2c" and not merged:  # a factor before the product, of the other behind it
            factors = b.node("Mul", factors, b.number(arch.scale))
        rows = index
        if merged:
            factors = b.node("Reshape", factors, b.constant([-1, 2 * SPAN, arch.qk]))
            self._shaped(factors, arch.heads, 2 * SPAN, arch.qk)
            factors = b.node("Tile", factors, self._sizes("batch", 1, 1))
            self._shaped(factors, f"{batch}*{arch.heads}", 2 * SPAN, arch.qk)
            product = b.node("MatMul", x, b.node("Transpose", factors, perm=[0, 2, 1]))
            self._shaped(product, f"{batch}*{arch.heads}", length, 2 * SPAN)
            grid = self._sizes(("batch", arch.heads), "length", "length")
            rows = self._led(rows, 1)
            shape = (f"{batch}*{arch.heads}", length, length)
        else:
            product = b.node("MatMul", x, b.node("Transpose", factors, perm=[0, 1, 3, 2]))
            self._shaped(product, batch, arch.heads, length, count)
            grid = self._sizes("batch", arch.heads, "length", "length")
            rows = self._led(rows, 2)
            shape = (batch, arch.heads, length, length)
        indices = self._integers(b.node("Expand", rows, grid), *shape)
        gathered = self._shaped(
            b.node("GatherElements", product, indices, axis=2 if merged else 3, name=f"{layer}.{side}"), *shape
        )
        if side == "p2c":
            perm = [0, 2, 1] if merged else [0, 1, 3, 2]
            gathered = self._shaped(b.node("Transpose", gathered, perm=perm), *shape)
        if side == "c2p" or merged:
            gathered = self._shaped(b.node("Div", gathered, b.number(1 / arch.scale)), *shape)
        return gathered

    def _led(self, rows: ir.Value, count: int) -> ir.Value:
        """(S, T) numbers behind ``count`` axes of size one, made once."""
        name = f"{rows.name}.{count}"
        if name not in self._grids:
            led = self.b.node("Unsqueeze", rows, self.b.constant(list(range(count))), name=name)
            self._grids[name] = self._integers(led, *[1] * count, *[self.arch.dims[1]] * 2)
        return self._grids[name]

    def _turned_round(self, term: ir.Value, side: str) -> ir.Value:
        return self._logits(self.b.node("Transpose", term, perm=[0, 1, 3, 2])) if side == "p2c" else term

    # Masks and shapes

    def _added(self, visible: ir.Value) -> ir.Value:
        """A bool mask as a term that leaves a query which sees nothing all keys alike."""
        batch, length = self.arch.dims
        if visible not in self._additive:
            term = self.b.node("Where", visible, self.b.number(0), self.b.number(EVEN))
            self._additive[visible] = self._shaped(term, batch, 1, length, length)
        return self._additive[visible]

    def _sum(self, terms: list[ir.Value]) -> ir.Value:
        total = terms[0]
        for term in terms[1:]:
            total = self._logits(self.b.node("Add", total, term))
        return total

    def _logits(self, value: ir.Value) -> ir.Value:
        batch, length = self.arch.dims
        return self._shaped(value, batch, self.arch.heads, length, length)

    def _shaped(self, value: ir.Value, *sizes: Any, name: str | None = None) -> ir.Value:
        """The value with the shape that an exporter knows and shape inference may not."""
        real = ir.DataType.DOUBLE if self.arch.dtype is np.float64 else ir.DataType.FLOAT
        value.type, value.shape = ir.TensorType(real), ir.Shape(list(sizes))
        value.name = name or value.name
        return value

    def _integers(self, value: ir.Value, *sizes: Any) -> ir.Value:
        value.type, value.shape = ir.TensorType(ir.DataType.INT64), ir.Shape(list(sizes))
        return value

    def _length(self) -> ir.Value:
        return self.b.node("Shape", next(iter(self.inputs.values())), start=1, end=2)

    def _sizes(self, *sizes: Any) -> ir.Value:
        """A shape; ``batch`` and ``length`` are those of the input, a pair is a product."""
        b = self.b

        def one(size: Any) -> ir.Value:
            if size == "batch":
                return b.node("Shape", next(iter(self.inputs.values())), start=0, end=1)
            if size == "length":
                return self._length()
            if isinstance(size, tuple):
                return b.node("Mul", one(size[0]), b.constant([size[1]]))
            return b.constant([size])

        return b.node("Concat", *map(one, sizes), axis=0)
