"""Raise a rotary embedding that is spelled out into one ``RotaryEmbedding`` node, by what it computes.

    y = x * cos + turn(x) * sin, however written   ==>   RotaryEmbedding(x, C, S, positions)   C, S (P, r/2)

Models write it in a dozen ways, with halves or neighbours turned, on some of the channels, from angles or from learned
tables, for tokens or for patches of two dimensions. All are a function of a head's channels and the token's place, so
that part of the graph is run: a one in a pair's first channel comes out as the pair's cosine and sine at every place,
and random numbers must come out as they do of ``RotaryEmbedding`` with these tables.

Symbols: B batch, H heads, S sequence, d head width, r rotated channels of a head, P positions.
Reference: Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021, equation 34.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from compactor.passes.base import Applied, NoMatch, Refused, RewritePass, RewriteResult
from compactor.passes.graph.evaluating import evaluate, nodes_behind, spelling
from compactor.passes.graph.heads import before_repeats, normed_heads, without_factors
from compactor.passes.graph.matching import Array, add_initializer, attribute, constant, layer_of, new_node, same_size

_LARGEST = 1 << 28  # bytes of an operand that is computed to see what becomes of it


@dataclasses.dataclass(frozen=True)
class _Turned:
    """What a rotary embedding reads (B, H, S, d), its tables (P, r/2), r, and whether neighbours are turned."""

    source: ir.Value
    cosines: Array
    sines: Array
    rotated: int
    interleaved: bool


@dataclasses.dataclass(frozen=True)
class RaiseRotaryPass(RewritePass):
    """Replace what turns the queries and keys of 4-D ``Attention`` nodes, by ``RotaryEmbedding``.

    Left alone, with the reason: an operand that depends on anything but heads split from one matrix and on lengths,
    that is not a rotation of pairs by the place alone, or whose places nothing limits.

    Attributes:
        positions: P; None where nothing limits the length.
    """

    name: ClassVar[str] = "raise-rotary"
    positions: int | None = None

    def call(self, model: ir.Model) -> RewriteResult:
        """Rewrite the operands of the main graph's attentions."""
        applied, refused = [], []
        reader, writer = _Reader(self.positions), _Writer(model.graph)
        for node in tuple(model.graph):
            if node.op_type != "Attention" or node.domain or attribute(node, "q_num_heads", 0):
                continue
            for operand in node.inputs[:2]:
                try:
                    value = _before_repeats_and_factors(operand)
                    if value is None or not _is_unknown(value):
                        continue
                    writer.write(value, reader.read(value))
                except NoMatch as reason:
                    refused.append(Refused(layer_of(node), f"queries and keys: {reason}"))
                    break
                applied.append(Applied("graph", "raised-rotary", 1))
        if applied:
            RemoveUnusedNodesPass()(model)
        return RewriteResult.of(model, applied, refused)


def _before_repeats_and_factors(operand: ir.Value | None) -> ir.Value | None:
    """An operand before it is multiplied by numbers, and before its heads are repeated for their queries."""
    value, _ = without_factors(before_repeats(without_factors(operand)[0]))
    return value


def _is_unknown(value: ir.Value) -> bool:
    """Whether an operand is neither heads as they were split nor behind a known operator."""
    node = value.producer()
    return node is not None and node.op_type in ("Add", "Concat", "Cast", "Sub")


class _Reader:
    """Tells what turns operands; what is written like an earlier one is computed like it, and not tried again."""

    def __init__(self, positions: int | None) -> None:
        self._positions = positions
        self._known: dict[Hashable, _Turned | NoMatch] = {}

    def read(self, value: ir.Value) -> _Turned:
        """What turns ``value``. Raises NoMatch."""
        source = _split_value(value)
        if source.shape is None or len(source.shape) != 4:
            raise NoMatch(f"the shape of '{source.name}' is not known")
        told = spelling(value, {**_inputs(value), source: "source"})
        key = (told, tuple(source.shape), source.dtype)
        if key not in self._known:
            try:
                self._known[key] = _match(value, source, self._positions)
            except NoMatch as reason:
                self._known[key] = reason
        found = self._known[key]
        if isinstance(found, NoMatch):
            raise NoMatch(str(found))
        return dataclasses.replace(found, source=source)


