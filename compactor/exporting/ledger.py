"""The ledger of int8: what quantizing each layer changes and gains, and which stay in fp32 so that answers are kept.

Every unit (``passes/graph/int8_layers.py``) is measured alone: its error with all others in fp32, its time in both
formats. Then those that cost most error for each millisecond they gain stay in fp32, as few as keep the share of
fp32's answers that was asked for: on the half of the examples they were chosen by, and on the other half.

    order = error / (fp32_ms - int8_ms), descending;    the shortest beginning of it that keeps enough, by bisection
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import TopologicalSortPass

from compactor.errors import VerificationError
from compactor.exporting.calibration import Calibration
from compactor.exporting.serialization import write_graph
from compactor.exporting.trials import Judge, Switched, Trial
from compactor.passes.finishing.name_nodes import NameNodesPass
from compactor.passes.graph.int8_layers import MIN_ELEMENTS, find_int8_layers
from compactor.passes.graph.matching import LAYER_KEY
from compactor.passes.pipeline import int8_preparation, precision_passes
from compactor.passes.runner import run_passes
from compactor.runtime.profiling import profile_session

_TIMED_BATCHES, _TIMED_RUNS = 4, 3
_UNIT = re.compile(r"([\w.]+#\d+)(#\d+)?/")  # in the name of a node, also where ONNX Runtime fused it


@dataclasses.dataclass(frozen=True)
class Ledger:
    """What was chosen.

    Attributes:
        keep: The units and tables that stay in fp32.
        record: The manifest's ``ledger``.
    """

    keep: tuple[str, ...]
    record: dict[str, Any]


def choose_int8(
    graph: ir.Model,
    calibration: Calibration,
    *,
    target: str,
    scales: str,
    keep: float,
    scratch: Path,
    say: Callable[[str], None],
) -> Ledger:
    """Measure each unit of a lowered graph, and choose those that int8 takes.

    Args:
        graph: In fp32; stays as it is.
        calibration: The inputs that it is judged by.
        target: What it was lowered for.
        scales: What a scale of an activation is for: ``token`` or ``tensor``.
        keep: Percent of fp32's answers that int8 has to give as well.
        scratch: An empty folder.
        say: Called with a line at each step.

    Raises:
        UsageError: The inputs cannot show a changed answer.
        VerificationError: No layer can be int8 and keep that much.
    """
    graph = graph.clone()
    run_passes(graph, int8_preparation(scales))
    units = _describe_units(graph)
    say(f"measuring what int8 changes and gains in {len(units)} layers, on {calibration.count} examples")
    judge = Judge(Switched.of(graph, target, scales, scratch / "switched.onnx"), calibration)
    judge.require_variety()
    times = {name: _times(graph, name, calibration, target, scales, scratch) for name in ("fp32", "int8")}
    for name in judge.units:  # tables of embeddings, which are looked up in no time worth counting
        units.setdefault(name, {"unit": name, "layer": "embeddings", "shape": None})
    few = judge.on_few()
    for name, unit in units.items():
        trial = few.try_out(judge.units - {name})
        unit |= {f"{kind}_ms": round(found.get(name, 0.0), 4) for kind, found in times.items()}
        unit |= {"error": float(f"{trial.error:.4g}"), "changed": trial.changed}
    gains = {name: unit["fp32_ms"] - unit["int8_ms"] for name, unit in units.items()}
    usual = float(np.mean([gain for name, gain in gains.items() if units[name]["shape"]] or [1.0]))
    worth = {
        name: unit["error"] / max(gains[name] if unit["shape"] else usual, 1e-4)  # a table gains bytes, and no time
        for name, unit in units.items()
    }
    order = sorted(units, key=lambda name: worth[name], reverse=True)
    kept, trial = _shortest(order, judge, keep)
    if set(order) == set(kept):
        raise VerificationError(
            f"no layer can be int8 and keep {keep:g} % of the answers",
            where=f"{calibration.count} examples of {calibration.file or 'random tokens'}",
            todo="ask for less with --keep, give other texts, or export --precision fp32",
        )
    for name, unit in units.items():
        unit["precision"] = "fp32" if name in kept else "int8"
    return Ledger(tuple(kept), _record(calibration, judge, keep, trial, list(units.values())))


def _shortest(order: Sequence[str], judge: Judge, keep: float) -> tuple[list[str], Trial]:
    """The shortest beginning of ``order`` with which both halves keep enough in fp32, and what comes of it."""
    trial = judge.try_out(())
    if min(trial.kept) >= keep:
        return [], trial
    low, high, best = 0, len(order), judge.try_out(order)  # low is too few, high is enough
    while high - low > 1:
        middle = (low + high) // 2
        trial = judge.try_out(order[:middle])
        if min(trial.kept) >= keep:
            high, best = middle, trial
        else:
            low = middle
    return list(order[:high]), best


def _record(
    calibration: Calibration, judge: Judge, keep: float, trial: Trial, units: list[dict[str, Any]]
) -> dict[str, Any]:
    halves = ("chosen_by", "held_out")
    record: dict[str, Any] = {
        "file": calibration.file,
        "examples": calibration.count,
        "measure": judge.measure,
        "keep": keep,
        "kept": dict(zip(halves, (round(share, 3) for share in trial.kept), strict=True)),
        "counts": dict(zip(halves, judge.counts, strict=True)),
        "error": float(f"{trial.error:.4g}"),
        "units": units,
    }
    if calibration.labels is not None:
        answers = {"fp32": judge.reference.predictions, "int8": trial.predictions}
        record["accuracy"] = {
            name: round(float((found == calibration.labels).mean()), 4) for name, found in answers.items()
        }
    return record


def _describe_units(graph: ir.Model) -> dict[str, dict[str, Any]]:
    found, _ = find_int8_layers(graph.graph, min_elements=MIN_ELEMENTS, keep=())
    return {
        name: {
            "unit": name,
            "layer": name.partition("#")[0],
            "shape": [int(layers[0].weight.shape[0]), sum(int(layer.weight.shape[1]) for layer in layers)],
        }
        for name, layers in found.items()
    }


def _times(
    graph: ir.Model, precision: str, calibration: Calibration, target: str, scales: str, scratch: Path
) -> dict[str, float]:
    """Milliseconds of each unit in a batch, by ONNX Runtime's profile; nodes are named by their unit for it."""
    model = graph.clone()
    found, _ = find_int8_layers(model.graph, min_elements=MIN_ELEMENTS, keep=())
    for unit, layers in found.items():
        for layer in layers:
            for node in {layer.node, layer.output.producer()}:
                assert node is not None
                node.metadata_props[LAYER_KEY] = unit
    passes = precision_passes(precision, target, scales=scales)
    run_passes(model, [*passes, NameNodesPass(), TopologicalSortPass()])
    path = scratch / f"timed-{precision}.onnx"
    write_graph(model, path)
    batches = calibration.batches[:_TIMED_BATCHES]
    profile = profile_session(path, {"all": batches}, runs=_TIMED_RUNS, allow_spinning=False)["all"]
    times: dict[str, float] = {}
    for event in profile.events:
        place = _UNIT.search(event.name)
        if place is not None and place[1] in found:
            times[place[1]] = times.get(place[1], 0.0) + event.time_us / 1e3 / profile.runs
    return times
