"""What is told of a family of models: ``speedup.json`` and its page."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compactor.benching.card import versions
from compactor.speedup.costs import Costs
from compactor.speedup.promise import FP32, TOLERANCE, WHOLE
from compactor.speedup.settings import SpeedSettings
from compactor.speedup.shop import Member
from compactor.speedup.subject import Subject
from compactor.speedup.units import Unit
from compactor.trainer.records import finite

RECORD = "speedup.json"
PAGE = "speedup.html"
SCHEMA = 1


def make_record(
    *,
    model: Path,
    data: Path,
    subject: Subject,
    units: Sequence[Unit],
    settings: SpeedSettings,
    costs: Costs,
    members: Sequence[Member],
    whole_ms: float,
    metric: str | None,
    metrics: Mapping[str, Any],
    report: Mapping[str, Any],
    steps: Mapping[str, Any] | None,
    command: str,
    seconds: float,
) -> dict[str, Any]:
    """The content of ``speedup.json``; ``docs/training.md`` lists its fields."""
    whole = [unit.count for unit in units]
    warnings = []
    if costs.error > 0.1:
        warnings.append(
            f"the sum of what blocks take misses a whole graph by up to {100 * costs.error:.0f} %: the machine was busy"
        )
    verdict = report["verdict"]
    if not verdict["valid"]:
        warnings.append("the measurement of speed is INVALID: " + "; ".join(verdict["reasons"]))
    for member in members:
        if not member.kept and member.measured is not None:
            warnings.append(
                f"{member.folder.name} is {member.measured.speedup:.2f} times as fast, "
                f"more than {100 * TOLERANCE:.0f} % off{', corrected once' if member.corrected else ''}"
            )
    return {
        "schema": SCHEMA,
        "kind": "compactor-speedup",
        "title": f"{model.name}: {', '.join(member.folder.name for member in members)}",
        "command": command,
        "model": model.name,
        "data": data.name,
        "texts": subject.texts,
        "task": subject.task.name,
        "load": settings.load.to_json(),
        "load_words": settings.load.words,
        "seed": settings.seed,
        "trials": settings.trials,
        "seconds": seconds,
        "tolerance": TOLERANCE,
        "costs": costs.to_json(),
        "whole": {
            "latency_ms": whole_ms,
            "sizes": whole,
            "metrics": metrics.get(WHOLE),
            "fp32_metrics": metrics.get(FP32),
        },
        "metric": metric,
        "training": steps,
        "blocks": [
            {"name": unit.name, "kind": unit.block.kind, "count": unit.count, "width": unit.width} for unit in units
        ],
        "models": [_model(member, metrics) for member in members],
        "verdict": verdict,
        "machine": report["machine"],
        "warnings": warnings,
        "versions": versions(),
    }


def _model(member: Member, metrics: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": member.folder.name,
        "target": member.target,
        "predicted": member.predicted,
        "measured": None if member.measured is None else dataclasses.asdict(member.measured),
        "kept": member.kept,
        "corrected": member.corrected,
        "loss": member.loss,
        "sizes": list(member.sizes),
        "metrics": metrics.get(member.folder.name),
    }


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """The record, and its page where the libraries that draw it are installed."""
    text = json.dumps(finite(record), indent=1, allow_nan=False) + "\n"
    (folder / RECORD).write_text(text, encoding="utf-8")
    from compactor.reporting.speedup import render_speedup

    try:
        page = render_speedup(json.loads(text))
    except ImportError:  # without jinja2 or matplotlib
        return
    (folder / PAGE).write_text(page, encoding="utf-8")
