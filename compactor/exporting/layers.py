"""Sizes of every attention and feed-forward sublayer, before and after."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from compactor.passes.graph.blocks import AttentionBlock, attention_blocks, feed_forward_blocks

Sizes = dict[str, dict[str, int]]


def measure_layers(model: ir.Model) -> Sizes:
    """Head counts and widths by sublayer label, in graph order.

    Attention: ``heads``, ``kv_heads``, ``qk_width``, ``v_width``, ``uniform_heads``; feed-forward: ``width``. Blocks
    that do not match the canonical form have no weights to measure and are left out: see ``unrecognised.py``.
    """
    order = {node: index for index, node in enumerate(model.graph)}
    found: list[tuple[int, str, dict[str, int]]] = []
    for node, block in attention_blocks(model.graph):
        if isinstance(block, AttentionBlock):
            sizes = {
                "heads": block.heads,
                "kv_heads": block.kv_heads,
                "qk_width": block.query.weight.shape[1] // block.heads,
                "v_width": block.value.weight.shape[1] // block.kv_heads,
                "uniform_heads": int(block.liveness.uniform.sum()),
            }
            found.append((order[node], block.layer, sizes))
    for feed_forward in feed_forward_blocks(model.graph):
        found.append((order[feed_forward.output.matmul], feed_forward.layer, {"width": feed_forward.width}))
    return {layer: sizes for _, layer, sizes in sorted(found, key=lambda entry: entry[0])}


def pair_layers(before: Sizes, after: Sizes) -> list[dict[str, Any]]:
    """The manifest's ``layers``: one entry for every sublayer of the original, also where nothing is left."""
    entries: list[dict[str, Any]] = []
    for layer, sizes in before.items():
        left = after.get(layer, {})
        entry: dict[str, Any] = {"path": layer, "kind": "attention" if "heads" in sizes else "feed_forward"}
        for name, size in sizes.items():
            if name == "kv_heads" and size == sizes["heads"]:
                continue
            if name == "uniform_heads":
                entry[name] = left.get(name, 0)
            else:
                entry[name] = [size, left.get(name, 0)]
        entries.append(entry)
    return entries