def _match(value: ir.Value, source: ir.Value, positions: int | None) -> _Turned:
    """What turns ``value``, which is computed from ``source`` (B, H, S, d). Raises NoMatch."""
    for node in nodes_behind(value, {source: None, **_inputs(value)}):
        if node.op_type != "Shape" and any(v is not None and v.is_graph_input() for v in node.inputs):
            raise NoMatch(f"'{node.op_type}' reads an input of the model")
    assert source.shape is not None
    batch, heads, length, width = source.shape
    if not isinstance(heads, int) or not isinstance(width, int):
        raise NoMatch("the head count or the width of a head is not known")
    places = length if isinstance(length, int) else positions
    if places is None:
        raise NoMatch("nothing limits the positions")
    dtype = np.float32 if source.dtype is None else source.dtype.numpy()
    if heads * width * places * np.dtype(dtype).itemsize > _LARGEST:
        raise NoMatch(f"{places} positions are too many to try")

    def run(x: Array) -> Array:
        given: dict[ir.Value, Array] = {source: x}
        given.update({graph_input: _fitting(graph_input, len(x), x.shape[2]) for graph_input in _inputs(value)})
        y = evaluate(value, given)
        if y.shape != x.shape:
            raise NoMatch(f"an operand of shape {x.shape} comes out as {y.shape}")
        return y

    random = np.random.default_rng(0)
    numbers = random.standard_normal((1, heads, places, width)).astype(dtype)
    turned = run(numbers)
    found = _tables(source, run, numbers, turned)
    if not _agree(turned, _rotate(numbers, found)):
        raise NoMatch("they are not pairs of channels turned by the place of the token")
    few = min(3, places) if not isinstance(length, int) else places
    examples = random.standard_normal((2 if not isinstance(batch, int) else batch, heads, few, width)).astype(dtype)
    if not _agree(run(examples), _rotate(examples, found)):
        raise NoMatch("the angles depend on the length of the text, or on the example")
    return found


def _agree(a: Array, b: Array) -> bool:
    """Whether two results are equal but for the order in which they were rounded."""
    tolerance = 64 * float(np.finfo(a.dtype).eps)
    return np.allclose(a, b, rtol=tolerance, atol=tolerance)


def _split_value(value: ir.Value) -> ir.Value:
    """The one (B, H, S, d) value of heads split from a matrix that ``value`` is computed from. Raises NoMatch."""
    found: dict[ir.Value, None] = {}
    pending, seen = [value], {value}
    while pending:
        current = pending.pop()
        try:
            normed_heads(current)
            found[current] = None
            continue
        except NoMatch:
            pass
        node = current.producer()
        if node is None or node.op_type == "Shape":
            continue
        for operand in node.inputs:
            if operand is not None and operand not in seen and constant(operand) is None:
                seen.add(operand)
                pending.append(operand)
    if len(found) != 1:
        raise NoMatch(f"they are computed from {len(found)} matrices split into heads")
    return next(iter(found))


def _inputs(value: ir.Value) -> dict[ir.Value, None]:
    """The inputs of the graph that ``value`` belongs to."""
    node = value.producer()
    assert node is not None and isinstance(node.graph, ir.Graph)
    return dict.fromkeys(node.graph.inputs)


def _fitting(graph_input: ir.Value, batch: int, length: int) -> Array:
    """Zeros of the shape that an input has with ``length`` tokens; nothing but its shape is read."""
    shape = graph_input.shape if graph_input.shape is not None else ()
    sizes = [size if isinstance(size, int) else (batch if axis == 0 else length) for axis, size in enumerate(shape)]
    dtype = np.float32 if graph_input.dtype is None else graph_input.dtype.numpy()
    return np.zeros(sizes, dtype)


def _tables(source: ir.Value, run: Any, numbers: Array, turned: Array) -> _Turned:
    """Tables of what ``run`` does to the pairs of a head, told from the first head. Raises NoMatch."""
    moved = (numbers != turned).any(axis=(0, 1, 2))
    if not moved.any():
        raise NoMatch("they do not depend on the place")
    if not moved[0]:
        raise NoMatch("the channels that depend on the place are not the first ones")
    one = np.zeros_like(numbers)
    one[..., 0] = 1
    partners = np.flatnonzero(run(one).any(axis=(0, 1, 2))[1:]) + 1
    if len(partners) != 1:
        raise NoMatch("the channels are not turned in pairs")
    last = int(np.flatnonzero(moved)[-1])
    rotated = last // 2 * 2 + 2 if partners[0] == 1 else 2 * int(partners[0])  # the slowest pairs may seem to stand
    if not last < rotated <= len(moved):
        raise NoMatch("the channels that depend on the place are not the first ones, in pairs")
    interleaved = rotated > 2 and partners[0] == 1
    pairs = _pairs(rotated, interleaved=interleaved)
    firsts = np.zeros_like(numbers)
    firsts[..., pairs[:, 0]] = 1
    result = run(firsts)[0, 0]
    return _Turned(source, result[:, pairs[:, 0]], result[:, pairs[:, 1]], rotated, interleaved)


