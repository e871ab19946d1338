"""Which channels, heads and neurons can change the output: the dead-structure algebra on arrays.

One attention head, with row vectors x (query side) and z (key and value side), its scale s, and softmax over keys:

    y(x) = sum over keys j of  softmax_j( s (x Wq + bq) . (z_j Wk + bk) ) (z_j Wv + bv) Wo  +  bo

* ``bk`` shifts a whole row of logits, which softmax ignores. So a K channel whose column of ``Wk`` is zero never
  matters; neither does a Q channel that is identically zero (its column of ``Wq`` *and* its ``bq``).
* softmax sums to one, so ``bv Wo`` is a constant of the output: a V channel whose column of ``Wv`` is zero is a
  constant, and one whose row of ``Wo`` is zero is never read.
* a rotary embedding turns the channels of a pair into each other, by an angle of the position: a pair is alive when Q
  and K both have something in it, in any of its two channels, and a constant ``bk`` is something.
* logits that depend on the distance add ``q . E`` for rows E of a table, or ``k . E``: a channel of Q whose column of E
  is not zero is alive without K, and one of K, for which ``bk`` is something then, without Q.
* a head without a live V channel is dead. A head without a live Q.K channel is *not*: it is the (masked) mean of V.

Symbols: D model width, H heads, d head width, N feed-forward width; weights are (in, out).
The graph passes and ``compactor inspect`` share these functions, so a dry run and an export cannot disagree.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.generic]
Columns = NDArray[np.int64]

_LENGTH = 128  # tokens of the text that the way of writing uneven groups is chosen for


@dataclasses.dataclass(frozen=True)
class HeadLiveness:
    """What is alive in one attention block.

    Attributes:
        qk: ``(H, d)`` bool, the query/key channels that can change the logits.
        v: ``(H, dv)`` bool, the value channels that can change the output other than by a constant.
    """

    qk: NDArray[np.bool_]
    v: NDArray[np.bool_]

    @property
    def heads(self) -> NDArray[np.bool_]:
        """``(H,)`` bool: heads that stay."""
        return np.asarray(self.v.any(axis=1))

    @property
    def uniform(self) -> NDArray[np.bool_]:
        """``(H,)`` bool: live heads without a live Q.K channel, which average V over the visible keys."""
        return np.asarray(self.heads & ~self.qk.any(axis=1))

    @property
    def qk_width(self) -> int:
        """The Q.K width the layer needs: the widest live head's."""
        return int(self.qk[self.heads].sum(axis=1).max(initial=0))

    @property
    def v_width(self) -> int:
        """The V width the layer needs: the widest live head's."""
        return int(self.v[self.heads].sum(axis=1).max(initial=0))

    def by_group(self, kv_heads: int) -> HeadLiveness:
        """What is alive in any live head that shares a key/value head: ``(G, d)`` and ``(G, dv)``."""

        def joined(side: NDArray[np.bool_]) -> NDArray[np.bool_]:
            alive = side & self.heads[:, None]
            return np.asarray(alive.reshape(kv_heads, -1, side.shape[1]).any(axis=1))

        return HeadLiveness(joined(self.qk), joined(self.v))


