"""The entities of a text, by the logits of its tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..answers import Answer, Entity, Tagged
from ..artefacts import Artefact
from ..encoding import Encoded
from .shared import Outputs, numbered, softmax

_OUTSIDE = "O"


class EntityReader:
    """Neighbours of the same tag are one entity, unless the second begins with ``B-``."""

    def __init__(self, artefact: Artefact) -> None:
        self._labels = artefact.labels

    def __call__(self, item: Encoded, windows: Sequence[Outputs]) -> Answer:
        probabilities = softmax(windows[0]["logits"].astype(np.float64))
        labels = self._labels if len(self._labels) == probabilities.shape[-1] else numbered(probabilities.shape[-1])
        encoding = item.windows[0]
        entities: list[list[tuple[str, float, int, int]]] = []
        adjacent = False  # whether the token before belongs to the last entity
        word_before = None
        for scores, (start, end), special, word in zip(
            probabilities, encoding.offsets, encoding.special_tokens_mask, encoding.word_ids, strict=True
        ):
            if special:
                adjacent = False
                continue
            name = labels[int(scores.argmax())]
            inner = word is not None and word == word_before  # a word has the tag of its first token
            word_before = word
            if inner:
                if adjacent:
                    label, score, first, _ = entities[-1][-1]
                    entities[-1][-1] = (label, score, first, end)
                continue
            if name == _OUTSIDE:
                adjacent = False
                continue
            begins, label = name.startswith("B-"), name[2:] if name[:2] in ("B-", "I-") else name
            token = (label, float(scores.max()), start, end)
            if adjacent and not begins and entities[-1][-1][0] == label:
                entities[-1].append(token)
            else:
                entities.append([token])
            adjacent = True
        return Tagged(tuple(_entity(tokens, item.text) for tokens in entities))


def _entity(tokens: Sequence[tuple[str, float, int, int]], text: str) -> Entity:
    start, end = tokens[0][2], tokens[-1][3]
    score = sum(score for _, score, _, _ in tokens) / len(tokens)
    return Entity(tokens[0][0], score, start, end, text[start:end])
