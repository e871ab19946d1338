"""The tokens that may stand for the masks of a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..answers import Answer, Fill, Filled, Refused
from ..artefacts import Artefact
from ..encoding import Encoded, TextEncoder
from ..errors import ArtefactError
from ..reading_options import ReadingOptions
from ..tokenizer import clean_up, special_token
from .shared import NOT_FINITE, Outputs, softmax


class FillReader:
    """The likeliest tokens for each mask, written as transformers' fill-mask pipeline writes them (``token_str``).

    Raises:
        ArtefactError: The tokenizer has no mask token.
    """

    def __init__(self, artefact: Artefact, encoder: TextEncoder, options: ReadingOptions) -> None:
        self._count, self._tokenizer, self._cleans = options.fills, encoder.tokenizer, encoder.settings.cleans_up
        self._token = special_token(artefact.folder, "mask_token") or "[MASK]"
        self._mask = encoder.tokenizer.token_to_id(self._token)
        if self._mask is None:
            raise ArtefactError(
                f"the tokenizer has no mask token '{self._token}', so there is nothing to fill",
                where=str(artefact.folder),
                todo="name its mask token in tokenizer_config.json ('mask_token')",
            )

    def __call__(self, item: Encoded, windows: Sequence[Outputs]) -> Answer | Refused:
        """Of one text; its graph gives ``logits`` of shape (S, V)."""
        positions = [at for at, token in enumerate(item.windows[0].ids) if token == self._mask]
        if not positions:
            return Refused(f"the text holds no {self._token} to fill")
        logits = windows[0]["logits"][positions]
        if not np.isfinite(logits).all():
            return Refused(NOT_FINITE)
        return Filled(tuple(self._best(each) for each in softmax(logits.astype(np.float64))))

    def _best(self, probabilities: NDArray[Any]) -> tuple[Fill, ...]:
        best = np.argsort(-probabilities, kind="stable")[: self._count]
        return tuple(Fill(self._written(int(i)), float(probabilities[i])) for i in best)

    def _written(self, token: int) -> str:
        text: str = self._tokenizer.decode([token], skip_special_tokens=False)
        return clean_up(text) if self._cleans else text
