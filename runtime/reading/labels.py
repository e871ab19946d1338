"""The label of a text, by a classifier's logits.

What becomes of the logits is decided as the checkpoint's own stack decides it: by ``problem_type`` and the number of
outputs, as transformers' text-classification pipeline does; for a CrossEncoder of sentence-transformers by the
activation that its folder names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..answers import Answer, Classified, Refused
from ..artefacts import Artefact
from ..encoding import Encoded
from ..errors import ArtefactError
from ..folder import read_object
from .shared import NOT_FINITE, Outputs, named, sigmoid, softmax

Activation = Callable[[NDArray[np.float64]], NDArray[np.float64]]

_ACTIVATIONS: Mapping[str, Activation] = {
    "none": lambda logits: logits,
    "sigmoid": sigmoid,
    "softmax": softmax,
    "tanh": np.tanh,
    "relu": lambda logits: np.maximum(logits, 0),
}
# The modules of torch that a CrossEncoder may name.
_BY_CLASS = {"Identity": "none", "Sigmoid": "sigmoid", "Softmax": "softmax", "Tanh": "tanh", "ReLU": "relu"}


def is_cross_encoder(config: Mapping[str, Any], sentences: Mapping[str, Any]) -> bool:
    """Whether a folder is a CrossEncoder of sentence-transformers.

    Args:
        config: The content of ``config.json``.
        sentences: That of ``config_sentence_transformers.json``; empty where there is none.
    """
    ours = config.get("sentence_transformers")
    return (
        sentences.get("model_type") == "CrossEncoder"
        or config.get("sbert_ce_default_activation_function") is not None
        or (isinstance(ours, Mapping) and "activation_fn" in ours)
    )


def activation_of(config: Mapping[str, Any], sentences: Mapping[str, Any], outputs: int) -> str:
    """What is put over the logits: a name of ``none``, ``sigmoid``, ``softmax``, ``tanh``, ``relu``.

    Args:
        config: The content of ``config.json``.
        sentences: That of ``config_sentence_transformers.json``; empty where there is none.
        outputs: How many logits there are.

    Raises:
        ArtefactError: A CrossEncoder names an activation that is not built.
    """
    if is_cross_encoder(config, sentences):
        ours = config.get("sentence_transformers")
        path = sentences.get("activation_fn")
        path = path or (ours.get("activation_fn") if isinstance(ours, Mapping) else None)
        path = path or config.get("sbert_ce_default_activation_function")
        if not isinstance(path, str) or not path.startswith("torch."):  # sentence-transformers trusts torch's alone
            return "sigmoid" if outputs == 1 else "none"
        name = _BY_CLASS.get(path.rpartition(".")[2])
        if name is None:
            raise ArtefactError(
                f"'activation_fn' of this CrossEncoder is {path}, which is not built",
                todo=f"choose one of {', '.join(_BY_CLASS)}",
            )
        return name
    problem = config.get("problem_type")
    if problem == "regression":
        return "none"
    return "sigmoid" if problem == "multi_label_classification" or outputs == 1 else "softmax"


class LabelReader:
    """The most likely label, and the scores of all.

    Raises:
        ArtefactError: The folder names an activation that is not built.
    """

    def __init__(self, artefact: Artefact) -> None:
        self._artefact = artefact
        self._sentences = read_object(artefact.folder / "config_sentence_transformers.json")
        activation_of(artefact.config, self._sentences, max(len(artefact.labels), 1))

    def __call__(self, item: Encoded, windows: Sequence[Outputs]) -> Answer | Refused:
        """Of one text or pair; its graph gives ``logits`` of shape (labels,)."""
        logits = windows[0]["logits"].astype(np.float64)
        if not np.isfinite(logits).all():
            return Refused(NOT_FINITE)
        labels = named(self._artefact.labels, len(logits))
        scores = _ACTIVATIONS[activation_of(self._artefact.config, self._sentences, len(logits))](logits)
        best = int(scores.argmax())
        return Classified(labels[best], float(scores[best]), scores.astype(np.float32), labels)
