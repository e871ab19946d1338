"""The answer to a question: a span of its context.

As transformers' question-answering pipeline finds it (version 4.57, the last that has one): the probability of a span
is that of its start times that of its end among the tokens of its window; the best spans of all windows are widened to
whole words, and those that read the same add up.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..answers import Answer, Answered, Refused
from ..encoding import Encoded
from ..reading_options import ReadingOptions
from ..tokenizer import Window
from .shared import NOT_FINITE, Outputs, softmax

# Spans of a window that are looked at, as the pipeline's ``top_k * 2 + 10`` for one answer.
_CANDIDATES = 12

_OUTSIDE = -10_000.0  # the logit of a token that is none of the context's


class AnswerReader:
    """The best span over all windows.

    Args:
        options: How long it may be, and whether there may be none.
        context_first: Whether the context stands before the question.
        classifier: The number of the tokenizer's CLS token, where some models put "no answer"; None without one.
    """

    def __init__(self, options: ReadingOptions, *, context_first: bool = False, classifier: int | None = None) -> None:
        self._options, self._context, self._classifier = options, 0 if context_first else 1, classifier

    def __call__(self, item: Encoded, windows: Sequence[Outputs]) -> Answer | Refused:
        """Of one question; its graph gives ``start_logits`` and ``end_logits`` of shape (S,)."""
        answers: dict[str, Answered] = {}
        none = 1.0
        for window, outputs in zip(item.windows, windows, strict=True):
            starts, ends = outputs["start_logits"], outputs["end_logits"]
            if not (np.isfinite(starts).all() and np.isfinite(ends).all()):
                return Refused(NOT_FINITE)
            allowed = self._allowed(window)
            start, end = (softmax(np.where(allowed, logits.astype(np.float64), _OUTSIDE)) for logits in (starts, ends))
            none = min(none, float(start[0] * end[0]))
            for score, first, last in self._best(start, end, allowed):
                begin, stop = self._characters(window, first, last)
                text = item.text[begin:stop]
                known = answers.get(text.lower())
                answers[text.lower()] = (
                    Answered(text, score, begin, stop)
                    if known is None
                    else Answered(known.text, known.score + score, known.start, known.end)
                )
        found = list(answers.values())
        if self._options.no_answer or not found:
            found.append(Answered("", none, 0, 0))
        return max(found, key=lambda answer: answer.score)

    def _allowed(self, window: Window) -> NDArray[np.bool_]:
        """(S,) where an answer may begin and end: the context, and CLS."""
        inside = [
            seen != 0 and (sequence == self._context or token == self._classifier)
            for token, sequence, seen in zip(window.ids, window.sequence_ids, window.attention_mask, strict=True)
        ]
        return np.array(inside)

    def _best(
        self, start: NDArray[Any], end: NDArray[Any], allowed: NDArray[np.bool_]
    ) -> Iterator[tuple[float, int, int]]:
        """The likeliest spans of a window, best first: probability, first and last token."""
        start, end = start.copy(), end.copy()
        start[0] = end[0] = 0.0
        spans = np.tril(np.triu(np.outer(start, end)), self._options.answer_tokens - 1)
        order = np.argsort(-spans, axis=None, kind="stable")[:_CANDIDATES]
        for first, last in zip(*np.unravel_index(order, spans.shape), strict=True):
            if allowed[first] and allowed[last]:
                yield float(spans[first, last]), int(first), int(last)

    def _characters(self, window: Window, first: int, last: int) -> tuple[int, int]:
        """Of a span, widened to whole words; where the tokenizer knows none, those of its tokens."""
        words = window.token_to_word(first), window.token_to_word(last)
        if words[0] is not None and words[1] is not None:
            begin = window.word_to_chars(words[0], self._context)
            stop = window.word_to_chars(words[1], self._context)
            if begin is not None and stop is not None:
                return begin[0], stop[1]
        return window.offsets[first][0], window.offsets[last][1]
