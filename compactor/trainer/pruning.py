"""The whole way of one training run: data, model, teacher, masks, training, and what is written."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from compactor.checkpoint.config import read_json_object
from compactor.console import Progress
from compactor.errors import UsageError
from compactor.trainer.config import PruneConfig, steps_of
from compactor.trainer.methods import Block, Second, Shape
from compactor.trainer.pacing import Pace
from compactor.trainer.records import RECORD, make_record, write_record
from compactor.trainer.runs import (
    FIRST,
    Run,
    check_folder,
    claim_folder,
    is_first_process,
    last_checkpoint,
    world_size,
)


@dataclasses.dataclass(frozen=True)
class PruneResult:
    """What a run wrote.

    Attributes:
        path: The folder.
        record: The content of its ``training.json``: metrics, density, every log line.
    """

    path: Path
    record: dict[str, Any]


def prune(
    model: str | Path,
    data: str | Path,
    evaluation: str | Path,
    out: str | Path,
    *,
    config: PruneConfig | None = None,
    teacher: str | Path | None = None,
    first_run: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    details: bool = False,
    pace: Pace | None = None,
    command: str = "compactor.prune(...)",
    progress: Progress = lambda message: None,
) -> PruneResult:
    """Train a model with block pruning and write it as a stock model with zeros.

    Args:
        model: A Hugging Face model directory: pre-trained, or fine-tuned for the task.
        data: Labelled examples to learn from: TSV, JSON lines, SQuAD JSON, a folder of ``datasets``, or of images in a
            folder for each label.
        evaluation: Labelled examples to score on.
        out: The folder to write.
        config: All settings; the defaults are hybrid pruning for three epochs.
        teacher: A fine-tuned model of the same task and vocabulary. By default ``model``, where it has the task's head.
        first_run: For filled and rewind: the folder of a finished run to go on from, instead of making one.
        resume: Go on from the last checkpoint in ``out``, or start where there is none.
        overwrite: Replace an earlier run in ``out``.
        details: Tell what is left of each layer at each evaluation.
        pace: Stop at a time instead of a density (``compactor.speedup``).
        command: What was typed, for the page.
        progress: Told how it is going.

    Returns:
        The folder, and what happened.

    Raises:
        UsageError: Settings, data and model do not fit.
        ModelDirectoryError: A model cannot be read, or has no attention that could be pruned.
        OutputError: ``out`` holds something else, or cannot be written.
        TrainingError: The loss is no number.
    """
    config = config or PruneConfig()
    run = Run(
        model=Path(model),
        data=Path(data),
        evaluation=Path(evaluation),
        out=Path(out),
        config=config,
        teacher=None if teacher is None else Path(teacher),
        first_run=None if first_run is None else Path(first_run),
        resume=resume,
        details=details,
        command=command,
        progress=progress,
        pace=pace,
    )
    if pace is not None:
        check_pace(config)
    check_folder(run, overwrite=overwrite)
    second = config.preset.second
    alone = second in (Second.NONE, Second.KEEP)
    if alone and run.first_run is not None:
        raise UsageError(f"the method '{config.method}' goes on from no other run", todo="leave out --first-run")
    if alone or run.first_run is not None:
        return _train(run, lambda: claim_folder(run))
    first = dataclasses.replace(
        run,
        out=run.out / FIRST,
        config=dataclasses.replace(config, method="hybrid", **_kept_blocks(config)),
        fills=second is Second.FILL,
    )
    if not (resume and (first.out / RECORD).is_file()):
        progress(f"{config.method}: first a run of hybrid, in {FIRST}/")

        def claim_both() -> None:
            claim_folder(run)
            claim_folder(first)

        _train(first, claim_both)
    return _train(dataclasses.replace(run, first_run=first.out), lambda: None)


def check_pace(config: PruneConfig) -> None:
    """Raises UsageError where the method cannot stop at a time."""
    if config.target_density is not None:
        raise UsageError("a density and a time cannot both be reached", todo="leave out the target density")
    units = (config.attention, config.feed_forward)
    if config.preset.second is Second.KEEP or Shape.NONE in units or Block(1, 1) in units:
        raise UsageError(
            f"the method '{config.method}' does not lead to a time: it takes away no heads and neurons",
            todo="choose another: hybrid, hybrid-filled, struct, block, rewind or magnitude",
        )
    if world_size() > 1:
        raise UsageError("a time is measured by one process", todo="run without torchrun")


def _kept_blocks(config: PruneConfig) -> dict[str, Any]:
    return {"attention_block": config.attention_block, "feed_forward_block": config.feed_forward_block}


def _train(run: Run, claim: Callable[[], None]) -> PruneResult:
    """One run, from data to page; ``claim`` is called once all is known to fit."""
    run.progress("loading libraries")
    from compactor.trainer.models import quiet_transformers

    with quiet_transformers():
        return _train_quietly(run, claim)


def _train_quietly(run: Run, claim: Callable[[], None]) -> PruneResult:
    config, progress = run.config, run.progress
    from transformers import set_seed

    from compactor.trainer.history import History
    from compactor.trainer.models import head_task, open_inputs, open_model, open_teacher, stated_labels
    from compactor.trainer.preparing import (
        choose_length,
        choose_target_length,
        choose_teacher,
        count_steps,
        freeze_embeddings,
        install_pruner,
        make_trainer,
    )
    from compactor.trainer.tasks import LABELLED, TASKS, guess_task, open_task
    from compactor.trainer.tasks.reading import read_examples

    progress("reading data")
    train_table, eval_table = read_examples(run.data), read_examples(run.evaluation)
    known = head_task(run.model)
    if config.task not in (None, *TASKS):
        raise UsageError(f"the task '{config.task}' cannot be trained", todo=f"choose one of: {', '.join(TASKS)}")
    task = config.task or known or guess_task(train_table)
    if task is None:
        raise UsageError(
            "neither MODEL nor the data say what the task is",
            where=str(run.data),
            todo=f"pass --task: {', '.join(TASKS)}",
        )
    teacher_path = choose_teacher(run, task, known)
    tokenizer = open_inputs(run.model, task)
    labels = None
    if task in LABELLED:  # of a model that knows the task; else the teacher's; else the data's
        source = run.model if known == task else teacher_path
        labels = None if source is None else stated_labels(source)
    length = choose_length(run, task)
    if task == "question-answering" and config.stride >= length:
        raise UsageError(
            f"windows of {length} tokens cannot overlap by {config.stride}", todo="lower stride, or raise max_length"
        )
    task_data = open_task(
        task,
        train_table,
        eval_table,
        tokenizer,
        labels=labels,
        max_length=length,
        stride=config.stride,
        max_answer_tokens=config.max_answer,
        target_length=choose_target_length(run),
        token_types=read_json_object(run.model / "config.json").get("type_vocab_size", 1),
    )
    set_seed(config.seed)
    progress("loading the model")
    second = config.preset.second
    start = run.first_run if second is Second.FILL and run.first_run is not None else run.model
    model = open_model(start, task, task_data.label_names)
    steps = count_steps(config, len(task_data.train))
    if second is Second.FILL:
        steps = max(1, steps_of(config.second_steps, steps))
    if config.freeze_embeddings:
        freeze_embeddings(model)
    notes = [*task_data.notes, *install_pruner(run, model, task_data, steps)]
    teacher = None
    if teacher_path is not None:
        teacher = open_teacher(teacher_path, task, task_data.label_names, model)
    history = History(steps, task_data.metric, progress, detailed=run.details) if is_first_process() else None
    claim()
    trainer = make_trainer(run, model, task_data, tokenizer, teacher, history, steps)
    checkpoint = last_checkpoint(run) if run.resume else None
    if checkpoint is not None:
        progress(f"resuming from {checkpoint.name}")
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    return _finish(run, trainer, task_data, tokenizer, notes, teacher_path)


def _finish(
    run: Run, trainer: Any, task_data: Any, tokenizer: Any, notes: list[str], teacher: Path | None
) -> PruneResult:
    """Write the model, read it back, and judge what was read; write the record and its page."""
    from compactor.trainer.folders import save_model
    from compactor.trainer.models import open_model

    progress = run.progress
    if is_first_process():
        progress("writing the model")
        part = run.out / ".part"
        shutil.rmtree(part, ignore_errors=True)
        save_model(trainer.model, part, tokenizer=tokenizer, facts=trainer.facts)
        for path in sorted(part.iterdir()):
            os.replace(path, run.out / path.name)
        part.rmdir()
    trainer.accelerator.wait_for_everyone()
    progress("judging what was written")
    metrics = _judge(trainer, open_model(run.out, task_data.task, ()), task_data)
    teacher_metrics = (
        None
        if teacher is None
        else _judge(trainer, open_model(teacher, task_data.task, task_data.label_names), task_data)
    )
    record = make_record(run, trainer, task_data, metrics, teacher_metrics, teacher, notes)
    if is_first_process():
        write_record(run.out, record)
    return PruneResult(run.out, record)


def _judge(trainer: Any, model: Any, task_data: Any) -> dict[str, Any]:
    """Metrics of a plain model with their standard errors."""
    from transformers import PrinterCallback

    from compactor.trainer.trainer import OrderedTrainer

    judge = OrderedTrainer(
        model=model,
        args=trainer.args,
        eval_dataset=task_data.evaluation,
        data_collator=task_data.collate,
        processing_class=trainer.processing_class,
    )
    judge.remove_callback(PrinterCallback)
    found = judge.predict(task_data.evaluation, ignore_keys=["past_key_values", "encoder_last_hidden_state"])
    judged: dict[str, Any] = task_data.judge(found.predictions)
    return judged
