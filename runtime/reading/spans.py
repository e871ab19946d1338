"""The answer to a question: a span of its context."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..answers import Answer, Answered
from ..encoding import Encoded
from ..tokenizer import Window
from .shared import Outputs, softmax

MAX_ANSWER = 30  # tokens of an answer, as in SQuAD's usual evaluation

_CANDIDATES = 20  # starts and ends of an answer that are looked at


class AnswerReader:
    """The span with the highest probability over all windows; none where every window says more surely "no answer"."""

    def __init__(self, *, context_first: bool = False) -> None:
        self._context = 0 if context_first else 1

    def __call__(self, item: Encoded, windows: Sequence[Outputs]) -> Answer:
        """Of one question; its graph gives ``start_logits`` and ``end_logits`` of shape (S,)."""
        found = [self._best(encoding, outputs) for encoding, outputs in zip(item.windows, windows, strict=True)]
        score, start, end = max((span for span, _ in found), key=lambda span: span[0])
        none = min(none for _, none in found)
        if none > score:
            return Answered("", none, 0, 0)
        while start < end and item.text[start].isspace():
            start += 1
        return Answered(item.text[start:end], score, start, end)

    def _best(self, encoding: Window, outputs: Outputs) -> tuple[tuple[float, int, int], float]:
        """The score and characters of a window's best span, and the probability that it holds no answer."""
        inside = np.array([sequence == self._context for sequence in encoding.sequence_ids])
        candidates = inside.copy()
        candidates[0] = True  # where models trained for it put "no answer"
        start, end = (
            softmax(np.where(candidates, outputs[name].astype(np.float64), -np.inf))
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
