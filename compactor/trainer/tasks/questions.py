"""The answer to a question, taken out of a context, as in SQuAD 1.1 and 2.0.

A context that is too long becomes several windows, which overlap. In training, a window that does not hold the whole
answer points to its first token. In evaluation, all windows of a question compete: its answer is the span with the
highest sum of start and end logit over all of them, found by trying every span. Where some evaluation questions have no
answer, none is given where the first token's sum, the lowest of the question's windows, is higher than that of the
span by more than a threshold.

Reference: Rajpurkar, Jia and Liang, "Know What You Don't Know: Unanswerable Questions for SQuAD", 2018.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from compactor.errors import ModelDirectoryError, UsageError
from compactor.evaluation.answers import best_span
from compactor.evaluation.datafiles import Table, shown
from compactor.evaluation.tokens import character_spans
from compactor.trainer.tasks.base import (
    Features,
    Row,
    collate_inputs,
    judge_answers,
    require_column,
    require_finite,
    score_answers,
    to_rows,
)

_METRICS = ("squad_f1", "exact_match")
_CHUNK = 200  # questions that are tokenized at a time: each may give dozens of windows
_FORM = 'expected {"text": ["…"], "answer_start": [0]}, with empty lists where there is no answer'

Answer = tuple[str, int | None]  # the text, and the character of the context where it begins


@dataclasses.dataclass(frozen=True)
class Question:
    """One row of the table.

    Attributes:
        name: What a message calls it.
        text: The question.
        context: What the answer is taken from.
        answers: Those that are accepted; none means that there is no answer.
    """

    name: str
    text: str
    context: str
    answers: tuple[Answer, ...]


@dataclasses.dataclass(frozen=True)
class Window:
    """A piece of a context that the model sees at a time.

    Attributes:
        question: Which question it is of.
        spans: (S, 2) where each token begins and ends in the context; -1 for tokens of the question and special ones.
    """

    question: int
    spans: NDArray[np.int32]


@dataclasses.dataclass(frozen=True)
class QuestionData:
    """Questions and answers; ``TaskData`` says what the other names mean.

    Attributes:
        contexts: Of each evaluation question.
        windows: Of all evaluation questions, one a feature of ``evaluation``.
        max_answer_tokens: Tokens of an answer, at most.
        width: How long a batch is, at least.
        null_threshold: By how much "no answer" must be better than the best answer, where it may be given.
    """

    train: Features
    evaluation: Features
    references: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]
    tokenizer: Any
    contexts: tuple[str, ...]
    windows: tuple[Window, ...]
    max_answer_tokens: int
    width: int = 0
    null_threshold: float = 0.0
    task: str = dataclasses.field(default="question-answering", init=False)
    metric: str = dataclasses.field(default="squad_f1", init=False)
    label_names: tuple[str, ...] = dataclasses.field(default=(), init=False)

    def collate(self, features: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """A padded batch, with ``start_positions`` and ``end_positions`` of shape (B,)."""
        batch = collate_inputs(self.tokenizer, features, width=self.width)
        for name in ("start_positions", "end_positions"):
            positions = [
                feature[name] + self._shift(batch["input_ids"].shape[1], len(feature["input_ids"]))
                for feature in features
            ]
            batch[name] = torch.tensor(positions)
        return batch

    def read(self, predictions: Any) -> list[str]:
        """The answers, empty where there is none; ``predictions`` are start and end logits, both (windows, S)."""
        starts, ends = (np.asarray(logits) for logits in predictions[:2])
        if starts.ndim != 2 or starts.shape != ends.shape or len(starts) != len(self.windows):
            raise ValueError(f"expected logits of {len(self.windows)} windows, got {starts.shape} and {ends.shape}")
        best = [(-math.inf, "")] * len(self.contexts)
        nulls = [math.inf] * len(self.contexts)
        for window, start, end in zip(self.windows, starts, ends, strict=True):
            i, size = window.question, len(window.spans)
            first = self._shift(len(start), size)  # what lies around the window is padding
            start, end = start[first : first + size], end[first : first + size]
            require_finite(start)
            require_finite(end)
            nulls[i] = min(nulls[i], float(start[0]) + float(end[0]))
            found = best_span(start, end, window.spans[:, 0] >= 0, longest=self.max_answer_tokens)
            if found is not None and found[0] > best[i][0]:
                text = self.contexts[i][window.spans[found[1], 0] : window.spans[found[2], 1]]
                best[i] = (found[0], text.strip())
        may_be_none = any(not answers for answers in self.references)
        return [
            "" if may_be_none and null - score > self.null_threshold else text
            for (score, text), null in zip(best, nulls, strict=True)
        ]

    def score(self, predictions: Any, label_ids: Any) -> dict[str, float]:
        """SQuAD's F1 and exact match; "no answer" is right where there is none, and only there."""
        return score_answers(_METRICS, self.read(predictions), self.references)

    def judge(self, predictions: Any) -> dict[str, dict[str, Any]]:
        """The same with their standard errors."""
        return judge_answers(_METRICS, self.read(predictions), self.references)

    def _shift(self, width: int, size: int) -> int:
        """Where a window of ``size`` tokens begins in a batch of ``width``."""
        return width - size if self.tokenizer.padding_side == "left" else 0


