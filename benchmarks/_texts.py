"""The texts of a data file as a model takes them, and the answers that outputs stand for: labels, or first hits."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks._workshop import TASK, Arrays, Outputs
from compactor.evaluation.answers import predict
from compactor.evaluation.datafiles import read_table
from compactor.evaluation.inputs import InputSpec
from compactor.evaluation.texts import EMBEDDING, Labelled, tokenize
from compactor.evaluation.vectors import first_hits, read_vectors
from compactor.runtime.bucketing import Rows, in_order
from compactor.runtime.sessions import open_session

_BATCH = 32  # with a scale for each tensor, int8's errors depend on it


@dataclasses.dataclass(frozen=True)
class Texts:
    """What a model is asked.

    Attributes:
        spec: The model.
        labelled: The texts, each once, as token ids.
    """

    spec: InputSpec
    labelled: Labelled

    @classmethod
    def read(cls, model: Path, data: Path) -> Texts:
        """The texts of ``data`` for the classifier, or the folder of sentence-transformers, at ``model``."""
        config = json.loads((model / "config.json").read_text(encoding="utf-8"))
        task = EMBEDDING if (model / "modules.json").exists() else TASK
        spec = InputSpec.from_config(config, task=task, folder=model)
        return cls(spec, tokenize(read_table(data), spec, labelled=True))

    def __len__(self) -> int:
        return len(self.labelled.examples)

    def batch(self, rows: Rows | Sequence[int]) -> Mapping[str, NDArray[Any]]:
        """Some of them, padded: every input that a graph may want, (B, S)."""
        return self.labelled.examples.batch(rows)

    def batches(self, size: int) -> list[Mapping[str, NDArray[Any]]]:
        """All of them, in order."""
        return [self.batch(rows) for rows in in_order(self.labelled.examples.lengths, size)]

    def outputs(self, graph: Path) -> Outputs:
        """What a graph gives for all texts, batch by batch in the file's order."""
        session = open_session(graph, allow_spinning=False)
        inputs = {entry.name for entry in session.get_inputs()}
        names = [entry.name for entry in session.get_outputs()]
        return [
            dict(zip(names, session.run(None, {name: batch[name] for name in inputs}), strict=True))
            for batch in self.batches(_BATCH)
        ]

    def ask(self, graph: Path) -> NDArray[np.int64]:
        """The ``answers`` of a graph."""
        return self.answers(self.outputs(graph))

    def answers(self, outputs: Iterable[Arrays]) -> NDArray[np.int64]:
        """What outputs on ``batches`` say: (N,) the label of each text; of vectors, (Q,) each query's first hit."""
        vectors = self.labelled.vectors
        if vectors is None:
            return np.asarray(predict(self.spec, self.labelled, outputs), np.int64)
        return np.array(first_hits(read_vectors(self.spec, vectors, outputs), vectors), np.int64)
