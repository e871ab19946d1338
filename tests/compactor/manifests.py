"""A small valid manifest for tests, as an export of a two-layer model would write it."""

from __future__ import annotations

from typing import Any


def example_manifest() -> dict[str, Any]:
    """A new copy each time: tests break it on purpose."""
    return {
        "schema": 1,
        "source": {
            "path_name": "pruned-model",
            "format": "nn_pruning",
            "files": [{"name": "config.json", "sha256": "0" * 64, "bytes": 2}],
            "notes": ["2 mask_scores tensors folded"],
        },
        "versions": {"python": "3.11.7", "compactor": "0.1.0"},
        "task": "text-classification",
        "target": "cpu",
        "recipe": {
            "precision": ["fp32", "int8"],
            "layout": "hf",
            "pack": True,
            "passes": ["fold-value-biases", "remove-dead-heads"],
            "opset": 23,
        },
        "layers": [
            {
                "path": "layers.0.attention",
                "kind": "attention",
                "heads": [12, 3],
                "qk_width": [64, 40],
                "v_width": [64, 64],
                "uniform_heads": 1,
            },
            {"path": "layers.0.feed_forward", "kind": "feed_forward", "width": [3072, 187]},
            {
                "path": "layers.1.attention",
                "kind": "attention",
                "heads": [12, 0],
                "qk_width": [64, 0],
                "v_width": [64, 0],
            },
            {"path": "layers.1.feed_forward", "kind": "feed_forward", "width": [3072, 3072]},
        ],
        "stages": [
            {
                "name": "masked",
                "file": None,
                "bytes": 4_000_000,
                "macs_per_token": 1_000_000,
                "parameters": 1_000_000,
                "operators": {"Attention": 2},
                "executed_operators": None,
            },
            {
                "name": "compact",
                "file": "onnx/model.onnx",
                "bytes": 1_000_000,
                "macs_per_token": 250_000,
                "parameters": 250_000,
                "operators": {"Attention": 1, "MatMul": 5},
                "executed_operators": {"Attention": 1, "com.microsoft::FusedMatMul": 5},
            },
            {
                "name": "int8",
                "file": "onnx/model_quantized.onnx",
                "bytes": 300_000,
                "macs_per_token": 250_000,
                "parameters": 250_000,
                "operators": {"Attention": 1, "com.microsoft::DynamicQuantizeMatMul": 5},
                "executed_operators": {"Attention": 1, "com.microsoft::DynamicQuantizeMatMul": 5},
            },
        ],
        "rules": [
            {"pass": "remove-dead-heads", "layer": "layers.0.attention", "rule": "dead-head", "count": 9},
            {"pass": "remove-dead-neurons", "layer": "layers.0.feed_forward", "rule": "zero-output", "count": 2885},
            {"pass": "remove-empty-sublayers", "layer": "layers.1.attention", "rule": "all-heads-dead", "count": 1},
            {"pass": "clean-up", "layer": None, "rule": "unused-node", "count": 4},
        ],
        "refused": [{"pass": "remove-dead-neurons", "layer": "layers.1.feed_forward", "reason": "no neuron is dead"}],
        "verification": {
            "passed": True,
            "max_abs_diff": 1.5e-6,
            "tolerance": {"compact": {"atol": 1e-4, "rtol": 1e-4}},
            "cases": [
                {
                    "stage": "compact",
                    "case": "right-32",
                    "output": "logits",
                    "optimizations": True,
                    "max_abs_diff": 1.5e-6,
                    "max_rel_diff": 2e-5,
                    "argmax_agreement": 1.0,
                },
                {
                    "stage": "int8",
                    "case": "right-32",
                    "output": "logits",
                    "optimizations": True,
                    "max_abs_diff": 0.02,
                    "max_rel_diff": 0.1,
                    "argmax_agreement": 0.75,
                },
            ],
        },
    }
