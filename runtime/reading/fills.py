"""The tokens that may stand for the masks of a text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..answers import Answer, Fill, Filled, Refused
from ..artefacts import Artefact
from ..encoding import Encoded, TextEncoder
from ..errors import ArtefactError
from .shared import Outputs, softmax

_FILLS = 5


class FillReader:
    """The five likeliest tokens for each mask."""

    def __init__(self, artefact: Artefact, encoder: TextEncoder) -> None:
        config = artefact.folder / "tokenizer_config.json"
        content = json.loads(config.read_text("utf-8")) if config.is_file() else {}
        token = content.get("mask_token") or "[MASK]"
        self._token = str(token.get("content")) if isinstance(token, Mapping) else str(token)
        self._mask = encoder.tokenizer.token_to_id(self._token)
        self._tokenizer = encoder.tokenizer
        if self._mask is None:
            raise ArtefactError(f"the tokenizer has no mask token '{self._token}'", where=str(artefact.folder))

    def __call__(self, item: Encoded, windows: Sequence[Outputs]) -> Answer | Refused:
        """Of one text; its graph gives ``logits`` of shape (S, V)."""
        positions = [at for at, token in enumerate(item.windows[0].ids) if token == self._mask]
        if not positions:
            return Refused(f"the text holds no {self._token} to fill")
        return Filled(tuple(self._best(windows[0]["logits"][at]) for at in positions))

    def _best(self, logits: NDArray[Any]) -> tuple[Fill, ...]:
        probabilities = softmax(logits.astype(np.float64))
        best = np.argsort(-probabilities, kind="stable")[:_FILLS]
        return tuple(Fill(self._tokenizer.decode([int(i)]).strip(), float(probabilities[i])) for i in best)
