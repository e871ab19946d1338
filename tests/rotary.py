"""Writes rotary embeddings as models spell them out, on heads (B, H, S, d)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from tests.builder import Builder

if TYPE_CHECKING:
    from tests.models import Architecture

POSITIONS = 12  # of tables
PREFIX = 2  # tokens that are no patches, and are not turned


def frequencies(arch: Architecture) -> np.ndarray:
    """(r/2,)."""
    return np.asarray((10.0 ** -np.arange((arch.rotated or arch.qk) // 2)).astype(arch.dtype))


def turn(b: Builder, arch: Architecture, x: ir.Value, places: ir.Value | None, name: str) -> ir.Value:
    """The first channels of ``x`` turned by ``places`` (S,), or by what is known of a static length."""
    prefix = None
    if arch.turns == "prefix":
        prefix, x = (_cut(b, x, *ends, axis=2) for ends in ((0, PREFIX), (PREFIX, arch.dims[1])))
    cosines, sines = (_both(b, arch, table) for table in _tables(b, arch, places))
    rotated = arch.rotated or arch.qk
    part = x if rotated == arch.qk else _cut(b, x, 0, rotated)
    y = b.node("Add", b.node("Mul", part, cosines), b.node("Mul", _quarter(b, arch, part), sines), name=name)
    if rotated != arch.qk:
        y = b.node("Concat", y, _cut(b, x, rotated, arch.qk), axis=-1)
    return y if prefix is None else b.node("Concat", prefix, y, axis=2)


def _cut(b: Builder, x: ir.Value, start: Any, end: Any, *, axis: int = 3, step: int = 1) -> ir.Value:
    return b.node("Slice", x, *(b.constant([number]) for number in (start, end, axis, step)))


def _tables(b: Builder, arch: Architecture, places: ir.Value | None) -> list[ir.Value]:
    """Cosines and sines, (S, r/2)."""
    rotated = arch.rotated or arch.qk
    if arch.turns in ("grid", "prefix"):  # rows of patches in one half of the pairs, columns in the other
        count = int(arch.dims[1] or 0) - (PREFIX if arch.turns == "prefix" else 0)
        grid = np.stack(np.divmod(np.arange(count), 2), axis=-1)
        angles = np.resize(grid, (rotated // 2, count, 2))[np.arange(rotated // 2), :, np.arange(rotated // 2) % 2]
        turned = angles.T * frequencies(arch) + 0.1
        return [b.constant(function(turned).astype(arch.dtype)) for function in (np.cos, np.sin)]
    assert places is not None
    if arch.turns == "learned":
        random = np.random.default_rng(5)
        rows = [random.standard_normal((POSITIONS, rotated // 2)).astype(arch.dtype) for _ in range(2)]
        return [b.node("Gather", b.constant(each), places, axis=0) for each in rows]
    to = ir.DataType.DOUBLE.value if arch.dtype is np.float64 else ir.DataType.FLOAT.value
    column = b.node("Cast", b.node("Unsqueeze", places, b.constant([1])), to=to)
    turned = b.node("Mul", column, b.constant(frequencies(arch)))
    return [b.node("Cos", turned), b.node("Sin", turned)]


def _both(b: Builder, arch: Architecture, table: ir.Value) -> ir.Value:
    """(S, r/2) -> (S, r): a number for each channel of a pair."""
    if arch.rotary == "half":
        return b.node("Concat", table, table, axis=-1)
    apart = b.node("Unsqueeze", table, b.constant([2]))
    twice = b.node("Concat", apart, apart, axis=-1)
    return b.node("Reshape", twice, b.constant([0, arch.rotated or arch.qk]))


def _quarter(b: Builder, arch: Architecture, x: ir.Value) -> ir.Value:
    """Every pair turned by a right angle: (x1, x2) -> (-x2, x1)."""
    rotated = arch.rotated or arch.qk
    if arch.rotary == "half":
        second, first = (_cut(b, x, *ends) for ends in ((rotated // 2, rotated), (0, rotated // 2)))
        return b.node("Concat", b.node("Neg", second), first, axis=-1)
    second, first = (_cut(b, x, start, rotated, step=2) for start in (1, 0))
    apart = [b.node("Unsqueeze", each, b.constant([4])) for each in (b.node("Neg", second), first)]
    return b.node("Reshape", b.node("Concat", *apart, axis=-1), b.constant([0, 0, 0, rotated]))
