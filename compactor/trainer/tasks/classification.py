"""One label for a text or for a pair of texts, as in GLUE; columns are found as ``compactor bench`` finds them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from compactor.evaluation.datafiles import Table
from compactor.evaluation.texts import PAIRS, SINGLES
from compactor.trainer.tasks.base import Features, Row, collate_inputs, cut_note, encode, require_column
from compactor.trainer.tasks.labels import LabelledData, read_labels


@dataclasses.dataclass(frozen=True)
class ClassificationData(LabelledData):
    """Texts and their labels; ``TaskData`` says what the names mean."""

    tokenizer: Any
    task: str = dataclasses.field(default="text-classification", init=False)

    def collate(self, features: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """A padded batch, with ``labels`` of shape (B,)."""
        labels = torch.tensor([feature["labels"] for feature in features])
        return {**collate_inputs(self.tokenizer, features), "labels": labels}


def open_classification(
    train: Table, evaluation: Table, tokenizer: Any, *, labels: Sequence[str] | None, max_length: int
) -> ClassificationData:
    """Texts with their labels.

    Args:
        train: What is learned.
        evaluation: What is scored.
        tokenizer: The model's.
        labels: The names of the model's labels by id; None takes those of the training data.
        max_length: Tokens of a text or pair, at most.

    Raises:
        UsageError: There are no texts or labels, a label is unknown, or all of the training data's are the same.
    """
    found = read_labels(train, evaluation, labels)
    notes = list(found.notes)
    features: list[Features] = []
    for table, ids, what in ((train, found.learned, "training"), (evaluation, found.references, "evaluation")):
        rows, cut = _encode_texts(table, tokenizer, max_length)
        notes += cut_note(cut, len(rows), f"{what} texts", max_length)
        features.append(Features([{**row, "labels": label} for row, label in zip(rows, ids, strict=True)]))
    return ClassificationData(features[0], features[1], found.references, found.names, tuple(notes), tokenizer)


def find_text_columns(table: Table) -> tuple[str, ...]:
    """The columns of a pair of texts, else of a single text; none where there is neither."""
    for pair in PAIRS:
        first, second = table.find(pair[0]), table.find(pair[1])
        if first is not None and second is not None:
            return (first, second)
    single = table.find(*SINGLES)
    return () if single is None else (single,)


def _encode_texts(table: Table, tokenizer: Any, max_length: int) -> tuple[list[Row], int]:
    columns = find_text_columns(table)
    what = f"text: none of {', '.join(SINGLES)}, nor a pair such as {' and '.join(PAIRS[0])}"
    require_column(table, columns[0] if columns else None, what)
    return encode(tokenizer, table, [table.texts(column) for column in columns], limit=max_length)
