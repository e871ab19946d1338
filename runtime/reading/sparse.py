"""The sparse vector of a text: a weight for each token of the vocabulary that it is about (SPLADE)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..answers import Answer, Refused, Sparse
from ..encoding import Encoded
from ..sentences import Chain, Features
from ..sentences.features import SENTENCE
from .shared import NOT_FINITE, Outputs


class SparseReader:
    """As ``SparseEncoder.encode`` of sentence-transformers.

    Args:
        chain: The folder's modules.
        active: How many weights are kept, the largest; None keeps all.
    """

    def __init__(self, chain: Chain, active: int | None) -> None:
        self._chain, self._active = chain, active

    def __call__(self, item: Encoded, windows: Sequence[Outputs]) -> Answer | Refused:
        """Of one text; its graph gives ``logits`` of shape (S, V)."""
        weights = self._chain(Features.of(item, windows[0]["logits"])).arrays[SENTENCE]
        if not np.isfinite(weights).all():
            return Refused(NOT_FINITE)
        indices = np.flatnonzero(weights)
        if self._active is not None and len(indices) > self._active:
            largest = np.argsort(-np.abs(weights[indices]), kind="stable")[: self._active]
            indices = np.sort(indices[largest])
        return Sparse(indices.astype(np.int64), weights[indices].astype(np.float32))
