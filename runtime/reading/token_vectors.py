"""One vector for each token of a text (ColBERT)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..answers import Answer, Refused, TokenVectors
from ..encoding import Encoded
from ..sentences import Chain, Features
from ..sentences.features import TOKENS
from .shared import NOT_FINITE, Outputs


class TokenVectorReader:
    """As ``encode_query`` and ``encode_document`` of sentence-transformers' MultiVectorEncoder.

    Args:
        chain: The folder's modules.
    """

    def __init__(self, chain: Chain) -> None:
        self._chain = chain

    def __call__(self, item: Encoded, windows: Sequence[Outputs]) -> Answer | Refused:
        """Of one text; its graph gives one state a token, (S, width)."""
        features = self._chain(Features.of(item, next(iter(windows[0].values()))))
        vectors = features.arrays[TOKENS][features.kept]
        return TokenVectors(vectors) if np.isfinite(vectors).all() else Refused(NOT_FINITE)
