"""The entities of a text, by the logits of its tokens.

Tokens become entities as in transformers' token-classification pipeline, with its strategies: ``simple`` joins
neighbours of the same tag; ``first``, ``average`` and ``max`` first give all tokens of a word one tag. Which tokens
are of one word the tokenizer says where its model marks pieces inside of words (WordPiece); elsewhere the spaces of the
text do, so that a text without spaces is one word.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..answers import Answer, Entity, Refused, Tagged
from ..artefacts import Artefact
from ..encoding import Encoded, TextEncoder
from ..reading_options import ReadingOptions
from ..tokenizer import Window, special_token
from .shared import NOT_FINITE, Outputs, named, softmax

_OUTSIDE = "O"


@dataclasses.dataclass(frozen=True)
class _Piece:
    """A token, or a word: its tag, the probability of that, and its characters."""

    tag: str
    score: float
    start: int
    end: int


class EntityReader:
    """The stretches of a text that have a tag other than ``O``.

    Args:
        artefact: The model.
        encoder: Its tokenizer.
        options: How tokens are joined.
    """

    def __init__(self, artefact: Artefact, encoder: TextEncoder, options: ReadingOptions) -> None:
        self._labels, self._aggregation = artefact.labels, options.aggregation
        self._tokenizer = encoder.tokenizer
        model = json.loads(self._tokenizer.to_str())["model"]
        self._marks_pieces = bool(model.get("continuing_subword_prefix"))
        unknown = special_token(artefact.folder, "unk_token")
        self._unknown = None if unknown is None else self._tokenizer.token_to_id(unknown)

    def __call__(self, item: Encoded, windows: Sequence[Outputs]) -> Answer | Refused:
        """Of one text; its graph gives ``logits`` of shape (S, labels)."""
        logits = windows[0]["logits"].astype(np.float64)
        if not np.isfinite(logits).all():
            return Refused(NOT_FINITE)
        window = item.windows[0]
        kept = [at for at, special in enumerate(window.special_tokens_mask) if not special]
        scores = softmax(logits)[kept]
        spans = [window.offsets[at] for at in kept]
        labels = named(self._labels, logits.shape[-1])
        if self._aggregation in ("simple", "none"):
            words = [[at] for at in range(len(kept))]
        else:
            words = _words(self._inner(window, kept, item.text))
        pieces = [self._piece(scores[word], [spans[at] for at in word], labels) for word in words]
        if self._aggregation == "none":
            found = [(piece.tag, [piece]) for piece in pieces]
        else:
            found = _group(pieces)
        return Tagged(tuple(_entity(label, group, item.text) for label, group in found if label != _OUTSIDE))

    def _inner(self, window: Window, kept: Sequence[int], text: str) -> list[bool]:
        """Whether each token goes on with the word of the one before."""
        inner = []
        for at in kept:
            start, end = window.offsets[at]
            if window.ids[at] == self._unknown:
                inner.append(False)
            elif self._marks_pieces:
                token = self._tokenizer.id_to_token(window.ids[at])
                inner.append(len(token) != len(text[start:end]))
            else:
                inner.append(start > 0 and " " not in text[start - 1 : start + 1])
        return inner

    def _piece(self, scores: NDArray[np.float64], spans: Sequence[tuple[int, int]], labels: Sequence[str]) -> _Piece:
        """One of a word's tokens' scores, (tokens, labels)."""
        if self._aggregation == "average":
            word = scores.mean(axis=0)
        elif self._aggregation == "max":
            word = scores[scores.max(axis=-1).argmax()]
        else:
            word = scores[0]
        best = int(word.argmax())
        return _Piece(labels[best], float(word[best]), spans[0][0], spans[-1][1])


def _words(inner: Sequence[bool]) -> list[list[int]]:
    words: list[list[int]] = []
    for at, goes_on in enumerate(inner):
        if goes_on and words:
            words[-1].append(at)
        else:
            words.append([at])
    return words


def _split(tag: str) -> tuple[bool, str]:
    """Whether a tag begins an entity by its own word, and what it is of. Only ``B-`` and ``I-`` are known."""
    return tag.startswith("B-"), tag[2:] if tag[:2] in ("B-", "I-") else tag


def _group(pieces: Sequence[_Piece]) -> list[tuple[str, list[_Piece]]]:
    """Neighbours of the same kind, and what that kind is called."""
    groups: list[list[_Piece]] = []
    for piece in pieces:
        begins, kind = _split(piece.tag)
        if groups and not begins and kind == _split(groups[-1][-1].tag)[1]:
            groups[-1].append(piece)
        else:
            groups.append([piece])
    return [(group[0].tag.split("-", 1)[-1], group) for group in groups]


def _entity(label: str, pieces: Sequence[_Piece], text: str) -> Entity:
    start, end = pieces[0].start, pieces[-1].end
    score = sum(piece.score for piece in pieces) / len(pieces)
    return Entity(label, score, start, end, text[start:end])
