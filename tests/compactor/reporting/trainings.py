"""Training documents as ``compactor prune`` writes them, made up: complete, realistic, always the same."""

from __future__ import annotations

from typing import Any

import numpy as np

PARTS = ("task_loss", "distillation_loss", "regularization")


def make_training(
    *,
    title: str = "sst2-hybrid",
    method: str = "hybrid",
    metric: str = "accuracy",
    stacks: tuple[str, ...] = ("encoder",),
    layers: int = 6,
    heads: int = 12,
    steps: int = 1500,
    every: int = 25,
    evaluations: int = 10,
    stopped: int | None = None,
    teacher: bool = True,
    notes: tuple[str, ...] = ("3 training texts were cut to 128 tokens",),
    warnings: tuple[str, ...] = (),
) -> dict[str, Any]:
    """A document of ``steps`` steps, logged ``every`` so many; ``stopped`` at a step, it has no final model."""
    random = np.random.default_rng(17)
    warm, cool = steps // 10, steps - steps // 4
    end = steps if stopped is None else stopped

    def threshold(step: int) -> float:
        left = 1 - min(max((step - warm) / (cool - warm), 0), 1)
        return 0.1 * (1 - left**3)

    def density(step: int) -> float:
        return round(1 - 6.6 * threshold(step), 4)

    log = [
        {
            "step": step, "loss": 0.9, "task_loss": 0.25 + float(random.gamma(2, 0.04)),
            "distillation_loss": 0.1 + 3 * threshold(step) + float(random.gamma(2, 0.05)) if teacher else None,
            "regularization": 100 * threshold(step), "threshold": threshold(step), "lambda": 200 * threshold(step),
            "density": density(step), "density_attention": 1.2 * density(step) - 0.2 * density(step) ** 2,
            "density_feed_forward": 0.9 * density(step) + 0.1, "heads": 72 - int(400 * threshold(step)),
            "learning_rate": 3e-5, "seconds": 0.8 * step,
        }
        for step in range(every, end + 1, every)
    ]  # fmt: skip
    steps_evaluated = [round(steps * (index + 1) / evaluations) for index in range(evaluations)]
    found = [
        {
            "step": step, "density": density(step), "loss": 0.31,
            "metrics": {metric: 0.87 - 0.3 * threshold(step) + 0.01 * float(random.normal()), "f1": 0.85},
        }
        for step in steps_evaluated
        if step <= end
    ]  # fmt: skip
    document: dict[str, Any] = {
        "schema": 1, "kind": "compactor-training", "title": title, "method": method,
        "command": f"compactor prune model --method {method} --data train.tsv --eval dev.tsv -o out --seed 17",
        "settings": {
            "learning_rate": 3e-5, "mask_learning_rate": 0.01, "batch_size": 32, "block": [32, 32], "resumed": False,
            "target_density": None, "regularization": {"attention": 20.0, "feed_forward": 20.0},
        },
        "model": "model", "teacher": "teacher" if teacher else None, "task": "text-classification", "metric": metric,
        "phases": [
            {"name": "warm-up", "first": 0, "last": warm},
            {"name": "pruning", "first": warm, "last": cool},
            {"name": "cool-down", "first": cool, "last": steps},
        ],
        "log": log, "evaluations": found, "final": None, "notes": list(notes), "warnings": list(warnings),
        "versions": {"compactor": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"},
    }  # fmt: skip
    if stopped is None:
        rows = [row for stack in stacks for layer in range(layers) for row in _sublayers(stack, layer, heads, random)]
        document["final"] = {
            "metrics": {
                "f1": {"value": 0.853, "se": 0.0121, "n": 872},
                metric: {"value": 0.8612, "se": 0.0117, "n": 872},
            },
            "teacher_metrics": {metric: {"value": 0.8716, "se": 0.0113, "n": 872}} if teacher else None,
            "density": 0.34, "weights": [3_620_000, 10_646_000], "seconds": 1234.5, "layers": rows,
            "heads": [sum(count(row["heads"] or ()) for row in rows) for count in (sum, len)],
            "neurons": [sum(row["neurons"][part] for row in rows if row["neurons"]) for part in (0, 1)],
        }  # fmt: skip
    return document


def make_bare() -> dict[str, Any]:
    """A run that was stopped before anything was known."""
    return make_training(stopped=0) | {"log": [], "evaluations": [], "phases": [], "settings": {}, "versions": {}}


def make_unknown() -> dict[str, Any]:
    """A run in which every number that may be missing is."""
    document = make_training()
    for entry in document["log"]:
        entry.update(dict.fromkeys(set(entry) - {"step"}))
    for evaluation in document["evaluations"]:
        evaluation.update(density=None, loss=None, metrics=dict.fromkeys(evaluation["metrics"]))
    final = document["final"]
    final["metrics"]["accuracy"].update(value=None, se=None)
    final.update(teacher_metrics=None, density=None, weights=None, heads=None, neurons=None, seconds=None)
    for layer in final["layers"]:
        layer.update(density=None, heads=None, neurons=None)
    return document


def _sublayers(stack: str, layer: int, heads: int, random: np.random.Generator) -> list[dict[str, Any]]:
    kinds = ("attention", "cross_attention") if stack == "decoder" else ("attention",)
    rows: list[dict[str, Any]] = [
        {
            "name": f"{stack}.layer.{layer}.{kind}", "stack": stack, "kind": kind, "density": 0.2,
            "heads": [bool(alive) for alive in random.random(heads) < 0.4], "neurons": None,
        }
        for kind in kinds
    ]  # fmt: skip
    alive = int(random.integers(1, 1536))
    feed = {"kind": "feed_forward", "density": alive / 1536, "heads": None, "neurons": [alive, 1536]}
    return [*rows, {"name": f"{stack}.layer.{layer}.feed_forward", "stack": stack, **feed}]
