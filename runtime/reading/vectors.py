"""The vector of a text: its tokens' states, through the folder's modules; or of an image, or by a tower of CLIP."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..answers import Answer, Embedded, Refused
from ..encoding import Encoded
from ..sentences import Chain, Features
from ..sentences.features import SENTENCE
from .shared import NOT_FINITE, Outputs

_STATES, _POOLED = "last_hidden_state", "pooler_output"
TEXT_VECTOR = ("text_embeds",)
TEXT_TOWER = (*TEXT_VECTOR, _POOLED)
IMAGE_VECTOR = ("image_embeds", _POOLED)
"""The outputs that hold the vector of a text, of a text for a tower beside one of images, and of an image."""


class VectorReader:
    """As ``encode`` of sentence-transformers; without modules, the model's own vector, or the mean over the tokens.

    Args:
        chain: The folder's modules; None where it has none.
        width: How many numbers of a vector are kept; None keeps all.
        pooled: The outputs that are the vector, best first, where there are no modules.
    """

    def __init__(self, chain: Chain | None, width: int | None, *, pooled: Sequence[str] = TEXT_VECTOR) -> None:
        self._chain, self._width, self._pooled = chain, width, tuple(pooled)

    def __call__(self, item: Encoded, windows: Sequence[Outputs]) -> Answer | Refused:
        """Of one text or image; its graph gives one state a token or patch, (S, width), or one vector, (width,)."""
        made = windows[0].get(SENTENCE)  # by a graph of ``export --embed``
        if made is not None:
            return Embedded(made.astype(np.float32)) if np.isfinite(made).all() else Refused(NOT_FINITE)
        if self._chain is None:
            vector = self._vector(windows[0])
        else:
            vector = self._chain(Features.of(item, _states(windows[0]))).arrays[SENTENCE]
        if not np.isfinite(vector).all():
            return Refused(NOT_FINITE)
        return Embedded(np.ascontiguousarray(vector[: self._width], dtype=np.float32))

    def _vector(self, outputs: Outputs) -> NDArray[np.float32]:
        """What the model itself makes of the whole, else the mean of its states."""
        names = self._pooled if _STATES in outputs else (*self._pooled, _POOLED)
        own = next((outputs[name] for name in names if name in outputs), None)
        return _states(outputs).astype(np.float32).mean(axis=0) if own is None else own.astype(np.float32).ravel()


def _states(outputs: Outputs) -> NDArray[Any]:
    return outputs[_STATES] if _STATES in outputs else next(iter(outputs.values()))
