"""The ledger of int8: what quantizing each layer changes and gains, and which stay in fp32 so that answers are kept.

Every unit (``passes/graph/int8_layers.py``) is measured alone: its error with all others in fp32, its time in both
formats. Then those that cost most error for each millisecond they gain stay in fp32, as few as keep the share of
fp32's answers that was asked for: on the half of the examples they were chosen by, and on the other half.

    order = error / (fp32_ms - int8_ms), descending;    the shortest beginning of it that keeps enough, by bisection

An *answer* is the label of a text or of a word, or the two ends of a span; of an embedding, the nearest other text, or
where the file has pairs, the nearest of the second ones; of a model with a single output, whether that is above the
median.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import TopologicalSortPass

from compactor.errors import UsageError, VerificationError
from compactor.exporting.calibration import Calibration
from compactor.exporting.serialization import write_graph
from compactor.passes.finishing.name_nodes import NameNodesPass
from compactor.passes.graph.int8_layers import SWITCH, find_int8_layers
from compactor.passes.graph.matching import LAYER_KEY
from compactor.passes.pipeline import int8_preparation, precision_passes
from compactor.passes.runner import run_passes
from compactor.runtime.profiling import profile_session
from compactor.runtime.sessions import open_session
from compactor.runtime.verification import POSITION_OUTPUTS

_MIN_ELEMENTS = 4096  # of the passes
_TIMED_BATCHES, _TIMED_RUNS = 4, 3
_UNIT = re.compile(r"([\w.]+#\d+)(#\d+)?/")  # in the name of a node, also where ONNX Runtime fused it
_FEW_TOKENS = 2500  # by which units are put in order: an error takes fewer than a share of answers
_MOST_VALUES = 2_000_000  # logits of a batch that are compared
_STATES, _VECTOR = "last_hidden_state", "sentence_embedding"

Arrays = Mapping[str, NDArray[Any]]


@dataclasses.dataclass(frozen=True)
class Ledger:
    """What was chosen.

    Attributes:
        keep: The units and tables that stay in fp32.
        record: The manifest's ``ledger``.
    """

    keep: tuple[str, ...]
    record: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class _Trial:
    """What came of one choice of units: kept answers of each half in percent, relative error, answers changed."""

    kept: tuple[float, float]
    error: float
    changed: int
    predictions: NDArray[Any]


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
    units = _describe_units(graph, scales)
    say(f"measuring what int8 changes and gains in {len(units)} layers, on {calibration.count} examples")
    judge = _Judge(_Switched.of(graph, target, scales, scratch / "switched.onnx"), calibration)
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


def _shortest(order: Sequence[str], judge: _Judge, keep: float) -> tuple[list[str], _Trial]:
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
    calibration: Calibration, judge: _Judge, keep: float, trial: _Trial, units: list[dict[str, Any]]
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


def _describe_units(graph: ir.Model, scales: str) -> dict[str, dict[str, Any]]:
    prepared = graph.clone()
    run_passes(prepared, int8_preparation(scales))
    found, _ = find_int8_layers(prepared.graph, min_elements=_MIN_ELEMENTS, keep=())
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
    run_passes(model, int8_preparation(scales))
    found, _ = find_int8_layers(model.graph, min_elements=_MIN_ELEMENTS, keep=())
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


@dataclasses.dataclass(frozen=True)
class _Switched:
    """A graph in which every unit is there in both formats.

    Attributes:
        session: Of it.
        units: All that can be switched.
    """

    session: Any
    units: frozenset[str]

    @classmethod
    def of(cls, graph: ir.Model, target: str, scales: str, path: Path) -> _Switched:
        """Written to ``path``, and opened."""
        model = graph.clone()
        passes = precision_passes("int8", target, scales=scales, switched=True)
        run_passes(model, [*passes, TopologicalSortPass()])
        write_graph(model, path)
        session = open_session(path, allow_spinning=False)
        names = (entry.name for entry in session.get_inputs())
        return cls(session, frozenset(name.removeprefix(SWITCH) for name in names if name.startswith(SWITCH)))

    def run(self, batch: Arrays, in_fp32: Collection[str]) -> dict[str, NDArray[Any]]:
        """The outputs on a batch, with int8 in all units but those."""
        switches = {f"{SWITCH}{unit}": np.array(unit not in in_fp32) for unit in self.units}
        inputs = {entry.name for entry in self.session.get_inputs()}
        feeds = {name: array for name, array in batch.items() if name in inputs}
        names = [entry.name for entry in self.session.get_outputs()]
        return dict(zip(names, self.session.run(None, {**feeds, **switches}), strict=True))


class _Judge:
    """Compares the answers of int8 with those of fp32.

    Attributes:
        units: All that can be switched.
        reference: What fp32 answers.
        measure: What an answer is: ``answers``, ``tokens`` or ``first hits``.
        counts: Of answers in each half.
    """

    def __init__(self, switched: _Switched, calibration: Calibration) -> None:
        self._switched, self._calibration = switched, calibration
        self.units = switched.units
        self._usual = 0.0
        self._values: list[list[NDArray[Any]]] = []  # what fp32 gave, batch by batch
        self._held_out = np.empty(0, bool)
        self.measure = "answers"
        self.reference = self._run(self.units, first=True)
        self.counts = int((~self._held_out).sum()), int(self._held_out.sum())

    def on_few(self) -> _Judge:
        """The same on a part of the inputs, spread over all."""
        tokens = sum(
            int(batch["attention_mask"].sum()) for batch in self._calibration.batches if "attention_mask" in batch
        )
        step = max(1, min(tokens // _FEW_TOKENS, len(self._calibration.batches) // 2))
        batches = self._calibration.batches[::step]
        return _Judge(self._switched, Calibration(batches, sum(len(next(iter(b.values()))) for b in batches)))

    def require_variety(self) -> None:
        """Raises UsageError where all answers of fp32 are the same."""
        if self.measure == "answers" and len(np.unique(self.reference.predictions, axis=0)) == 1:
            raise UsageError(
                f"all {self._calibration.count} examples have the same answer, so that none can be seen to change",
                where=self._calibration.file or "random inputs",
                todo="give --calibrate texts that the model answers differently",
            )

    def try_out(self, in_fp32: Collection[str]) -> _Trial:
        """What comes of int8 in all units but these."""
        return self._run(in_fp32, first=False)

    def _run(self, in_fp32: Collection[str], *, first: bool) -> _Trial:
        answers: list[NDArray[Any]] = []
        owners: list[NDArray[Any]] = []
        squares, wrong, start = 0.0, 0.0, 0
        for number, batch in enumerate(self._calibration.batches):
            found = self._switched.run(batch, in_fp32)
            values, predicted, rows = self._read(found, batch)
            if first:
                self._values.append(values)
            for own, right in zip(values, self._values[number], strict=True):
                wrong += float(np.square(own.astype(np.float64) - right).sum())
                squares += float(np.square(right.astype(np.float64)).sum())
            answers.append(predicted)
            owners.append(start + rows)
            start += len(next(iter(batch.values())))
        predictions = np.concatenate(answers)
        if self.measure == "first hits":
            predictions = _first_hits(predictions, self._calibration)
        elif predictions.dtype.kind == "f":  # a number a text: above or below what is usual
            self._usual = float(np.median(predictions)) if first else self._usual
            predictions = predictions > self._usual
        if first:
            owned = np.concatenate(owners) if self.measure != "first hits" else np.arange(len(predictions))
            self._held_out = owned % 2 == 1
            return _Trial((100.0, 100.0), 0.0, 0, predictions)
        same = predictions == self.reference.predictions
        same = same.all(axis=1) if same.ndim == 2 else same
        kept = tuple(100 * float(same[half].mean()) for half in (~self._held_out, self._held_out))
        return _Trial((kept[0], kept[1]), (wrong / max(squares, 1e-30)) ** 0.5, int((~same).sum()), predictions)

    def _read(self, outputs: Arrays, batch: Arrays) -> tuple[list[NDArray[Any]], NDArray[Any], NDArray[Any]]:
        """What is compared in numbers; the answers, or the vectors that they are found by; and whose they are."""
        rows = np.arange(len(next(iter(batch.values()))))
        mask = batch.get("attention_mask")
        if all(name in outputs for name in POSITION_OUTPUTS):
            ends = [outputs[name] for name in POSITION_OUTPUTS]
            real = [np.where(mask == 1, end, 0) for end in ends]
            return real, np.stack([end.argmax(axis=1) for end in ends], axis=1), rows
        vectors = outputs.get(_VECTOR)
        if vectors is None and _STATES in outputs:
            states = outputs[_STATES]
            weight = np.ones(states.shape[:2]) if mask is None or mask.shape != states.shape[:2] else mask
            vectors = (states * weight[:, :, None]).sum(axis=1) / weight.sum(axis=1, keepdims=True)
        if vectors is not None:
            self.measure = "first hits"
            return [vectors], vectors, rows
        logits = next(iter(outputs.values()))
        if logits.ndim == 3:
            self.measure = "tokens"
            assert mask is not None
            real_tokens = mask == 1
            tokens = logits[real_tokens]
            some = tokens[:: max(1, tokens.size // _MOST_VALUES)]  # a large vocabulary does not fit in memory
            return [some], tokens.argmax(axis=-1), np.repeat(rows, real_tokens.sum(axis=1))
        answers = logits[:, 0] if logits.shape[-1] == 1 else logits.argmax(axis=-1)
        return [logits], answers, rows


def _first_hits(vectors: NDArray[Any], calibration: Calibration) -> NDArray[np.intp]:
    """For each query the nearest document, or for each vector the nearest other, by cosine."""
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    if calibration.queries is not None:
        return np.asarray((unit[calibration.queries] @ unit[calibration.documents].T).argmax(axis=1))
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -np.inf)
    return np.asarray(cosines.argmax(axis=1))
