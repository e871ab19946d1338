"""The tasks that can be trained, each in a file of its own behind the same words.

Nothing here is random: the same tables and the same tokenizer give the same features in the same order.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Sequence
from typing import Any

from compactor.errors import ModelDirectoryError, UsageError
from compactor.evaluation.datafiles import Table
from compactor.trainer.tasks.base import TaskData

TASKS = ("text-classification", "question-answering", "summarization", "image-classification")
LABELLED = ("text-classification", "image-classification")


def open_task(
    task: str,
    train: Table,
    evaluation: Table,
    tokenizer: Any,
    *,
    labels: Sequence[str] | None,
    max_length: int,
    stride: int = 128,
    max_answer_tokens: int = 30,
    target_length: int = 142,
    token_types: int | None = None,
) -> TaskData:
    """The data of a task, as the trainer takes it.

    Args:
        task: Its name, one of ``TASKS``.
        train: What is learned.
        evaluation: What is scored, two examples or more.
        tokenizer: The model's, of ``transformers``; it is left as it is. For images, an ``ImageReader``.
        labels: The names of the model's labels by id; None takes those of the training data. For ``LABELLED``.
        max_length: Tokens of a sequence, at most, special ones included.
        stride: Tokens that two neighbouring windows of a context share. For questions.
        max_answer_tokens: Tokens of an answer, at most. For questions.
        target_length: Tokens of a summary, at most, special ones included. For summaries.
        token_types: How many token types the model has (``type_vocab_size``). None asks the tokenizer, which may not
            know: in transformers 5 one of no model's own class gives none, in 4 it gives them even where none exist.

    Raises:
        UsageError: The data is not that of the task; or a library is missing.
        ModelDirectoryError: The tokenizer lacks what the task needs.
    """
    if task not in TASKS:
        raise UsageError(f"the task '{task}' cannot be trained", todo=f"choose one of: {', '.join(TASKS)}")
    if importlib.util.find_spec("torchmetrics") is None:
        raise UsageError("metrics need torchmetrics", todo="pip install 'compactor[train]'")
    for table, least, what in ((train, 1, "train on"), (evaluation, 2, "evaluate on: a standard error needs two")):
        if len(table.rows) < least:
            count = len(table.rows) or "no"
            raise UsageError(f"there are too few examples to {what}; found {count}", where=str(table.path))
    if task == "image-classification":
        from compactor.trainer.tasks.images import open_images

        return open_images(train, evaluation, tokenizer, labels=labels)
    if tokenizer.pad_token_id is None:
        raise ModelDirectoryError(
            "this tokenizer has no padding token, so texts cannot form a batch",
            where=str(tokenizer.name_or_path) or None,
            todo="name one as 'pad_token' in its tokenizer_config.json",
        )
    tokenizer = copy.deepcopy(tokenizer)  # it would keep our truncation, and write it into the file it is saved to
    if token_types is not None:
        names = [name for name in tokenizer.model_input_names if name != "token_type_ids"]
        tokenizer.model_input_names = [*names, "token_type_ids"] if token_types > 1 else names
    match task:
        case "text-classification":
            from compactor.trainer.tasks.classification import open_classification

            return open_classification(train, evaluation, tokenizer, labels=labels, max_length=max_length)
        case "question-answering":
            from compactor.trainer.tasks.questions import open_questions

            return open_questions(
                train,
                evaluation,
                tokenizer,
                max_length=max_length,
                stride=stride,
                max_answer_tokens=max_answer_tokens,
            )
        case _:
            from compactor.trainer.tasks.summaries import open_summaries

            return open_summaries(train, evaluation, tokenizer, max_length=max_length, target_length=target_length)


def guess_task(table: Table) -> str | None:
    """The task that a table's columns are of; None where they fit none, or there are no rows."""
    from compactor.trainer.tasks.classification import find_text_columns
    from compactor.trainer.tasks.images import find_image_column
    from compactor.trainer.tasks.labels import find_label_column
    from compactor.trainer.tasks.summaries import find_document_column, find_summary_column

    if not table.rows:
        return None
    if all(table.find(name) for name in ("question", "context", "answers")):
        return "question-answering"
    label = find_label_column(table)
    if label is not None and find_text_columns(table) and not isinstance(table.rows[0][label], list):
        return "text-classification"
    if label is not None and find_image_column(table):
        return "image-classification"
    if find_document_column(table) and find_summary_column(table):
        return "summarization"
    return None
