"""What is told of a finished run: ``training.json`` and its page."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compactor.trainer.config import PruneConfig
from compactor.trainer.runs import SCHEMA, Run

RECORD = "training.json"
PAGE = "training.html"


def make_record(
    run: Run,
    trainer: Any,
    task_data: Any,
    metrics: Mapping[str, Any],
    teacher_metrics: Mapping[str, Any] | None,
    teacher: Path | None,
    notes: list[str],
) -> dict[str, Any]:
    """The content of ``training.json``; ``docs/training.md`` lists its fields."""
    from compactor.benching.card import versions

    pruner, history, config = trainer.pruner, trainer.history, run.config
    layers = [] if pruner is None else [dataclasses.asdict(layer) for layer in pruner.layers()]
    heads = [head for layer in layers if layer["heads"] is not None for head in layer["heads"]]
    neurons = [layer["neurons"] for layer in layers if layer["neurons"] is not None]
    phases = [] if pruner is None or pruner.fixed else pruner.plan.schedule.phases()
    return {
        "schema": SCHEMA,
        "kind": "compactor-training",
        "title": f"{run.model.name}: {config.method}",
        "method": config.method,
        "command": run.command,
        "settings": config.to_json(),
        "model": run.model.name,
        "teacher": None if teacher is None else teacher.name,
        "task": task_data.task,
        "metric": task_data.metric,
        "steps": trainer.state.max_steps,
        "phases": [{"name": name, "first": first, "last": last} for name, first, last in phases],
        "log": [] if history is None else [finite(row) for row in history.log],
        "evaluations": [] if history is None else [finite(row) for row in history.evaluations],
        "final": {
            "metrics": metrics,
            "teacher_metrics": teacher_metrics,
            "density": 1.0 if pruner is None else pruner.density(),
            "density_attention": 1.0 if pruner is None else pruner.density("attention"),
            "density_feed_forward": 1.0 if pruner is None else pruner.density("feed_forward"),
            "weights": [0, 0] if pruner is None else [pruner.live_weights(), pruner.all_weights()],
            "lambda": None if pruner is None or pruner.steering is None else pruner.steering.value,
            "heads": [sum(heads), len(heads)],
            "neurons": [sum(alive for alive, _ in neurons), sum(count for _, count in neurons)],
            "seconds": 0.0 if history is None else history.seconds,
            "layers": layers,
        },
        "looks": [] if pruner is None else [dataclasses.asdict(look) for look in pruner.looks],
        "notes": notes,
        "warnings": _warnings(config, pruner),
        "versions": versions(),
    }


def _warnings(config: PruneConfig, pruner: Any) -> list[str]:
    if pruner is None:
        return []
    warnings = []
    density = pruner.density()
    if density == 1:
        warnings.append("nothing was pruned: raise λ (--lambda), train longer, or pass --target-density")
    elif config.target_density is not None and abs(density - config.target_density) > 0.02:
        warnings.append(
            f"{100 * density:.1f} % of the linear weights are left; {100 * config.target_density:.1f} % were asked for"
        )
    empty = [f"{layer.stack} {layer.name}" for layer in pruner.layers() if layer.density == 0]
    if empty:
        warnings.append(f"nothing is left of {', '.join(empty)}")
    return warnings


def finite(value: Any) -> Any:
    """NaN and infinities as null: JSON has none."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """The record, and its page where the libraries that draw it are installed."""
    (folder / RECORD).write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    from compactor.reporting.training import render_training

    try:
        page = render_training(record)
    except ImportError:  # without jinja2 or matplotlib
        return
    (folder / PAGE).write_text(page, encoding="utf-8")
