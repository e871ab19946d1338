"""Try out which layers are int8: one graph that has all of them in both formats, and what becomes of the answers.

An *answer* is the label of a text or of a word, or the two ends of a span; of an embedding, the nearest other text, or
where the file has pairs, the nearest of the second ones; of a model with a single output, whether that is above the
median. Every second example is held out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import TopologicalSortPass

from compactor.errors import UsageError
from compactor.exporting.calibration import Calibration
from compactor.exporting.serialization import write_graph
from compactor.passes.graph.int8_layers import SWITCH
from compactor.passes.pipeline import precision_passes
from compactor.passes.runner import run_passes
from compactor.runtime.sessions import open_session
from compactor.runtime.verification import POSITION_OUTPUTS

_STATES, _VECTOR = "last_hidden_state", "sentence_embedding"
_FEW_TOKENS = 2500  # by which units are put in order: an error takes fewer than a share of answers
_MOST_VALUES = 2_000_000  # logits of a batch that are compared

Arrays = Mapping[str, NDArray[Any]]


@dataclasses.dataclass(frozen=True)
class Trial:
    """What came of one choice of units: kept answers of each half in percent, relative error, answers changed."""

    kept: tuple[float, float]
    error: float
    changed: int
    predictions: NDArray[Any]


@dataclasses.dataclass(frozen=True)
class Switched:
    """A graph in which every unit is there in both formats.

    Attributes:
        session: Of it.
        units: All that can be switched.
    """

    session: Any
    units: frozenset[str]

    @classmethod
    def of(cls, graph: ir.Model, target: str, scales: str, path: Path) -> Switched:
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


class Judge:
    """Compares the answers of int8 with those of fp32.

    Attributes:
        units: All that can be switched.
        reference: What fp32 answers.
        measure: What an answer is: ``answers``, ``tokens`` or ``first hits``.
        counts: Of answers in each half.
    """

    def __init__(self, switched: Switched, calibration: Calibration) -> None:
        self._switched, self._calibration = switched, calibration
        self.units = switched.units
        self._usual = 0.0
        self._values: list[list[NDArray[Any]]] = []  # what fp32 gave, batch by batch
        self._held_out = np.empty(0, bool)
        self.measure = "answers"
        self.reference = self._run(self.units, first=True)
        self.counts = int((~self._held_out).sum()), int(self._held_out.sum())

    def on_few(self) -> Judge:
        """The same on a part of the inputs, spread over all."""
        tokens = sum(
            int(batch["attention_mask"].sum()) for batch in self._calibration.batches if "attention_mask" in batch
        )
        step = max(1, min(tokens // _FEW_TOKENS, len(self._calibration.batches) // 2))
        batches = self._calibration.batches[::step]
        return Judge(self._switched, Calibration(batches, sum(len(next(iter(b.values()))) for b in batches)))

    def require_variety(self) -> None:
        """Raises UsageError where all answers of fp32 are the same."""
        if self.measure == "answers" and len(np.unique(self.reference.predictions, axis=0)) == 1:
            raise UsageError(
                f"all {self._calibration.count} examples have the same answer, so that none can be seen to change",
                where=self._calibration.file or "random inputs",
                todo="give --calibrate texts that the model answers differently",
            )

    def try_out(self, in_fp32: Collection[str]) -> Trial:
        """What comes of int8 in all units but these."""
        return self._run(in_fp32, first=False)

    def _run(self, in_fp32: Collection[str], *, first: bool) -> Trial:
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
            return Trial((100.0, 100.0), 0.0, 0, predictions)
        same = predictions == self.reference.predictions
        same = same.all(axis=1) if same.ndim == 2 else same
        kept = tuple(100 * float(same[half].mean()) for half in (~self._held_out, self._held_out))
        return Trial((kept[0], kept[1]), (wrong / max(squares, 1e-30)) ** 0.5, int((~same).sum()), predictions)

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
