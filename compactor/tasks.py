"""The tasks compactor exports: which class loads them, what their graphs output, how they are told from a config."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from compactor.errors import ModelDirectoryError, UsageError


@dataclasses.dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        name: The ecosystem's name.
        auto_class: The class of ``transformers`` that loads a model for it.
        suffixes: Ends of the class names in ``architectures`` that stand for it.
        outputs: Names of the graph's outputs, in order.
        logits: Whether the outputs are logits, so that padded positions hold a very low number instead of 0.
        image: Whether the input is ``pixel_values`` instead of tokens.
        generates: Whether the model is an encoder-decoder that writes text: exported as three graphs.
    """

    name: str
    auto_class: str
    suffixes: tuple[str, ...]
    outputs: tuple[str, ...]
    logits: bool = True
    image: bool = False
    generates: bool = False


GENERATION = "text2text-generation"

TASKS: Mapping[str, Task] = {
    task.name: task
    for task in (
        Task("text-classification", "AutoModelForSequenceClassification", ("ForSequenceClassification",), ("logits",)),
        Task("token-classification", "AutoModelForTokenClassification", ("ForTokenClassification",), ("logits",)),
        Task(
            "question-answering",
            "AutoModelForQuestionAnswering",
            ("ForQuestionAnswering",),
            ("start_logits", "end_logits"),
        ),
        Task("fill-mask", "AutoModelForMaskedLM", ("ForMaskedLM",), ("logits",)),
        Task(
            "image-classification",
            "AutoModelForImageClassification",
            ("ForImageClassification",),
            ("logits",),
            image=True,
        ),
        Task(
            GENERATION,
            "AutoModelForSeq2SeqLM",
            ("ForConditionalGeneration", "MTModel"),  # MarianMTModel
            ("logits",),
            generates=True,
        ),
        Task("feature-extraction", "AutoModel", ("Model",), ("last_hidden_state",), logits=False),
    )
}


def find_task(name: str | None, config: Mapping[str, Any], *, where: str) -> Task:
    """The task called ``name``, or the one the config's ``architectures`` stand for.

    Args:
        name: What the user asked for; None infers it.
        config: ``config.json``.
        where: The folder, for messages.

    Raises:
        UsageError: There is no task of that name.
        ModelDirectoryError: The config names no class, or one that stands for no task here.
    """
    known = ", ".join(TASKS)
    if name is not None:
        if name not in TASKS:
            raise UsageError(f"there is no task '{name}'", todo=f"choose one of: {known}")
        return TASKS[name]
    architectures = config.get("architectures") or []
    if not architectures:
        raise ModelDirectoryError(
            "config.json names no class in 'architectures'", where=where, todo=f"pass --task: {known}"
        )
    for task in TASKS.values():
        if any(str(architectures[0]).endswith(suffix) for suffix in task.suffixes):
            return task
    raise ModelDirectoryError(
        f"'{architectures[0]}' stands for no task that compactor exports", where=where, todo=f"pass --task: {known}"
    )
