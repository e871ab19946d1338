"""The rotary embedding of an attention: the nodes that turn its queries and keys by their positions."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from compactor.passes.base import NoMatch
from compactor.passes.graph.matching import attribute, sole_consumer


@dataclasses.dataclass(frozen=True)
class Rotary:
    """The two ``RotaryEmbedding`` nodes (3-D) of an attention, which read the same tables by position."""

    query: ir.Node
    key: ir.Node

    @property
    def nodes(self) -> tuple[ir.Node, ir.Node]:
        """Both."""
        return self.query, self.key

    @property
    def tables(self) -> tuple[ir.Value, ir.Value]:
        """Cosines and sines, ``(P, r/2)``."""
        cosines, sines = self.query.inputs[1:3]
        assert cosines is not None and sines is not None
        return cosines, sines

    def pairs(self, width: int) -> NDArray[np.int64]:
        """``(r/2, 2)``: the channels of a head of ``width`` that are turned together, by their column in the tables."""
        rotated = int(attribute(self.query, "rotary_embedding_dim", 0)) or width
        numbers = np.arange(rotated, dtype=np.int64)
        return numbers.reshape(-1, 2) if attribute(self.query, "interleaved", 0) else numbers.reshape(2, -1).T

    def lay_out(self, pairs: NDArray[np.int64]) -> NDArray[np.int64]:
        """The channels of ``pairs`` (n, 2) in the order in which a head holds them, (2n,)."""
        return pairs.reshape(-1) if attribute(self.query, "interleaved", 0) else pairs.T.reshape(-1)

    def pin(self, width: int) -> None:
        """State how many channels of a head of ``width`` are turned, so that others can stand behind them."""
        for node in self.nodes:
            if not attribute(node, "rotary_embedding_dim", 0):
                node.attributes["rotary_embedding_dim"] = ir.AttrInt64("rotary_embedding_dim", width)

    def partners(self, width: int) -> NDArray[np.int64]:
        """``(width,)``: the channel that each is turned with, -1 for one that is not turned."""
        found = np.full(width, -1, dtype=np.int64)
        first, second = self.pairs(width).T
        found[first], found[second] = second, first
        return found


def match_rotary(node: ir.Node) -> Rotary | None:
    """What turns the queries and keys of an attention. Raises NoMatch where it does not turn both alike."""
    query, key = (_turning(value) for value in node.inputs[:2])
    if query is None and key is None:
        return None
    if query is None or key is None:
        raise NoMatch("a rotary embedding turns the queries or the keys alone")
    names = ("interleaved", "rotary_embedding_dim")
    if list(query.inputs[1:]) != list(key.inputs[1:]) or any(
        attribute(query, name, 0) != attribute(key, name, 0) for name in names
    ):
        raise NoMatch("rotary embeddings turn the queries and the keys in different ways")
    for turned in (query, key):
        sole_consumer(turned.outputs[0])
    return Rotary(query, key)


def _turning(value: ir.Value | None) -> ir.Node | None:
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == "RotaryEmbedding" and not node.domain else None
