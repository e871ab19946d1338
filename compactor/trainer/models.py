"""Open what a run trains: a stock model with a head for the task, its teacher, its tokenizer or image processor."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from compactor.checkpoint.config import has_no_norm, read_json_object
from compactor.errors import ModelDirectoryError, UsageError
from compactor.evaluation.images import ImageReader
from compactor.trainer.tasks import LABELLED

_CLASSES = {
    "text-classification": ("AutoModelForSequenceClassification", "ForSequenceClassification"),
    "question-answering": ("AutoModelForQuestionAnswering", "ForQuestionAnswering"),
    "summarization": ("AutoModelForSeq2SeqLM", "ForConditionalGeneration"),
    "image-classification": ("AutoModelForImageClassification", "ForImageClassification"),
}


def head_task(folder: Path) -> str | None:
    """The task that the model in ``folder`` has a trained head for; None where it has none that can be trained here."""
    architectures = read_json_object(folder / "config.json").get("architectures") or [""]
    return next((task for task, (_, suffix) in _CLASSES.items() if str(architectures[0]).endswith(suffix)), None)


def stated_labels(folder: Path) -> tuple[str, ...]:
    """The names of a classifier's labels by id, as its config states them."""
    stated = read_json_object(folder / "config.json").get("id2label")
    if isinstance(stated, dict) and stated:
        return tuple(str(stated[key]) for key in sorted(stated, key=int))
    return ("LABEL_0", "LABEL_1")  # what transformers assumes


def open_inputs(folder: Path, task: str) -> Any:
    """The tokenizer in ``folder``, or for a task of images its ``ImageReader``.

    Raises:
        ModelDirectoryError: There is none, or it is damaged; or it makes images of another size than the model takes.
    """
    if task == "image-classification":
        reader = ImageReader.open(folder)
        size = image_size(read_json_object(folder / "config.json"))
        if size not in (None, reader.steps.size):
            raise ModelDirectoryError(
                f"its image processor makes images of {_told(reader.steps.size)}, and the model takes {_told(size)}",
                where=str(folder),
                todo="let the processor's sizes and the config's 'image_size' agree",
            )
        return reader
    from transformers import AutoTokenizer

    with _as_model_error("the tokenizer cannot be opened", folder):
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)


def image_size(config: Mapping[str, Any]) -> tuple[int, int] | None:
    """Height and width of the images that a model takes, as its config or that of its tower says; None else."""
    tower = config.get("vision_config")
    stated = config.get("image_size", tower.get("image_size") if isinstance(tower, dict) else None)
    sizes = stated if isinstance(stated, list) else [stated, stated]
    return (sizes[0], sizes[1]) if len(sizes) == 2 and all(type(size) is int for size in sizes) else None


def _told(size: tuple[int, int] | None) -> str:
    return "any" if size is None else f"{size[0]} x {size[1]}"


def open_model(folder: Path, task: str, labels: Sequence[str]) -> Any:
    """The model in ``folder`` for ``task``, in float32; a head that it lacks is a new one, by torch's random state.

    Args:
        folder: A Hugging Face model directory with safetensors.
        task: One of the trainer's.
        labels: Names by id, of a classifier.

    Raises:
        ModelDirectoryError: It cannot be read, or there is no model of its kind for the task.
    """
    import torch
    import transformers

    from compactor.checkpoint.no_norm import replace_norms

    auto = getattr(transformers, _CLASSES[task][0])
    options: dict[str, Any] = {}
    if labels:
        options["num_labels"] = len(labels)
        options["id2label"] = dict(enumerate(labels))
        options["label2id"] = {name: number for number, name in enumerate(labels)}
    with _as_model_error(f"there is no {task} model in it", folder):
        model = auto.from_pretrained(
            str(folder),
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=torch.float32,
            **options,
        )
    if has_no_norm(model.config.to_dict()):
        replace_norms(model, str(folder))
    return model


def open_teacher(folder: Path, task: str, labels: Sequence[str], student: Any) -> Any:
    """The model in ``folder``, which must know the task, its labels and the student's vocabulary or images.

    Args:
        folder: A Hugging Face model directory.
        task: The student's.
        labels: The student's, by id.
        student: The model that learns from it.

    Raises:
        UsageError: It is for another task, has other labels, another vocabulary, or takes images of another size.
        ModelDirectoryError: It cannot be read.
    """
    known = head_task(folder)
    if known != task:
        raise UsageError(
            f"the teacher is for {known or 'no task'}, not for {task}",
            where=str(folder),
            todo="fine-tune it first, with --method dense",
        )
    theirs = stated_labels(folder) if task in LABELLED else ()
    if theirs:
        if len(theirs) != len(labels) or (_named(theirs) and _named(labels) and tuple(theirs) != tuple(labels)):
            raise UsageError(
                f"the teacher's labels are {', '.join(theirs)}; these are {', '.join(labels)}",
                where=str(folder),
                todo="give a teacher of the same data, or name its labels alike in its config.json",
            )
    teacher = open_model(folder, task, theirs)
    if task == "image-classification":
        sizes = [image_size(each.config.to_dict()) for each in (teacher, student)]
        if sizes[0] != sizes[1]:
            raise UsageError(
                f"the teacher takes images of {_told(sizes[0])}, MODEL of {_told(sizes[1])}",
                where=str(folder),
                todo="both look at the same pixels: give a teacher with images of MODEL's size",
            )
        return teacher
    vocabulary = student.get_input_embeddings().num_embeddings
    if teacher.get_input_embeddings().num_embeddings != vocabulary:
        raise UsageError(
            f"the teacher knows {teacher.get_input_embeddings().num_embeddings:,} tokens, MODEL {vocabulary:,}",
            where=str(folder),
            todo="both read the same tokens: give a teacher with MODEL's tokenizer",
        )
    return teacher


def _named(labels: Sequence[str]) -> bool:
    """Whether labels have names, and not the ones that transformers or a file of numbers gives them."""
    return not all(label.removeprefix("LABEL_").isdecimal() for label in labels)


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Errors only: what transformers says of new heads and of generation settings, a run says itself or knows."""
    from transformers.utils import logging

    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()


@contextlib.contextmanager
def _as_model_error(what: str, folder: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # transformers and tokenizers raise what they like, bare Exception included
        reason = next((line for line in str(error).strip().splitlines() if line.strip()), repr(error))
        raise ModelDirectoryError(f"{what}: {reason}", where=str(folder), todo="repair or convert its files") from error
