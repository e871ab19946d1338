"""From a graph's outputs to answers: one reader a task, on numpy arrays.

A reader is made once for a model, and then called with items and the outputs of their windows; it keeps nothing, so
threads may share it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .answers import Answer, Answered, Classified, Embedded, Entity, Fill, Filled, Refused, Tagged
from .artefacts import Artefact
from .encoding import QUESTIONS, Encoded, TextEncoder
from .errors import ArtefactError

if TYPE_CHECKING:
    from tokenizers import Encoding

Outputs: TypeAlias = Mapping[str, NDArray[Any]]  # of one window, without a batch axis; token outputs without padding
Reader: TypeAlias = Callable[[Encoded, Sequence[Outputs]], Answer | Refused]

MAX_ANSWER = 30  # tokens of an answer, as in SQuAD's usual evaluation

_CANDIDATES = 20  # starts and ends of an answer that are looked at
_FILLS = 5
_OUTSIDE = "O"


def make_reader(artefact: Artefact, encoder: TextEncoder) -> Reader:
    """What reads answers off the outputs of an artefact's graph.

    Raises:
        ArtefactError: No text has an answer by this task, or the folder's pooling is none of those known here.
    """
    if artefact.task == "text-classification":
        return _LabelReader(artefact)
    if artefact.task == "token-classification":
        return _EntityReader(artefact)
    if artefact.task == QUESTIONS:
        return _AnswerReader()
    if artefact.task == "fill-mask":
        return _FillReader(artefact, encoder)
    if artefact.task == "feature-extraction":
        return _VectorReader(artefact.folder)
    raise ArtefactError(
        f"models for {artefact.task} answer no texts",
        where=str(artefact.folder),
        todo="run the graph with compactor.runtime.sessions.open_session",
    )


class _LabelReader:
    def __init__(self, artefact: Artefact) -> None:
        self._labels = artefact.labels
        self._several = artefact.config.get("problem_type") == "multi_label_classification"

    def __call__(self, item: Encoded, windows: Sequence[Outputs]) -> Answer:
        logits = windows[0]["logits"].astype(np.float64)
        labels = self._labels if len(self._labels) == len(logits) else _numbered(len(logits))
        if len(logits) == 1:
            scores = logits
        else:
            scores = 1 / (1 + np.exp(-logits)) if self._several else _softmax(logits)
        best = int(scores.argmax())
        return Classified(labels[best], float(scores[best]), scores.astype(np.float32), labels)


class _EntityReader:
    """Neighbours of the same tag are one entity, unless the second begins with ``B-``."""

    def __init__(self, artefact: Artefact) -> None:
        self._labels = artefact.labels

    def __call__(self, item: Encoded, windows: Sequence[Outputs]) -> Answer:
        probabilities = _softmax(windows[0]["logits"].astype(np.float64))
        labels = self._labels if len(self._labels) == probabilities.shape[-1] else _numbered(probabilities.shape[-1])
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


class _AnswerReader:
    """The span with the highest probability over all windows; none where every window says more surely "no answer"."""

    def __call__(self, item: Encoded, windows: Sequence[Outputs]) -> Answer:
        found = [self._best(encoding, outputs) for encoding, outputs in zip(item.windows, windows, strict=True)]
        score, start, end = max((span for span, _ in found), key=lambda span: span[0])
        none = min(none for _, none in found)
        if none > score:
            return Answered("", none, 0, 0)
        while start < end and item.text[start].isspace():
            start += 1
        return Answered(item.text[start:end], score, start, end)

    @staticmethod
    def _best(encoding: Encoding, outputs: Outputs) -> tuple[tuple[float, int, int], float]:
        """The score and characters of a window's best span, and the probability that it holds no answer."""
        inside = np.array([sequence == 1 for sequence in encoding.sequence_ids])
        candidates = inside.copy()
        candidates[0] = True  # where models trained for it put "no answer"
        start, end = (
            _softmax(np.where(candidates, outputs[name].astype(np.float64), -np.inf))
            for name in ("start_logits", "end_logits")
        )
        best = (0.0, 0, 0)
        for first in np.argsort(-np.where(inside, start, -1), kind="stable")[:_CANDIDATES]:
            reach = slice(int(first), int(first) + MAX_ANSWER)
            if not inside[first]:
                continue
            last = int(first) + int(np.where(inside[reach], end[reach], -1).argmax())
            score = float(start[first] * end[last])
            if score > best[0]:
                best = (score, encoding.offsets[first][0], encoding.offsets[last][1])
        return best, float(start[0] * end[0])


class _FillReader:
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
        positions = [at for at, token in enumerate(item.windows[0].ids) if token == self._mask]
        if not positions:
            return Refused(f"the text holds no {self._token} to fill")
        return Filled(tuple(self._best(windows[0]["logits"][at]) for at in positions))

    def _best(self, logits: NDArray[Any]) -> tuple[Fill, ...]:
        probabilities = _softmax(logits.astype(np.float64))
        best = np.argsort(-probabilities, kind="stable")[:_FILLS]
        return tuple(Fill(self._tokenizer.decode([int(i)]).strip(), float(probabilities[i])) for i in best)


class _VectorReader:
    """Pools as the folder's sentence-transformers modules say; without them, the mean over the tokens."""

    def __init__(self, folder: Path) -> None:
        self._pooling, self._normalize = "mean", False
        path = folder / "modules.json"
        for module in json.loads(path.read_text("utf-8")) if path.is_file() else []:
            kind = str(module.get("type")).rsplit(".", 1)[-1]
            if kind == "Pooling":
                self._pooling = _pooling(folder / str(module.get("path")) / "config.json")
            elif kind == "Normalize":
                self._normalize = True
            elif kind != "Transformer":
                raise ArtefactError(
                    f"vectors of this folder go through a '{kind}', which is not known here",
                    where=str(path),
                    todo="open the artefact with sentence-transformers (backend='onnx')",
                )

    def __call__(self, item: Encoded, windows: Sequence[Outputs]) -> Answer:
        states = next(iter(windows[0].values())).astype(np.float64)
        if self._pooling == "mean":
            vector = states.mean(axis=0)
        else:
            vector = states[0] if self._pooling == "cls" else states.max(axis=0)
        if self._normalize:
            vector = vector / max(float(np.linalg.norm(vector)), 1e-12)
        return Embedded(vector.astype(np.float32))


def _pooling(path: Path) -> str:
    """``mean``, ``cls`` or ``max``, by a pooling module's config of any version."""
    content = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    by_flag = {
        "pooling_mode_mean_tokens": "mean",
        "pooling_mode_cls_token": "cls",
        "pooling_mode_max_tokens": "max",
    }
    modes = [mode for flag, mode in by_flag.items() if content.get(flag)]
    if isinstance(content.get("pooling_mode"), str):
        modes = [content["pooling_mode"]]
    others = [name for name, value in content.items() if name.startswith("pooling_mode_") and value is True]
    if len(modes) != 1 or modes[0] not in by_flag.values() or any(name not in by_flag for name in others):
        raise ArtefactError(
            f"this pooling is not known here: {', '.join(modes or others) or 'none is named'}",
            where=str(path),
            todo="open the artefact with sentence-transformers (backend='onnx')",
        )
    return modes[0]


def _softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=-1, keepdims=True))


def _numbered(count: int) -> tuple[str, ...]:
    return tuple(f"LABEL_{number}" for number in range(count))
