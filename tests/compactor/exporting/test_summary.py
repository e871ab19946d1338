"""The tables of a manifest."""

from __future__ import annotations

from typing import Any

from compactor.exporting.summary import layer_rows


def attention(path: str, left: int) -> dict[str, Any]:
    sizes = {"heads": [4, left], "qk_width": [8, 8], "v_width": [8, 6]}
    return {"path": path, "kind": "attention", **sizes, "uniform_heads": 0}


def feed_forward(path: str, left: int) -> dict[str, Any]:
    return {"path": path, "kind": "feed_forward", "width": [24, left]}


def test_a_row_holds_both_halves_of_a_layer() -> None:
    rows = layer_rows(
        [
            attention("layers.0.attention", 4),
            feed_forward("layers.0.feed_forward", 7),
            feed_forward("layers.0.feed_forward_2", 24),
            attention("layers.1.attention", 3),
        ]
    )
    assert rows == [
        ("layers.0", "4", "8", "8 -> 6", "24 -> 7"),
        ("layers.0", "-", "-", "-", "24"),
        ("layers.1", "4 -> 3", "8", "8 -> 6", "-"),
    ]


def test_a_cross_attention_has_a_row_of_its_own() -> None:
    rows = layer_rows(
        [
            attention("encoder.layers.0.attention", 4),
            feed_forward("encoder.layers.0.feed_forward", 24),
            attention("decoder.layers.0.attention", 2),
            attention("decoder.layers.0.cross_attention", 1),
            feed_forward("decoder.layers.0.feed_forward", 7),
            attention("decoder.layers.1.cross_attention", 3),
            feed_forward("decoder.layers.1.feed_forward", 0),
        ]
    )
    assert [(name, heads, neurons) for name, heads, _, _, neurons in rows] == [
        ("encoder.layers.0", "4", "24"),
        ("decoder.layers.0", "4 -> 2", "24 -> 7"),
        ("decoder.layers.0 cross", "4 -> 1", "-"),
        ("decoder.layers.1 cross", "4 -> 3", "-"),
        ("decoder.layers.1", "-", "24 -> 0"),
    ]
