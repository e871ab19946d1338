"""The label of a text, by a classifier's logits.

In float32, as the pipelines compute: where two scores round to the same number, the first is the label.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ..activation import activation_of
from ..answers import Answer, Classified, Refused
from ..artefacts import Artefact
from ..encoding import Encoded
from ..folder import MODULES, read_object
from .shared import NOT_FINITE, Outputs, named, sigmoid, softmax

Activation = Callable[[NDArray[np.float32]], NDArray[np.float32]]

_ACTIVATIONS: Mapping[str, Activation] = {
    "none": lambda logits: logits,
    "sigmoid": sigmoid,
    "softmax": softmax,
    "tanh": np.tanh,
    "relu": lambda logits: np.maximum(logits, 0),
}


class LabelReader:
    """The most likely label, and the scores of all.

    Raises:
        ArtefactError: The folder names an activation that is not built.
    """

    def __init__(self, artefact: Artefact) -> None:
        self._artefact = artefact
        known = (artefact.folder / MODULES).is_file()  # without, sentence-transformers does not read it
        self._sentences = read_object(artefact.folder / "config_sentence_transformers.json") if known else {}
        activation_of(artefact.config, self._sentences, max(len(artefact.labels), 1))

    def __call__(self, item: Encoded, windows: Sequence[Outputs]) -> Answer | Refused:
        """Of one text or pair; its graph gives ``logits`` of shape (labels,)."""
        logits = windows[0]["logits"].astype(np.float32)
        if not np.isfinite(logits).all():
            return Refused(NOT_FINITE)
        labels = named(self._artefact.labels, len(logits))
        scores = _ACTIVATIONS[activation_of(self._artefact.config, self._sentences, len(logits))](logits)
        best = int(scores.argmax())
        return Classified(labels[best], float(scores[best]), scores, labels)
