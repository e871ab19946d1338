"""Documents of families as ``compactor prune --speedup`` writes them, made up: realistic, always the same."""

from __future__ import annotations

from typing import Any

import numpy as np

MACHINE = {
    "os": "Linux", "kernel": "6.8", "architecture": "x86_64", "cpu_model": "AMD EPYC 9B14",
    "isa": ["avx2", "avx512_vnni"],
    "physical_cores": 4, "logical_cores": 8, "affinity_cores": 8, "cpu_quota": None, "memory_bytes": 32 * 2**30,
    "memory_limit_bytes": None, "virtualised": True, "hypervisor": "KVM", "gpus": [], "load_before": 0.12,
    "versions": {"compactor": "0.1.0"}, "commit": "eb8516b", "dirty": False,
}  # fmt: skip


def make_family(
    *,
    targets: tuple[float, ...] = (1.5, 2.0, 3.0),
    missed: tuple[float, ...] = (),
    metric: str | None = "accuracy",
    layers: int = 6,
    heads: int = 12,
    precision: str = "int8",
    title: str = "bert: 1.5x, 2.0x, 3.0x",
    task: str = "text-classification",
    warnings: tuple[str, ...] = (),
) -> dict[str, Any]:
    """A document of models of ``targets``, of which ``missed`` came out a tenth too slow; without labels no metric."""
    random = np.random.default_rng(17)
    blocks = [
        {"name": f"layers.{layer}.{kind}", "kind": kind, "count": count, "width": width}
        for layer in range(layers)
        for kind, count, width in (("attention", heads, 32), ("feed_forward", 1536, 1))
    ]

    def metrics(value: float, *, base: bool = False) -> dict[str, Any] | None:
        if metric is None:
            return None
        difference = {
            "value": value - 0.9163, "se": 0.0056, "low": value - 0.9273, "high": value - 0.9053, "p": 0.02,
            "changed": 31, "verdict": "worse" if value < 0.90 else "no significant difference",
        }  # fmt: skip
        own = {"value": value, "se": 0.0094, "n": 872, "difference": None if base else difference}
        return {metric: own, "f1": {**own, "value": value - 0.01}}

    models = []
    for target in targets:
        speed = target * (0.9 if target in missed else 1.012)
        sizes = [int(block["count"] * min(1.0, random.uniform(0.2, 1.8) / target)) for block in blocks]
        models.append({
            "name": f"{target}x", "target": target, "predicted": target * 1.003,
            "measured": {
                "speedup": speed, "low": 0.985 * speed, "high": 1.014 * speed, "latency_ms": 9.4 / speed,
                "valid": True},
            "kept": target not in missed, "corrected": target in missed, "loss": 0.004 * (target - 1) ** 2 + 0.001,
            "sizes": sizes, "metrics": metrics(0.9165 - 0.018 * (target - 1) ** 1.6),
        })  # fmt: skip
    tables = {
        f"attention 384 {heads}x32": [[size, 0.6 * (size / heads) ** 0.8] for size in range(heads + 1)],
        "feed_forward 384 1536x1": [
            [size, 0.02 * (size > 0) + 0.9 * size / 1536] for size in (0, 61, 123, 307, 584, 968, 1382, 1536)],
    }  # fmt: skip
    load = {"batch": 1, "seq": 128, "lengths": None, "precision": precision}
    return {
        "schema": 1, "kind": "compactor-speedup", "title": title,
        "command": "compactor prune bert --speedup 1.5,2,3 --data texts.tsv --eval dev.tsv -o family",
        "model": "bert", "data": "texts.tsv", "texts": 2000, "task": task, "load": load,
        "load_words": f"1 x 128 tokens, {precision}", "seed": 17, "trials": 24, "seconds": 1234.5, "tolerance": 0.05,
        "costs": {
            "schema": 1, "kind": "compactor-costs", "load": load, "machine": dict(MACHINE), "fixed_ms": 0.4,
            "dense_ms": 9.4, "tables": tables, "error": 0.021, "graphs": [[9.4, 9.3], [4.1, 4.15], [3.8, 3.79]]},
        "whole": {
            "latency_ms": 9.4, "sizes": [block["count"] for block in blocks],
            "metrics": metrics(0.9140, base=precision == "fp32"), "fp32_metrics": metrics(0.9163, base=True)},
        "metric": metric, "blocks": blocks, "models": models, "verdict": {"valid": True, "reasons": []},
        "machine": dict(MACHINE), "warnings": list(warnings),
        "versions": {"compactor": "0.1.0", "torch": "2.13.0", "onnxruntime": "1.23.0"},
    }  # fmt: skip


def make_unknown_family() -> dict[str, Any]:
    """A family of which every number that may be missing is."""
    document = make_family(metric=None)
    first, second, third = document["models"]
    first["measured"].update(low=None, high=None)
    second.update(measured=None, kept=False, predicted=None)
    third.update(loss=None)
    document["costs"].update(error=None, fixed_ms=None, machine={}, graphs=[])
    document["whole"]["latency_ms"] = None
    document.update(seconds=None, machine=None, verdict={"valid": False, "reasons": ["busy"]})
    return document
