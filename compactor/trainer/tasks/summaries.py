"""A text in few words: a document goes in, and a summary of it is written.

The model makes its decoder's inputs from the labels. Evaluation needs texts that were generated
(``predict_with_generate``), not logits. ROUGE-L is that of the whole text: the variant that splits sentences first
needs data that nltk would download.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from compactor.evaluation.datafiles import Table
from compactor.evaluation.texts import DOCUMENTS, SUMMARIES
from compactor.trainer.tasks.base import (
    Features,
    collate_inputs,
    collate_labels,
    cut_note,
    encode,
    first_array,
    judge_answers,
    require_column,
    score_answers,
)

_METRICS = ("rouge1", "rouge2", "rougeL")


@dataclasses.dataclass(frozen=True)
class SummaryData:
    """Documents and their summaries; ``TaskData`` says what the names mean."""

    train: Features
    evaluation: Features
    references: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]
    tokenizer: Any
    task: str = dataclasses.field(default="summarization", init=False)
    metric: str = dataclasses.field(default="rouge2", init=False)
    label_names: tuple[str, ...] = dataclasses.field(default=(), init=False)

    def collate(self, features: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """A padded batch, with ``labels`` of shape (B, T)."""
        return {**collate_inputs(self.tokenizer, features), "labels": collate_labels(features)}

    def read(self, predictions: Any) -> list[str]:
        """The summaries; ``predictions`` are the token ids that were generated, (N, T)."""
        ids = first_array(predictions)
        if ids.ndim != 2 or len(ids) != len(self.references) or not np.issubdtype(ids.dtype, np.integer):
            raise ValueError(f"expected token ids of {len(self.references)} summaries, got {ids.dtype} of {ids.shape}")
        ids = np.where(ids < 0, self.tokenizer.pad_token_id, ids)  # Trainer fills up with -100
        return [text.strip() for text in self.tokenizer.batch_decode(ids.tolist(), skip_special_tokens=True)]

    def score(self, predictions: Any, label_ids: Any) -> dict[str, float]:
        """ROUGE-1, ROUGE-2 and ROUGE-L."""
        return score_answers(_METRICS, self.read(predictions), self.references)

    def judge(self, predictions: Any) -> dict[str, dict[str, Any]]:
        """The same with their standard errors."""
        return judge_answers(_METRICS, self.read(predictions), self.references)


def open_summaries(
    train: Table, evaluation: Table, tokenizer: Any, *, max_length: int, target_length: int
) -> SummaryData:
    """Documents with their summaries.

    Args:
        train: What is learned.
        evaluation: What is scored.
        tokenizer: The model's.
        max_length: Tokens of a document, at most.
        target_length: Tokens of a summary, at most.

    Raises:
        UsageError: There are no documents or summaries.
    """
    features: list[Features] = []
    notes: list[str] = []
    for table, what in ((train, "training"), (evaluation, "evaluation")):
        documents = table.texts(require_column(table, find_document_column(table), _either(DOCUMENTS, "documents")))
        rows, cut = encode(tokenizer, table, [documents], limit=max_length)
        notes += cut_note(cut, len(rows), f"{what} documents", max_length)
        targets, cut = encode(tokenizer, table, [_summaries(table)], limit=target_length, as_target=True)
        notes += cut_note(cut, len(rows), f"{what} summaries", target_length)
        pairs = zip(rows, targets, strict=True)
        features.append(Features([{**row, "labels": target["input_ids"]} for row, target in pairs]))
    references = tuple((summary,) for summary in _summaries(evaluation))
    return SummaryData(features[0], features[1], references, tuple(notes), tokenizer)


def find_document_column(table: Table) -> str | None:
    """The column of the documents."""
    return table.find(*DOCUMENTS)


def find_summary_column(table: Table) -> str | None:
    """The column of the summaries."""
    return table.find(*SUMMARIES)


def _summaries(table: Table) -> list[str]:
    return table.texts(require_column(table, find_summary_column(table), _either(SUMMARIES, "summaries")))


def _either(names: Sequence[str], what: str) -> str:
    return f"{what}: none of {', '.join(names)}"
