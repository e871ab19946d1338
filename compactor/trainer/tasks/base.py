"""What the trainer knows of a task: features, how they become batches, and how good the answers are.

Features hold neither padding nor masks; batches get both, on the side where the tokenizer pads. Values of metrics lie
between 0 and 1 (Matthews: from -1), and higher is better.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, overload

import numpy as np
import torch
from numpy.typing import NDArray

from compactor.errors import MeasurementError, UsageError
from compactor.evaluation.datafiles import Table
from compactor.evaluation.quality import METRICS, evaluate

_CHUNK = 1000  # texts that are tokenized at a time: their encodings are large
_IGNORED = -100  # what the loss of transformers does not look at, and what Trainer fills up predictions with

Row = dict[str, Any]  # a feature as it is made: arrays of token ids, and numbers


class TaskData(Protocol):
    """The data of one task."""

    @property
    def task(self) -> str:
        """Its name."""
        ...

    @property
    def metric(self) -> str:
        """The metric that models are compared by."""
        ...

    @property
    def label_names(self) -> tuple[str, ...]:
        """The names of the labels by id; empty where the task has none."""
        ...

    @property
    def train(self) -> Sequence[Mapping[str, Any]]:
        """What is learned: lists of numbers, or numbers, under the names that the model's ``forward`` has."""
        ...

    @property
    def evaluation(self) -> Sequence[Mapping[str, Any]]:
        """What is scored, with labels, so that it has a loss."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know."""
        ...

    @property
    def references(self) -> Sequence[Any]:
        """The right answers, one an example of the evaluation table, as ``quality.evaluate`` takes them."""
        ...

    def collate(self, features: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """A padded batch."""
        ...

    def read(self, predictions: Any) -> Sequence[Any]:
        """What the model answers, one an example of the evaluation table.

        Args:
            predictions: What ``Trainer`` gathered on ``evaluation``, in order: an array or a tuple of arrays.

        Raises:
            MeasurementError: They are not finite numbers.
        """
        ...

    def score(self, predictions: Any, label_ids: Any) -> dict[str, float]:
        """The metrics, without their errors, which take longer.

        Args:
            predictions: As in ``read``.
            label_ids: What ``Trainer`` gathered of the labels; not looked at, for ``references`` say more.

        Raises:
            MeasurementError: As in ``read``.
        """
        ...

    def judge(self, predictions: Any) -> dict[str, dict[str, Any]]:
        """By metric its ``value``, the standard error ``se`` of it, and ``n``, the examples.

        Raises:
            MeasurementError: As in ``read``.
        """
        ...


class Features(Sequence[dict[str, Any]]):
    """Features, each column of them end to end in one array: as lists of numbers they would fill the memory.

    Args:
        rows: Arrays of token ids, of any length, or numbers; the same names in every row.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        self._count = len(rows)
        self._columns: dict[str, tuple[NDArray[np.int32], NDArray[np.int64] | None]] = {}
        for name, first in rows[0].items() if rows else ():
            values = [np.atleast_1d(np.asarray(row[name], np.int32)) for row in rows]
            offsets = np.concatenate([[0], np.cumsum([len(each) for each in values])]).astype(np.int64)
            self._columns[name] = (np.concatenate(values), offsets if isinstance(first, np.ndarray) else None)

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...

    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...

    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        """One feature, its arrays as lists; or several."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._count))]
        index = range(self._count)[index]
        return {
            name: int(values[index]) if offsets is None else values[offsets[index] : offsets[index + 1]].tolist()
            for name, (values, offsets) in self._columns.items()
        }


# Token ids


def encode(
    tokenizer: Any, table: Table, texts: Sequence[Sequence[str]], *, limit: int, as_target: bool = False
) -> tuple[list[Row], int]:
    """The token ids of texts or of pairs of them, and how many were cut.

    Args:
        tokenizer: The model's.
        table: Where they are from, for messages.
        texts: One column of them or two. Of a pair that is too long the longer text is cut.
        limit: Tokens of a sequence, at most, special ones included.
        as_target: Whether they are what a model writes.

    Raises:
        UsageError: A text has no tokens.
    """
    rows: list[Row] = []
    cut = 0
    for start in range(0, len(texts[0]), _CHUNK):
        chunk = [column[start : start + _CHUNK] for column in texts]
        found = _encode(tokenizer, chunk, as_target=as_target)
        long = [i for i, row in enumerate(found) if len(row["input_ids"]) > limit]
        if long:
            again = [[column[i] for i in long] for column in chunk]
            shorter = _encode(tokenizer, again, as_target=as_target, truncation=True, max_length=limit)
            for i, row in zip(long, shorter, strict=True):
                found[i] = row
        rows += found
        cut += len(long)
    for row, place in zip(rows, table.places, strict=True):
        if not len(row["input_ids"]):
            raise UsageError(f"{place} has no text", where=str(table.path), todo="complete or remove it")
    return rows, cut


def to_rows(encoded: Mapping[str, Any]) -> list[Row]:
    """What a tokenizer gave, an example each; token types only where the tokenizer makes them by itself."""
    names = [name for name in ("input_ids", "token_type_ids") if name in encoded]
    return [{name: np.array(encoded[name][i], np.int32) for name in names} for i in range(len(encoded["input_ids"]))]


def cut_note(cut: int, count: int, what: str, limit: int) -> tuple[str, ...]:
    """The sentence about texts that were too long; none where none was."""
    return (f"{cut} of {count} {what} were cut to {limit} tokens.",) if cut else ()


def require_column(table: Table, name: str | None, what: str) -> str:
    """The column of that name.

    Raises:
        UsageError: There is none.
    """
    if name is None:
        todo = f"rename one of its columns: {', '.join(table.columns)}"
        raise UsageError(f"there is no column of {what}", where=str(table.path), todo=todo)
    return name


def _encode(tokenizer: Any, texts: Sequence[Sequence[str]], *, as_target: bool, **options: Any) -> list[Row]:
    columns = [list(column) for column in texts]
    given = {"text_target": columns[0]} if as_target else dict(zip(("text", "text_pair"), columns, strict=False))
    return to_rows(tokenizer(**given, return_attention_mask=False, verbose=False, **options))


# Batches


def collate_inputs(tokenizer: Any, features: Sequence[Mapping[str, Any]], *, width: int = 0) -> dict[str, torch.Tensor]:
    """Token ids, their mask, and their types where the features have them.

    Args:
        tokenizer: Says on which side padding is, and what fills it.
        features: Of one batch.
        width: How long the batch is, at least.
    """
    left = tokenizer.padding_side == "left"
    ids = [feature["input_ids"] for feature in features]
    batch = {
        "input_ids": pad(ids, tokenizer.pad_token_id, left=left, width=width),
        "attention_mask": pad([[1] * len(each) for each in ids], 0, left=left, width=width),
    }
    if "token_type_ids" in features[0]:
        types = [feature["token_type_ids"] for feature in features]
        batch["token_type_ids"] = pad(types, tokenizer.pad_token_type_id, left=left, width=width)
    return batch


def collate_labels(features: Sequence[Mapping[str, Any]]) -> torch.Tensor:
    """(B, S): the token ids that are to be written; the loss does not look behind their ends."""
    return pad([feature["labels"] for feature in features], _IGNORED)


def pad(lists: Sequence[Sequence[int]], fill: int, *, left: bool = False, width: int = 0) -> torch.Tensor:
    """(B, S): the lists, filled up to the longest of them or to ``width``."""
    size = max(width, *(len(each) for each in lists))
    filled = [[fill] * (size - len(each)) for each in lists]
    return torch.tensor([[*f, *each] if left else [*each, *f] for f, each in zip(filled, lists, strict=True)])


# Answers


def first_array(predictions: Any) -> NDArray[Any]:
    """What ``Trainer`` gathered of the model's first output; others, such as an encoder's state, come behind it."""
    return np.asarray(predictions[0] if isinstance(predictions, tuple | list) else predictions)


def require_finite(values: NDArray[Any]) -> None:
    """Raise MeasurementError where a number is none."""
    if not np.isfinite(values).all():
        raise MeasurementError(
            "the model's outputs are not finite numbers, so they answer nothing",
            todo="the training has diverged: lower the learning rate, or train in full precision",
        )


def score_answers(
    metrics: Iterable[str], answers: Sequence[Any], references: Sequence[Any], *, labels: int = 2
) -> dict[str, float]:
    """The value of each metric."""
    scores = {}
    for name in metrics:
        metric = METRICS[name]
        if metric.each is not None:
            scores[name] = float(metric.each(answers, references).mean())
        elif metric.whole is not None:
            scores[name] = metric.whole(np.asarray(answers, np.int64), np.asarray(references, np.int64), labels)
    return scores


def judge_answers(
    metrics: Iterable[str], answers: Sequence[Any], references: Sequence[Any], *, labels: int = 2
) -> dict[str, dict[str, Any]]:
    """The value of each metric, with its standard error."""
    return {name: evaluate(name, answers, references, labels=labels) for name in metrics}