def _pairs(rotated: int, *, interleaved: bool) -> NDArray[np.int64]:
    """``(r/2, 2)``: the channels that are turned together."""
    numbers = np.arange(rotated, dtype=np.int64)
    return numbers.reshape(-1, 2) if interleaved else numbers.reshape(2, -1).T


def _rotate(x: NDArray[Any], found: _Turned) -> NDArray[Any]:
    """``RotaryEmbedding`` of ``x`` (1, H, S, d) at the places 0, 1, 2, ..."""
    pairs = _pairs(found.rotated, interleaved=found.interleaved)
    first, second = x[..., pairs[:, 0]], x[..., pairs[:, 1]]
    cosines, sines = found.cosines[: x.shape[2]], found.sines[: x.shape[2]]
    y = x.copy()
    y[..., pairs[:, 0]] = first * cosines - second * sines
    y[..., pairs[:, 1]] = first * sines + second * cosines
    return y


class _Writer:
    """Writes nodes, and tables and places once for all that share them."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._tables: dict[bytes, ir.Value] = {}
        self._places: list[tuple[ir.Shape, ir.Value]] = []

    def write(self, value: ir.Value, found: _Turned) -> None:
        """Let all that reads ``value`` read a ``RotaryEmbedding`` of its source."""
        node = value.producer()
        assert node is not None
        places = self._of(found.source)
        tables = [self._table(rows) for rows in (found.cosines, found.sines)]
        options: dict[str, Any] = {"interleaved": 1} if found.interleaved else {}
        if found.source.shape is not None and found.rotated != found.source.shape[3]:
            options["rotary_embedding_dim"] = found.rotated
        turned = new_node("RotaryEmbedding", [found.source, *tables, places], **options)
        turned.outputs[0].type, turned.outputs[0].shape = found.source.type, found.source.shape
        self._graph.insert_after(node, turned)
        for usage in tuple(value.uses()):
            usage.node.replace_input_with(usage.idx, turned.outputs[0])

    def _table(self, rows: Array) -> ir.Value:
        key = rows.tobytes()
        if key not in self._tables:
            self._tables[key] = add_initializer(self._graph, "rotary_table", rows)
        return self._tables[key]

    def _of(self, source: ir.Value) -> ir.Value:
        """Places (B, S) of the tokens of ``source`` (B, H, S, d)."""
        shape = source.shape
        assert shape is not None
        for known, made in self._places:
            if all(same_size(known[axis], shape[axis]) for axis in (0, 2)):
                return made
        sizes = [self._size(shape[0], 0), self._size(shape[2], 1)]
        zero, one = (add_initializer(self._graph, f"place_{n}", np.array(n, dtype=np.int64)) for n in (0, 1))
        length = new_node("Squeeze", [sizes[1].outputs[0]])
        span = new_node("Range", [zero, length.outputs[0], one])
        both = new_node("Concat", [size.outputs[0] for size in sizes], axis=0)
        places = new_node("Expand", [span.outputs[0], both.outputs[0]])
        for node in (*sizes, length, span, both, places):
            node.outputs[0].type = ir.TensorType(ir.DataType.INT64)
        places.outputs[0].shape = ir.Shape([shape[0], shape[2]])
        self._graph.insert_before(self._graph[0], [*sizes, length, span, both, places])
        self._places.append((shape, places.outputs[0]))
        return places.outputs[0]

    def _size(self, size: int | ir.SymbolicDim, axis: int) -> ir.Node:
        """A node for the size (1,) of the batch or of the sequence, told from an input of the model."""
        if isinstance(size, int):
            number = add_initializer(self._graph, "place_count", np.array([size], dtype=np.int64))
            return new_node("Identity", [number])
        for value in self._graph.inputs:
            if value.shape is not None and len(value.shape) > axis and same_size(value.shape[axis], size):
                return new_node("Shape", [value], start=axis, end=axis + 1)
        raise NoMatch(f"no input has an axis '{size}'")
