"""Mend what ``torch.onnx.export`` writes, as its users must before ONNX Runtime runs a batch of more than one.

The exporter gives ``RotaryEmbedding`` its tables with a batch of one, (1, S, d/2), and lets them be broadcast. The
standard wants (B, S, d/2), and so does ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from onnx import ModelProto, NodeProto, TensorProto, helper

_ONES = "mended.ones"


def repeat_rotary_tables(model: ModelProto) -> int:
    """Repeat the tables of every ``RotaryEmbedding`` for each example of its batch, in place.

    Tables that many layers share are repeated once. A node that reads tables by position is right already.

    Returns:
        How many nodes were mended.
    """
    graph, mended, repeated = model.graph, 0, dict[str, str]()
    nodes: list[NodeProto] = []
    for node in graph.node:
        if node.op_type == "RotaryEmbedding" and not node.domain and len(node.input) == 3:
            for slot in (1, 2):
                table = node.input[slot]
                if table not in repeated:
                    repeated[table] = f"{table}.repeated"
                    nodes += _repeat(node.input[0], table, repeated[table])
                node.input[slot] = repeated[table]
            mended += 1
        nodes.append(node)
    if mended:
        del graph.node[:]
        graph.node.extend(nodes)
        graph.initializer.append(helper.make_tensor(_ONES, TensorProto.INT64, [2], [1, 1]))
    return mended


def _repeat(states: str, table: str, repeated: str) -> Iterator[Any]:
    """Nodes that give ``table``, (1, S, d/2), the batch of ``states``."""
    yield helper.make_node("Shape", [states], [f"{repeated}.batch"], start=0, end=1)
    yield helper.make_node("Concat", [f"{repeated}.batch", _ONES], [f"{repeated}.shape"], axis=0)
    yield helper.make_node("Expand", [table, f"{repeated}.shape"], [repeated])
