"""Narrow the heads of a layer to the channels that matter.

    q_h . k_h = sum over channels c of q_hc k_hc        a channel with q_hc = 0 for every input, or k_hc constant,
                                                        moves no softmax: drop it, keep the original scale
    p_h v_h Wo_h = sum over channels c of (p_h v_hc) Wo_hc    a channel with Wv column or Wo row zero is dropped

Heads may keep different widths; the layer uses its widest head's and pads the others with zero columns, which is
exact. Q.K and V widths are independent. A head left with no Q.K channel keeps one of zeros (uniform attention).

Tables of logits that depend on the distance lose the channels of their queries or keys with them.

A rotary embedding turns two channels of a head together, by the same tables in every head of a layer: such a pair goes
where it is dead in all live heads, and its column of the tables with it.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from compactor.passes.base import Applied, NoMatch, Refused, RewritePass, RewriteResult
from compactor.passes.graph.blocks import AttentionBlock, attention_blocks
from compactor.passes.graph.liveness import HeadLiveness
from compactor.passes.graph.matching import Array, Linear, add_initializer, constant, layer_of, redirect
from compactor.passes.graph.rotary import Rotary


@dataclasses.dataclass(frozen=True)
class TrimHeadChannelsPass(RewritePass):
    """Shrink Q.K and V of every attention block to the widest live head.

    A block is left alone, with the reason, where ``remove-dead-heads`` would leave it alone; so is a side that is
    already as narrow as it can be, V while it still has a bias (run ``fold-value-biases`` first), and rotated Q.K whose
    tables are not constants.
    """

    name: ClassVar[str] = "trim-head-channels"

    def call(self, model: ir.Model) -> RewriteResult:
        """Trim the heads of the main graph."""
        applied: list[Applied] = []
        refused = []
        for node, block in attention_blocks(model.graph):
            if isinstance(block, NoMatch):
                refused.append(Refused(layer_of(node), str(block)))
                continue
            live = block.liveness
            if not live.heads.any():
                continue
            live = live.by_group(block.kv_heads)  # heads that share keys keep the same channels
            if block.rotary is None:
                _trim_logits(block, channel_index(live.qk & live.heads[:, None], max(live.qk_width, 1)), applied)
            else:
                try:
                    _trim_rotated(model.graph, block, block.rotary, live, applied)
                except NoMatch as reason:
                    refused.append(Refused(block.layer, str(reason)))
            v_width = max(live.v_width, 1)
            removed_v = live.v.shape[1] - v_width
            if removed_v > 0 and block.value.bias is not None:
                refused.append(Refused(block.layer, "the value bias is not folded"))
            elif removed_v > 0:
                index = channel_index(live.v, v_width)
                rows = _of_queries(index, block, live.v.shape[1])
                _narrow_columns(block.value, index)
                block.output.refill(_take(block.output.weight.T, rows).T, block.output.bias)
                block.node.outputs[0].shape = None
                applied.append(Applied(block.layer, "dead-v-channel", removed_v * block.heads))
        return RewriteResult.of(model, applied, refused)


def _trim_logits(block: AttentionBlock, index: NDArray[np.int64], applied: list[Applied]) -> None:
    """Narrow keys to the columns ``index`` (G*d', -1 for zeros), and queries to those of their groups."""
    removed = block.key.weight.shape[1] - len(index)
    if removed > 0:
        _narrow_columns(block.query, _of_queries(index, block, block.key.weight.shape[1] // block.kv_heads))
        _narrow_columns(block.key, index)
        for term in block.terms:
            term.refill(_take(term.table, index), block.heads)
        applied.append(Applied(block.layer, "dead-qk-channel", removed * block.heads // block.kv_heads))


def _of_queries(index: NDArray[np.int64], block: AttentionBlock, width: int) -> NDArray[np.int64]:
    """Columns (G*d') of keys or values, whose heads are ``width`` wide, as those of the queries (H*d')."""
    groups = index.reshape(block.kv_heads, -1)
    number = np.arange(block.heads) * block.kv_heads // block.heads  # of the group that a query head is in
    shift = (np.arange(block.heads) - number) * width
    return np.where(groups[number] >= 0, groups[number] + shift[:, None], -1).reshape(-1)


def _trim_rotated(
    graph: ir.Graph, block: AttentionBlock, rotary: Rotary, live: HeadLiveness, applied: list[Applied]
) -> None:
    """Narrow queries and keys to the pairs that some live head turns, and to the channels that nobody turns."""
    heads, width = live.qk.shape
    alive = live.qk & live.heads[:, None]
    pairs = rotary.pairs(width)
    kept = alive[:, pairs].any(axis=(0, 2))  # tables of distances may keep either half alone
    turned = rotary.lay_out(pairs[kept])
    others = np.setdiff1d(np.arange(width), pairs)
    rest = channel_index(alive[:, others], int(alive[:, others].sum(axis=1).max(initial=0))).reshape(heads, -1)
    size = len(others)
    columns = [np.where(row >= 0, others[row % size] + head * width, -1) for head, row in enumerate(rest)]
    index = np.stack([np.concatenate([turned + head * width, columns[head]]) for head in range(heads)])
    if index.shape[1] == width:
        return
    tables = [constant(table) for table in rotary.tables]
    if kept.any() and not kept.all():
        if any(table is None for table in tables):
            raise NoMatch("the tables of the rotary embedding are not constants, so rotated channels stay")
        for place, table in enumerate(tables, start=1):
            assert table is not None
            narrow = add_initializer(graph, "rotary_table", np.ascontiguousarray(table[:, kept]))
            for node in rotary.nodes:
                node.replace_input_with(place, narrow)
    for node in rotary.nodes:
        node.outputs[0].shape = None
        node.attributes["rotary_embedding_dim"] = ir.AttrInt64("rotary_embedding_dim", len(turned))
    if not kept.any():
        for node in rotary.nodes:
            assert node.inputs[0] is not None
            redirect(node.outputs[0], node.inputs[0])
        graph.remove(rotary.nodes, safe=True)
    _trim_logits(block, index.reshape(-1) if index.size else np.full(heads, -1), applied)


def channel_index(live: NDArray[np.bool_], width: int) -> NDArray[np.int64]:
    """For each head, ``width`` flat column numbers of its live channels, padded with -1 (a zero column).

    Args:
        live: ``(H, d)`` bool.
        width: At least the live channels of any head.

    Returns:
        ``(H*width,)``.
    """
    heads, size = live.shape
    index = np.full((heads, width), -1, dtype=np.int64)
    for head in range(heads):
        channels = np.flatnonzero(live[head])
        index[head, : len(channels)] = head * size + channels
    return index.reshape(-1)


def _take(matrix: Array, index: NDArray[np.int64]) -> Array:
    return np.where(index >= 0, matrix[..., index], np.zeros((), matrix.dtype))


def _narrow_columns(layer: Linear, index: NDArray[np.int64]) -> None:
    layer.refill(_take(layer.weight, index), None if layer.bias is None else _take(layer.bias, index))