def open_questions(
    train: Table, evaluation: Table, tokenizer: Any, *, max_length: int, stride: int, max_answer_tokens: int
) -> QuestionData:
    """Questions with their contexts and answers.

    A question may have half of what a window holds beyond ``stride``; more is cut off, so that windows get on.

    Args:
        train: What is learned.
        evaluation: What is scored.
        tokenizer: The model's.
        max_length: Tokens of a window, at most.
        stride: Tokens that two neighbouring windows of a context share.
        max_answer_tokens: Tokens of an answer, at most.

    Raises:
        UsageError: There are no questions, or an answer is not where it is said to be; or windows are too short.
        ModelDirectoryError: The tokenizer does not say where in a text its tokens are.
    """
    if not tokenizer.is_fast:
        raise ModelDirectoryError(
            "this tokenizer does not say where in the text a token is",
            where=str(tokenizer.name_or_path) or None,
            todo="save it with a tokenizer.json beside it",
        )
    room = max_length - tokenizer.num_special_tokens_to_add(pair=True) - stride
    if stride < 0 or room < 2:
        raise UsageError(
            f"a window of {max_length} tokens, of which it shares {stride} with the next, has no room for a question",
            todo="make windows longer, or let them share fewer tokens",
        )
    notes: list[str] = []
    learned = _Opened.open(train, tokenizer, "training", room // 2, max_length, stride)
    scored = _Opened.open(evaluation, tokenizer, "evaluation", room // 2, max_length, stride)
    notes += [*learned.notes, *scored.notes]
    references = tuple(tuple(text for text, _ in question.answers) for question in scored.questions)
    unanswerable = sum(not answers for answers in references)
    if unanswerable:
        notes.append(f"{unanswerable} of {len(references)} evaluation questions have no answer.")
    longest = max(len(window.spans) for window in (*learned.windows, *scored.windows))
    return QuestionData(
        learned.features,
        scored.features,
        references,
        tuple(notes),
        tokenizer,
        contexts=tuple(question.context for question in scored.questions),
        windows=scored.windows,
        max_answer_tokens=max_answer_tokens,
        # Padding in front moves the windows: one width for all batches, so that it is known where each begins.
        width=longest if tokenizer.padding_side == "left" else 0,
    )


@dataclasses.dataclass(frozen=True)
class _Opened:
    """A table, cut into windows."""

    questions: tuple[Question, ...]
    windows: tuple[Window, ...]
    features: Features
    notes: tuple[str, ...]

    @classmethod
    def open(
        cls, table: Table, tokenizer: Any, what: str, question_length: int, max_length: int, stride: int
    ) -> _Opened:
        notes = []
        whole = _read_questions(table, must_be_placed=what == "training")
        questions = _shorten(whole, tokenizer, question_length)
        cut = sum(short.text != long.text for short, long in zip(questions, whole, strict=True))
        if cut:
            notes.append(f"{cut} of {len(whole)} {what} questions were cut to {question_length} tokens.")
        windows, rows = [], []
        held = set()
        for window, row in _cut_into_windows(questions, tokenizer, max_length, stride):
            place = _find_answer(questions[window.question], window)
            if place is not None:
                held.add(window.question)
            first, last = place or (0, 0)
            windows.append(window)
            rows.append({**row, "start_positions": first, "end_positions": last})
        if len(windows) > len(questions):
            notes.append(f"{len(questions)} {what} questions have {len(windows)} windows of up to {max_length} tokens.")
        lost = sum(bool(question.answers) and i not in held for i, question in enumerate(questions))
        if lost:
            notes.append(f"{lost} of {len(questions)} {what} questions have an answer that no window holds in full.")
        return cls(tuple(questions), tuple(windows), Features(rows), tuple(notes))


# Reading the table


def _read_questions(table: Table, *, must_be_placed: bool) -> list[Question]:
    """The rows of the table; where the answers begin may be left out unless ``must_be_placed``."""
    texts = table.texts(require_column(table, table.find("question"), "'question'"))
    contexts = table.texts(require_column(table, table.find("context"), "'context'"))
    answers = table.column(require_column(table, table.find("answers"), "'answers'"))
    questions = []
    for row, place, text, context, value in zip(table.rows, table.places, texts, contexts, answers, strict=True):
        name = f"question {row['id']} ({place})" if "id" in row else f"the question of {place}"
        found = () if row.get("is_impossible") is True else _read_answers(value)
        if found is None:
            raise UsageError(
                f"'answers' of {name} is not in SQuAD's form: {shown(value)}", where=str(table.path), todo=_FORM
            )
        for answer, start in found:
            if start is None and must_be_placed:
                raise UsageError(f"{name} does not say where its answer begins", where=str(table.path), todo=_FORM)
            if start is not None and (start < 0 or context[start : start + len(answer)] != answer):
                raise UsageError(
                    f"the answer of {name} is not where 'answer_start' says: {shown(answer)} at {start}",
                    where=str(table.path),
                    todo="'answer_start' counts the characters of the context in front of the answer",
                )
        questions.append(Question(name, text.strip(), context, found))
    return questions


def _read_answers(value: Any) -> tuple[Answer, ...] | None:
    """The answers in either of SQuAD's forms; None where it is neither."""
    if isinstance(value, Mapping):
        texts, starts = value.get("text"), value.get("answer_start")
        if not isinstance(texts, list) or not isinstance(starts, list | None):
            return None
        starts = [None] * len(texts) if starts is None else starts
        if len(texts) != len(starts):
            return None
        pairs = list(zip(texts, starts, strict=True))
    elif isinstance(value, list):
        pairs = [
            (each.get("text"), each.get("answer_start")) if isinstance(each, Mapping) else (each, None)
            for each in value
        ]
    else:
        return None
    if not all(isinstance(text, str) and (start is None or type(start) is int) for text, start in pairs):
        return None
    return tuple((text, start) for text, start in pairs if text)


def _shorten(questions: Sequence[Question], tokenizer: Any, limit: int) -> list[Question]:
    """The questions, with those that have more than ``limit`` tokens cut."""
    result = []
    for start in range(0, len(questions), _CHUNK):
        chunk = questions[start : start + _CHUNK]
        found = _tokenize_alone(tokenizer, [question.text for question in chunk])
        for question, spans in zip(chunk, found, strict=True):
            text = question.text
            while len(spans) > limit:  # what is left of a word may have more tokens than it had before
                text = text[: min(spans[limit - 1][1], len(text) - 1)]
                (spans,) = _tokenize_alone(tokenizer, [text])
            result.append(dataclasses.replace(question, text=text))
    return result


def _tokenize_alone(tokenizer: Any, texts: list[str]) -> list[list[tuple[int, int]]]:
    """Where the tokens of each text are in it."""
    encoded = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    spans: list[list[tuple[int, int]]] = encoded["offset_mapping"]
    return spans


# Windows


def _cut_into_windows(
    questions: Sequence[Question], tokenizer: Any, max_length: int, stride: int
) -> Iterator[tuple[Window, Row]]:
    """The windows of all questions, in their order, and what the model reads of each."""
    for start in range(0, len(questions), _CHUNK):
        chunk = questions[start : start + _CHUNK]
        encoded = tokenizer(
            [question.text for question in chunk],
            [question.context for question in chunk],
            truncation="only_second",
            max_length=max_length,
            stride=stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            return_attention_mask=False,
            verbose=False,
        )
        for i, row in enumerate(to_rows(encoded)):
            owner = start + encoded["overflow_to_sample_mapping"][i]
            yield Window(owner, character_spans(encoded["offset_mapping"][i], encoded.sequence_ids(i))), row


def _find_answer(question: Question, window: Window) -> tuple[int, int] | None:
    """The first and the last token of the first answer; None where the window does not hold it in full."""
    if not question.answers:
        return None
    answer, start = question.answers[0]
    if start is None:
        start = question.context.find(answer)
        if start < 0:
            return None
    end = start + len(answer.rstrip())
    start += len(answer) - len(answer.lstrip())
    begins, ends = window.spans[:, 0], window.spans[:, 1]
    inside = np.flatnonzero(begins >= 0)
    if not len(inside) or begins[inside[0]] > start or ends[inside[-1]] < end:
        return None
    touched = inside[(ends[inside] > start) & (begins[inside] < end)]
    return (int(touched[0]), int(touched[-1])) if len(touched) else None
