"""What a label of an example is, and how good labels are that a model gives.

The labels are the model's where it has names for them, and else those of the training data: whole numbers in their
order, names in that of the alphabet.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from compactor.errors import UsageError
from compactor.evaluation.datafiles import Table, shown
from compactor.evaluation.inputs import InputSpec
from compactor.evaluation.texts import LABELS, foreign_label, label_reader
from compactor.trainer.tasks.base import first_array, judge_answers, require_column, require_finite, score_answers

_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?")
_SHOWN_LABELS = 12


@dataclasses.dataclass(frozen=True)
class LabelledData:
    """Examples and their labels; ``TaskData`` says what the names mean."""

    train: Sequence[Mapping[str, Any]]
    evaluation: Sequence[Mapping[str, Any]]
    references: tuple[int, ...]
    label_names: tuple[str, ...]
    notes: tuple[str, ...]
    metric: str = dataclasses.field(default="accuracy", init=False)

    def read(self, predictions: Any) -> list[int]:
        """The label with the largest logit of each example; ``predictions`` are (N, labels)."""
        logits = first_array(predictions)
        if logits.shape != (len(self.references), len(self.label_names)):
            raise ValueError(f"expected {len(self.references)} x {len(self.label_names)} logits, got {logits.shape}")
        require_finite(logits)
        return [int(label) for label in logits.argmax(-1)]

    def score(self, predictions: Any, label_ids: Any) -> dict[str, float]:
        """Accuracy and F1, and Matthews where there are two labels."""
        return score_answers(self._metrics, self.read(predictions), self.references, labels=len(self.label_names))

    def judge(self, predictions: Any) -> dict[str, dict[str, Any]]:
        """The same with their standard errors."""
        return judge_answers(self._metrics, self.read(predictions), self.references, labels=len(self.label_names))

    @property
    def _metrics(self) -> tuple[str, ...]:
        return ("accuracy", "f1", "matthews") if len(self.label_names) == 2 else ("accuracy", "f1")


@dataclasses.dataclass(frozen=True)
class Labels:
    """The labels of two tables.

    Attributes:
        names: By id.
        learned: Ids, one a training example.
        references: Ids, one an evaluation example.
        notes: What the user should know.
    """

    names: tuple[str, ...]
    learned: tuple[int, ...]
    references: tuple[int, ...]
    notes: tuple[str, ...]


def read_labels(train: Table, evaluation: Table, labels: Sequence[str] | None) -> Labels:
    """The labels of both tables.

    Args:
        train: What is learned.
        evaluation: What is scored.
        labels: The names of the model's labels by id; None takes those of the training data.

    Raises:
        UsageError: There are none, one is unknown, or all of the training data's are the same.
    """
    if labels is not None and len(labels) < 2:
        raise UsageError(
            "the model has a single output, a number instead of a label, and that is not trained here",
            where=str(train.path),
            todo="give a model with two labels or more",
        )
    names = tuple(labels) if labels is not None else _infer_labels(train)
    read = _by_name_or_number(names) if labels is not None else _by_name(names, train.path.name)
    notes = [] if labels is not None else [f"The labels are those of the training data: {_listed(names)}."]
    learned = read(train)
    counts = Counter(learned)
    if len(counts) < 2:
        raise UsageError(
            f"all examples have the same label, '{names[learned[0]]}', so there is nothing to learn",
            where=str(train.path),
            todo="add examples of another label",
        )
    references = read(evaluation)
    strange = sorted({label for label in references if label not in counts})
    if strange:
        count = sum(label in strange for label in references)
        found = _listed([names[label] for label in strange])
        notes.append(f"{count} evaluation examples have a label that no training example has: {found}.")
    return Labels(names, tuple(learned), tuple(references), tuple(notes))


def find_label_column(table: Table) -> str | None:
    """The column of the labels."""
    return table.find(*LABELS)


Reader = Callable[[Table], list[int]]


def _by_name_or_number(names: Sequence[str]) -> Reader:
    """Reads the model's labels: their names in any case, or else their numbers."""
    spec = InputSpec(0, labels={name: i for i, name in enumerate(names)}, label_count=len(names))
    to_id = label_reader(spec)

    def read(table: Table) -> list[int]:
        ids = []
        for value, place in _values(table):
            label = to_id(_name(value))  # a number that is the name of a label is that label
            if label is None:
                raise foreign_label(table, spec, place, value)
            ids.append(label)
        return ids

    return read


def _by_name(names: Sequence[str], source: str) -> Reader:
    """Reads labels by their names alone: where the labels are the numbers 1 to 5, the number 1 is the first of them."""
    ids = {name: i for i, name in enumerate(names)}

    def read(table: Table) -> list[int]:
        labels = []
        for value, place in _values(table):
            name = _name(value)
            if name not in ids:
                raise UsageError(
                    f"the label of {place} is none of the training data's: {shown(value)}",
                    where=str(table.path),
                    todo=f"{source} has: {_listed(names)}",
                )
            labels.append(ids[name])
        return labels

    return read


def _infer_labels(table: Table) -> tuple[str, ...]:
    names = set()
    for value, place in _values(table):
        name = _name(value)
        if name is None:
            raise UsageError(
                f"the label of {place} is not a whole number or a name: {shown(value)}",
                where=str(table.path),
                todo="to predict other numbers is not trained here" if _is_number(value) else "complete or remove it",
            )
        names.add(name)
    if all(_NUMBER.fullmatch(name) for name in names):
        return tuple(sorted(names, key=int))
    return tuple(sorted(names))


def _name(value: Any) -> str | None:
    """A label's name: of a whole number, in whatever spelling, its digits; None where it is no label."""
    if isinstance(value, bool | int):
        return str(int(value))
    if _is_number(value):
        return str(int(float(value))) if float(value).is_integer() else None
    return (value.strip() or None) if isinstance(value, str) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or (isinstance(value, str) and _NUMBER.fullmatch(value.strip()) is not None)


def _values(table: Table) -> list[tuple[Any, str]]:
    column = require_column(table, find_label_column(table), f"labels: none of {', '.join(LABELS)}")
    return list(zip(table.column(column), table.places, strict=True))


def _listed(names: Sequence[str]) -> str:
    return ", ".join([*names[:_SHOWN_LABELS], *(["…"] if len(names) > _SHOWN_LABELS else [])])