def repeat_heads(array: Array, kv_heads: int, heads: int) -> Array:
    """The last axis (G*d) of an array as (H*d): each head as often as there are query heads that share it."""
    split = array.reshape(*array.shape[:-1], kv_heads, -1)
    return split.repeat(heads // kv_heads, axis=-2).reshape(*array.shape[:-1], -1)


def head_liveness(
    query: Array,
    query_bias: Array | None,
    key: Array,
    value: Array,
    output: Array,
    *,
    heads: int,
    kv_heads: int | None = None,
    key_bias: Array | None = None,
    partners: NDArray[np.int64] | None = None,
    query_table: Array | None = None,
    key_table: Array | None = None,
) -> HeadLiveness:
    """Find the live channels of an attention block.

    Args:
        query: ``(D, H*d)`` weight of the query projection.
        query_bias: ``(H*d,)`` bias of the query projection, if it has one.
        key: ``(D, H*d)`` weight of the key projection; its bias matters in rotated channels alone.
        value: ``(D, H*dv)`` weight of the value projection.
        output: ``(H*dv, D)`` weight of the output projection.
        heads: H.
        kv_heads: G, where each key and value head is shared by H/G query heads: K and V are (D, G*d) then.
        key_bias: ``(H*d,)`` bias of the key projection, if it has one.
        partners: ``(d,)`` the channel of a head that each is rotated with, -1 for none; None without a rotary
            embedding.
        query_table: ``(R, H*d)`` what queries are multiplied by for each distance, if by anything.
        key_table: ``(R, H*d)`` the same for keys.
    """
    if kv_heads is not None and kv_heads != heads:
        key, value = (repeat_heads(array, kv_heads, heads) for array in (key, value))
        key_bias = None if key_bias is None else repeat_heads(key_bias, kv_heads, heads)
    query_live = query.any(axis=0)
    if query_bias is not None:
        query_live = query_live | (query_bias != 0)
    query_live, key_live = query_live.reshape(heads, -1), key.any(axis=0).reshape(heads, -1)
    if partners is not None:
        rotated = partners >= 0
        if key_bias is not None:
            key_live = key_live | ((key_bias != 0).reshape(heads, -1) & rotated)
        query_live, key_live = (side | (side[:, partners] & rotated) for side in (query_live, key_live))
    qk = query_live & key_live
    if query_table is not None:
        qk = qk | (query_live & query_table.any(axis=0).reshape(heads, -1))
    if key_table is not None:
        driven = key.any(axis=0) if key_bias is None else key.any(axis=0) | (key_bias != 0)
        qk = qk | (driven & key_table.any(axis=0)).reshape(heads, -1)
    return HeadLiveness(
        qk=qk,
        v=(value.any(axis=0) & output.any(axis=1)).reshape(heads, -1),
    )


def arrange_heads(live: NDArray[np.bool_], kv_heads: int, *, width: int, inner: int) -> tuple[Columns, Columns]:
    """Which query heads and which key/value heads to write, in order; -1 is a query head of zeros.

    Every key/value head must serve as many queries as any other. Groups of which different numbers live are cut into
    pieces of one size: a key/value head is written once for each piece, and the last is filled up with heads of zeros.
    The size is the one that costs the least multiply-adds for a token of a text of 128.

    Args:
        live: ``(H,)`` query heads that stay.
        kv_heads: G.
        width: d.
        inner: D.

    Returns:
        Numbers of query heads (H',) and of key/value heads (G',); H' is a multiple of G'.
    """
    groups = [np.flatnonzero(group) + i * len(group) for i, group in enumerate(live.reshape(kv_heads, -1))]

    def pieces(size: int) -> list[int]:
        return [-(-len(group) // size) for group in groups]

    def cost(size: int) -> int:
        written = sum(pieces(size))
        queries = written * size
        return int(2 * width * ((queries + written) * inner + queries * _LENGTH))

    size = min(range(1, max(map(len, groups)) + 1), key=cost)
    queries, keys = [], []
    for number, (group, count) in enumerate(zip(groups, pieces(size), strict=True)):
        queries.append(np.pad(group, (0, count * size - len(group)), constant_values=-1))
        keys += [number] * count
    return np.concatenate(queries), np.array(keys, dtype=np.int64)


def neuron_liveness(inputs: list[Array], output: Array) -> NDArray[np.bool_]:
    """Find the live neurons of a feed-forward block.

    Args:
        inputs: ``(D, N)`` weights of the projections into the activation (two for a gated block).
        output: ``(N, D)`` weight of the projection out of it.

    Returns:
        ``(N,)`` bool. A neuron is dead when nothing reads it, or when every input column is zero, which makes it
        the constant of its biases. (The graph pass finds more in gated blocks, where one exact zero is enough.)
    """
    read = output.any(axis=1)
    driven = np.any([weight.any(axis=0) for weight in inputs], axis=0)
    return np.asarray(read & driven)
