"""The vector of a text: its tokens' states, through the folder's modules."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..answers import Answer, Embedded, Refused
from ..encoding import Encoded
from ..sentences import Chain, Features
from ..sentences.features import SENTENCE
from .shared import NOT_FINITE, Outputs


class VectorReader:
    """As ``encode`` of sentence-transformers; without modules, the mean over the tokens.

    Args:
        chain: The folder's modules; None where it has none.
        width: How many numbers of a vector are kept; None keeps all.
    """

    def __init__(self, chain: Chain | None, width: int | None) -> None:
        self._chain, self._width = chain, width

    def __call__(self, item: Encoded, windows: Sequence[Outputs]) -> Answer | Refused:
        """Of one text; its graph gives one state a token, (S, width)."""
        made = windows[0].get(SENTENCE)  # by a graph of ``export --embed``
        if made is not None:
            return Embedded(made.astype(np.float32)) if np.isfinite(made).all() else Refused(NOT_FINITE)
        states = (
            windows[0]["last_hidden_state"] if "last_hidden_state" in windows[0] else next(iter(windows[0].values()))
        )
        if self._chain is None:
            vector = states.astype(np.float32).mean(axis=0)
        else:
            vector = self._chain(Features.of(item, states)).arrays[SENTENCE]
        if not np.isfinite(vector).all():
            return Refused(NOT_FINITE)
        return Embedded(np.ascontiguousarray(vector[: self._width], dtype=np.float32))
