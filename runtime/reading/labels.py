"""The label of a text, by a classifier's logits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..answers import Answer, Classified
from ..artefacts import Artefact
from ..encoding import Encoded
from .shared import Outputs, numbered, softmax


class LabelReader:
    def __init__(self, artefact: Artefact) -> None:
        self._labels = artefact.labels
        self._several = artefact.config.get("problem_type") == "multi_label_classification"

    def __call__(self, item: Encoded, windows: Sequence[Outputs]) -> Answer:
        logits = windows[0]["logits"].astype(np.float64)
        labels = self._labels if len(self._labels) == len(logits) else numbered(len(logits))
        if len(logits) == 1:
            scores = logits
        else:
            scores = 1 / (1 + np.exp(-logits)) if self._several else softmax(logits)
        best = int(scores.argmax())
        return Classified(labels[best], float(scores[best]), scores.astype(np.float32), labels)
