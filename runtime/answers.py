"""What a model answers, one record a task; and ``Refused``, where an item could not be answered.

All of them turn into plain values with ``to_json``, which is what servers send and files hold.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray


@dataclasses.dataclass(frozen=True)
class Classified:
    """The label of a text.

    Attributes:
        label: The one with the highest score.
        score: That score.
        scores: (labels,) float32 of all of them, in the model's order. By softmax; for a model of several labels at
            once, or of a single one, by sigmoid; for a regression as they are; for a CrossEncoder by its activation.
        labels: Their names.
    """

    label: str
    score: float
    scores: NDArray[np.float32]
    labels: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """``{"label", "score", "scores": {name: score}}``; a name that several have is told apart by a number."""
        named: dict[str, float] = {}
        for number, (name, score) in enumerate(zip(self.labels, self.scores, strict=True)):
            named[f"{name} ({number})" if name in named else name] = float(score)
        return {"label": self.label, "score": self.score, "scores": named}


@dataclasses.dataclass(frozen=True)
class Entity:
    """A stretch of text with one tag.

    Attributes:
        label: The tag, without ``B-`` or ``I-``.
        score: The mean probability of its tokens.
        start: Its first character.
        end: The one behind its last.
        text: What stands there.
    """

    label: str
    score: float
    start: int
    end: int
    text: str


@dataclasses.dataclass(frozen=True)
class Tagged:
    """The entities of a text, in its order; what is tagged ``O`` is left out."""

    entities: tuple[Entity, ...]

    def to_json(self) -> dict[str, Any]:
        """``{"entities": [{"label", "score", "start", "end", "text"}]}``."""
        return {"entities": [dataclasses.asdict(entity) for entity in self.entities]}


@dataclasses.dataclass(frozen=True)
class Answered:
    """The answer to a question.

    Attributes:
        text: A piece of the context; empty where the model says that it holds no answer.
        score: Its probability: that of its start times that of its end, among the tokens of its window; summed over
            the places and windows where the same is read.
        start: Its first character in the context; 0 without an answer.
        end: The one behind its last; 0 without an answer.
    """

    text: str
    score: float
    start: int
    end: int

    def to_json(self) -> dict[str, Any]:
        """``{"answer", "score", "start", "end"}``."""
        return {"answer": self.text, "score": self.score, "start": self.start, "end": self.end}


@dataclasses.dataclass(frozen=True)
class Fill:
    """One token that may stand for a mask, and its probability."""

    token: str
    score: float


@dataclasses.dataclass(frozen=True)
class Filled:
    """For each mask of a text, in its order, the likeliest tokens, best first."""

    fills: tuple[tuple[Fill, ...], ...]

    def to_json(self) -> dict[str, Any]:
        """``{"fills": [[{"token", "score"}]]}``."""
        return {"fills": [[dataclasses.asdict(fill) for fill in fills] for fills in self.fills]}


@dataclasses.dataclass(frozen=True)
class Embedded:
    """The vector of a text: (width,) float32."""

    vector: NDArray[np.float32]

    def to_json(self) -> dict[str, Any]:
        """``{"vector": [...]}``."""
        return {"vector": self.vector.tolist()}


@dataclasses.dataclass(frozen=True)
class Sparse:
    """The sparse vector of a text; what is not listed is 0.

    Attributes:
        indices: (N,) int64, ascending: tokens of the vocabulary.
        weights: (N,) float32, one each.
    """

    indices: NDArray[np.int64]
    weights: NDArray[np.float32]

    def to_json(self) -> dict[str, Any]:
        """``{"indices": [...], "weights": [...]}``."""
        return {"indices": self.indices.tolist(), "weights": self.weights.tolist()}


@dataclasses.dataclass(frozen=True)
class TokenVectors:
    """One vector for each token of a text that counts: (T, width) float32."""

    vectors: NDArray[np.float32]

    def to_json(self) -> dict[str, Any]:
        """``{"vectors": [[...], ...]}``."""
        return {"vectors": self.vectors.tolist()}


@dataclasses.dataclass(frozen=True)
class Written:
    """The text that an encoder-decoder wrote."""

    text: str

    def to_json(self) -> dict[str, Any]:
        """``{"text"}``."""
        return {"text": self.text}


@dataclasses.dataclass(frozen=True)
class Refused:
    """Why an item has no answer; the other items have theirs."""

    reason: str

    def to_json(self) -> dict[str, Any]:
        """``{"error"}``."""
        return {"error": self.reason}


Answer: TypeAlias = Classified | Tagged | Answered | Filled | Embedded | Sparse | TokenVectors | Written
Answers: TypeAlias = Sequence[Answer | Refused]
