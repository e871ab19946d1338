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
        extras: Outputs that follow where a model gives them, by weights of its own: one vector an example.
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
    extras: tuple[str, ...] = ()


FEATURES, IMAGE_FEATURES = "feature-extraction", "image-feature-extraction"
GENERATION = "text2text-generation"

TASKS: Mapping[str, Task] = {
    task.name: task
    for task in (
        Task("text-classification", "AutoModelForSequenceClassification", ("ForSequenceClassification",), ("logits",)),
        Task("token-classification", "AutoModelForTokenClassification", ("ForTokenClassification",), ("logits",)),
        Task(
            "question-answering",
            "AutoModelForQuestionAnswering",
            ("ForQuestionAnswering", "ForQuestionAnsweringSimple"),
            ("start_logits", "end_logits"),
        ),
        Task("fill-mask", "AutoModelForMaskedLM", ("ForMaskedLM", "WithLMHeadModel"), ("logits",)),
        Task(
            "image-classification",
            "AutoModelForImageClassification",
            ("ForImageClassification", "ForImageClassificationWithTeacher"),
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
        Task(
            FEATURES,
            "AutoModel",
            ("Model", "ModelWithProjection", "Encoder"),
            ("last_hidden_state",),
            logits=False,
            extras=("pooler_output", "text_embeds"),
        ),
        Task(
            IMAGE_FEATURES,
            "AutoModel",
            (),  # those of feature extraction: what a model takes is told from its config
            ("last_hidden_state",),
            logits=False,
            image=True,
            extras=("pooler_output", "image_embeds"),
        ),
    )
}


def stands_for(architecture: str, task: Task) -> bool:
    """Whether a class of that name is one for ``task``, by the end of its name."""
    suffixes = TASKS[FEATURES].suffixes if task.name == IMAGE_FEATURES else task.suffixes
    return architecture.endswith(suffixes)


def takes_images(config: Mapping[str, Any]) -> bool:
    """Whether a model takes images alone, by the sizes that its ``config.json`` states."""
    texts = {"max_position_embeddings", "n_positions", "text_config"} & config.keys()  # BEiT has a vocabulary too
    return not texts and bool({"image_size", "num_channels", "patch_size"} & config.keys())


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
    if name is not None and name not in TASKS:
        raise UsageError(f"there is no task '{name}'", todo=f"choose one of: {known}")
    if name is not None:
        return _by_input(TASKS[name], config)
    architectures = config.get("architectures") or []
    if not architectures:
        raise ModelDirectoryError(
            "config.json names no class in 'architectures'", where=where, todo=f"pass --task: {known}"
        )
    for task in TASKS.values():
        if not stands_for(str(architectures[0]), task):
            continue
        if task.name == FEATURES and {"text_config", "vision_config"} <= config.keys():
            raise ModelDirectoryError(
                f"'{architectures[0]}' compares texts with images, and a graph takes one of them",
                where=where,
                todo=f"pass --task {FEATURES} for the half that reads texts, or --task {IMAGE_FEATURES} for the other",
            )
        return _by_input(task, config)
    what, todo = f"'{architectures[0]}' stands for no task that compactor exports", f"pass --task: {known}"
    if str(architectures[0]).endswith("ForMultipleChoice"):
        what += ": it answers a question with several choices at once, and a graph reads texts and pairs one by one"
        todo = (
            "train a classifier of one label (num_labels=1) on pairs of a question and a choice, which computes the "
            "same score for each, and export that for text-classification"
        )
    raise ModelDirectoryError(what, where=where, todo=todo)


def _by_input(task: Task, config: Mapping[str, Any]) -> Task:
    """Feature extraction is called by two names, one for models of images."""
    return TASKS[IMAGE_FEATURES] if task.name == FEATURES and takes_images(config) else task
