"""The whole way of one training run: data, model, teacher, masks, training, and what is written.

OUT/                    config.json, model.safetensors, tokenizer: a stock model with its zeros in place
OUT/pruning.json        its masks, with pruning.safetensors (``compactor.checkpoint.pruning_record``)
OUT/training.json       what happened; OUT/training.html shows it
OUT/run.json            the settings, by which --resume knows that it goes on with the same run
OUT/checkpoints/        of the ``Trainer``: each a stock model too, with what resuming needs
OUT/tensorboard/        where TensorBoard is installed
OUT/first/              of filled and rewind: the run before, the same files
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compactor.checkpoint.config import read_json_object
from compactor.console import Progress
from compactor.errors import OutputError, UsageError
from compactor.trainer.config import PruneConfig, steps_of
from compactor.trainer.methods import Scoring, Second, Shape

RECORD = "training.json"
PAGE = "training.html"
_RUN = "run.json"
_CHECKPOINTS = "checkpoints"
_FIRST = "first"
_SCHEMA = 1
_LENGTHS = {"text-classification": 128, "question-answering": 384, "summarization": 512}
_EPOCHS = 3.0


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
    command: str = "compactor.prune(...)",
    progress: Progress = lambda message: None,
) -> PruneResult:
    """Train a model with block pruning and write it as a stock model with zeros.

    Args:
        model: A Hugging Face model directory: pre-trained, or fine-tuned for the task.
        data: Labelled examples to learn from: TSV, JSON lines, SQuAD JSON, or a folder of ``datasets``.
        evaluation: Labelled examples to score on.
        out: The folder to write.
        config: All settings; the defaults are hybrid pruning for three epochs.
        teacher: A fine-tuned model of the same task and vocabulary. By default ``model``, where it has the task's head.
        first_run: For filled and rewind: the folder of a finished run to go on from, instead of making one.
        resume: Go on from the last checkpoint in ``out``, or start where there is none.
        overwrite: Replace an earlier run in ``out``.
        details: Tell what is left of each layer at each evaluation.
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
    run = _Run(
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
    )
    _prepare_folder(run, overwrite=overwrite)
    if config.preset.second is not Second.NONE and run.first_run is None:
        first = dataclasses.replace(
            run, out=run.out / _FIRST, config=dataclasses.replace(config, method="hybrid", **_kept_blocks(config))
        )
        if not (resume and (first.out / RECORD).is_file()):
            progress(f"{config.method}: first a run of hybrid, in {_FIRST}/")
            first.out.mkdir(parents=True, exist_ok=True)
            _train(first)
        run = dataclasses.replace(run, first_run=first.out)
    elif config.preset.second is Second.NONE and run.first_run is not None:
        raise UsageError(f"the method '{config.method}' goes on from no other run", todo="leave out --first-run")
    return _train(run)


def _kept_blocks(config: PruneConfig) -> dict[str, Any]:
    return {"attention_block": config.attention_block, "feed_forward_block": config.feed_forward_block}


@dataclasses.dataclass(frozen=True)
class _Run:
    """What ``prune`` was given, checked and turned into paths."""

    model: Path
    data: Path
    evaluation: Path
    out: Path
    config: PruneConfig
    teacher: Path | None
    first_run: Path | None
    resume: bool
    details: bool
    command: str
    progress: Progress

    @property
    def identity(self) -> dict[str, Any]:
        """What must be the same for a run to be resumed."""
        return {
            "schema": _SCHEMA,
            "model": self.model.name,
            "teacher": None if self.teacher is None else self.teacher.name,
            "settings": self.config.to_json(),
        }


def _prepare_folder(run: _Run, *, overwrite: bool) -> None:
    """Make ``out``, or make sure that it may be written into; only the first process changes anything.

    Raises:
        OutputError: It holds something else, or cannot be written to.
        UsageError: It holds a run with other settings.
    """
    if run.out.resolve() == run.model.resolve() or run.model.resolve() in run.out.resolve().parents:
        raise UsageError("OUT lies in MODEL", where=str(run.out), todo="choose a folder outside of it")
    state = run.out / _RUN
    try:
        if run.out.is_dir() and any(run.out.iterdir()):
            if not state.is_file():
                raise OutputError(
                    "the output folder holds something that is no run", where=str(run.out), todo="choose another folder"
                )
            if run.resume:
                before = read_json_object(state)
                if before != json.loads(json.dumps(run.identity)):
                    raise UsageError(
                        f"the run in it has other settings: {_differences(before, run.identity)}",
                        where=str(run.out),
                        todo="resume with those of the first start, or choose another folder",
                    )
            elif not overwrite:
                raise OutputError(
                    "the output folder holds a run", where=str(run.out), todo="pass --resume to go on, or --overwrite"
                )
            elif _is_first_process():
                for path in run.out.iterdir():
                    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        if _is_first_process():
            run.out.mkdir(parents=True, exist_ok=True)
            state.write_text(json.dumps(run.identity, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(
            f"the output folder cannot be written: {error.strerror}", where=str(run.out), todo="check the path"
        ) from error


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    flat_before = {**before, **before.get("settings", {})}
    flat_now = {**now, **now["settings"]}
    names = [name for name in flat_now if name != "settings" and flat_before.get(name) != flat_now[name]]
    return ", ".join(f"{name} was {flat_before.get(name)!r}" for name in names[:3]) or "another version of compactor"


def _is_first_process() -> bool:
    return int(os.environ.get("RANK", "0")) == 0


def _world_size() -> int:
    """How many processes train, as torchrun says."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def _train(run: _Run) -> PruneResult:
    """One run, from data to page."""
    run.progress("loading libraries")
    from compactor.trainer.models import quiet_transformers

    with quiet_transformers():
        return _train_quietly(run)


def _train_quietly(run: _Run) -> PruneResult:
    config, progress = run.config, run.progress
    from transformers import set_seed

    from compactor.trainer.history import History
    from compactor.trainer.models import head_task, open_model, open_teacher, open_tokenizer, stated_labels
    from compactor.trainer.tasks import guess_task, open_task
    from compactor.trainer.tasks.reading import read_examples

    progress("reading data")
    train_table, eval_table = read_examples(run.data), read_examples(run.evaluation)
    known = head_task(run.model)
    task = config.task or known or guess_task(train_table)
    if task is None:
        raise UsageError(
            "neither MODEL nor the data say what the task is",
            where=str(run.data),
            todo=f"pass --task: {', '.join(_LENGTHS)}",
        )
    teacher_path = _choose_teacher(run, task, known)
    tokenizer = open_tokenizer(run.model)
    labels = None
    if task == "text-classification":  # of a model that knows the task; else the teacher's; else the data's
        source = run.model if known == task else teacher_path
        labels = None if source is None else stated_labels(source)
    length = _choose_length(run, task)
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
        target_length=config.target_length,
        token_types=read_json_object(run.model / "config.json").get("type_vocab_size", 1),
    )
    set_seed(config.seed)
    progress("loading the model")
    second = config.preset.second
    start = run.first_run if second is Second.FILL and run.first_run is not None else run.model
    model = open_model(start, task, task_data.label_names)
    steps = _count_steps(config, len(task_data.train))
    first_steps = steps
    if second is Second.FILL:
        steps = max(1, steps_of(config.second_steps, steps))
    notes = list(task_data.notes)
    if config.freeze_embeddings:
        _freeze_embeddings(model)
    pruner, more = _install(run, model, task_data, steps, first_steps)
    notes += more
    teacher = None
    if teacher_path is not None:
        vocabulary = model.get_input_embeddings().num_embeddings
        teacher = open_teacher(teacher_path, task, task_data.label_names, vocabulary=vocabulary)
    history = History(steps, task_data.metric, progress, detailed=run.details) if _is_first_process() else None
    trainer = _make_trainer(run, model, task_data, tokenizer, teacher, history, steps)
    checkpoint = _last_checkpoint(run) if run.resume else None
    if checkpoint is not None:
        progress(f"resuming from {checkpoint.name}")
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    return _finish(run, trainer, task_data, tokenizer, notes, None if teacher_path is None else teacher_path)


def _choose_length(run: _Run, task: str) -> int:
    """Tokens of an example at most: what was asked for, or the task's usual number as far as MODEL has positions."""
    from compactor.companions import max_tokens

    asked, usual = run.config.max_length, _LENGTHS.get(task, _LENGTHS["text-classification"])
    limit = max_tokens(read_json_object(run.model / "config.json"))
    if limit is None:
        return asked or usual
    if asked is not None and asked > limit:
        raise UsageError(
            f"MODEL takes {limit} tokens, and examples may have {asked}",
            where=str(run.model),
            todo=f"pass --max-length {limit} or less",
        )
    return asked or min(usual, limit)


def _choose_teacher(run: _Run, task: str, known: str | None) -> Path | None:
    """The teacher's folder: the one given, or MODEL itself where it knows the task; None for methods without one."""
    preset = run.config.preset
    if not preset.teacher:
        if run.teacher is not None and preset.name != "dense":
            raise UsageError(f"the method '{preset.name}' has no teacher", todo="leave out --teacher, or use hybrid")
        return run.teacher
    if run.teacher is not None:
        return run.teacher
    if known == task:
        return run.model
    raise UsageError(
        f"the method '{preset.name}' learns from a teacher, and MODEL is not fine-tuned for {task}",
        where=str(run.model),
        todo="make one with --method dense and pass --teacher, or use --method hybrid-nt",
    )


def _count_steps(config: PruneConfig, examples: int) -> int:
    if config.steps is not None:
        return config.steps
    batch = config.batch_size * config.accumulate * _world_size()
    return max(1, math.ceil(math.ceil(examples / batch) * (config.epochs if config.epochs is not None else _EPOCHS)))


def _freeze_embeddings(model: Any) -> None:
    from torch import nn

    for module in model.modules():
        if isinstance(module, nn.Embedding):
            module.requires_grad_(False)


def _install(run: _Run, model: Any, task_data: Any, steps: int, first_steps: int) -> tuple[Any, list[str]]:
    """Find the model's blocks and put masks on them; of the second run of a method, those that the first one left."""
    import torch

    from compactor.trainer.models import open_model
    from compactor.trainer.pruner import Plan, Pruner
    from compactor.trainer.refilling import fill, find_survivors, protect
    from compactor.trainer.schedule import Schedule
    from compactor.trainer.structure import find_blocks

    config, preset = run.config, run.config.preset
    attention, feed_forward = config.attention, config.feed_forward
    if attention is Shape.NONE and feed_forward is Shape.NONE:
        return None, []
    blocks = find_blocks(model, _probe(model, task_data))
    filling = preset.second is Second.FILL
    plan = Plan(
        attention=Shape.HEAD if filling else attention,
        feed_forward=Shape.DIM if filling else feed_forward,
        schedule=Schedule(steps, 0, 0) if filling else config.schedule(steps),
        scoring=preset.scoring,
        strength=preset.default_lambda if config.strength is None else config.strength,
        target_density=None if filling else config.target_density,
        attention_lambda=preset.attention_lambda if config.attention_lambda is None else config.attention_lambda,
        feed_forward_lambda=preset.feed_forward_lambda
        if config.feed_forward_lambda is None
        else config.feed_forward_lambda,
        decoder_lambda=config.decoder_lambda,
        least=config.least,
    )
    if preset.scoring is Scoring.MAGNITUDE and config.target_density is None:
        raise UsageError("magnitude pruning needs a density to reach", todo="pass --target-density, such as 0.3")
    notes = []
    survivors = None
    if preset.second is not Second.NONE:
        assert run.first_run is not None
        first = model if filling else open_model(run.first_run, task_data.task, task_data.label_names)
        survivors = find_survivors(first, blocks)
    pruner = Pruner.install(model, blocks, plan)
    notes += pruner.notes
    if survivors is not None:
        heads = sum(int(alive.sum()) for alive in survivors.heads.values())
        if filling:
            filled = fill(pruner, survivors, torch.Generator().manual_seed(config.seed))
            notes.append(f"{filled:,} zeros inside {heads} surviving heads were filled with small random weights")
        else:
            protect(pruner, survivors)
            notes.append(f"{heads} heads that survived the first run cannot be pruned in the second")
    return pruner, notes


def _probe(model: Any, task_data: Any) -> dict[str, Any]:
    """A small batch for ``find_blocks``, with the decoder's own input apart from the encoder's."""
    import torch

    batch = task_data.collate([task_data.train[0]])
    labels = batch.pop("labels", None)
    taken = inspect.signature(model.forward).parameters
    batch = {name: tensor for name, tensor in batch.items() if name in taken and not name.endswith("_positions")}
    if getattr(model.config, "is_encoder_decoder", False):
        ids = batch["input_ids"].clone()
        if task_data.task == "summarization" and labels is not None:
            ids = model.prepare_decoder_input_ids_from_labels(labels=labels)
        batch["decoder_input_ids"] = ids
        batch["use_cache"] = False
    device = next(model.parameters()).device
    return {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}


def _make_trainer(run: _Run, model: Any, task_data: Any, tokenizer: Any, teacher: Any, history: Any, steps: int) -> Any:
    """The ``Trainer`` with our settings in its words; on both versions of transformers."""
    import torch
    from transformers import PrinterCallback

    from compactor.trainer.trainer import PruningTrainer

    config = run.config
    every = config.eval_steps or max(1, steps // 10)
    arguments = _arguments(
        output_dir=str(run.out / _CHECKPOINTS),
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=config.eval_batch_size,
        gradient_accumulation_steps=config.accumulate,
        max_steps=steps,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        warmup_steps=min(steps_of(config.learning_rate_warm_up, steps), steps),
        max_grad_norm=config.max_grad_norm,
        optim="adamw_torch",
        bf16=config.precision == "bf16",
        fp16=config.precision == "fp16",
        eval_strategy="steps",
        eval_steps=every,
        save_strategy="steps",
        save_steps=every,
        save_total_limit=2,
        logging_steps=config.logging_steps or max(1, steps // 50),
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        log_level="error",
        log_level_replica="error",
        seed=config.seed,
        use_cpu=not torch.cuda.is_available(),
        ddp_backend="gloo" if _world_size() > 1 and not torch.cuda.is_available() else None,
        dataloader_pin_memory=torch.cuda.is_available(),
        predict_with_generate=task_data.task == "summarization",
        generation_max_length=config.target_length,
        generation_num_beams=config.beams,
    )
    if arguments.n_gpu > 1:
        raise UsageError(
            f"{arguments.n_gpu} GPUs in one process are not supported",
            todo="torchrun --standalone --nproc_per_node N -m compactor prune ..., or CUDA_VISIBLE_DEVICES=0",
        )
    trainer = PruningTrainer(
        config=config,
        facts={"method": config.method, "settings": config.to_json()},
        teacher=teacher,
        history=history,
        model=model,
        args=arguments,
        train_dataset=task_data.train,
        eval_dataset=task_data.evaluation,
        data_collator=task_data.collate,
        processing_class=tokenizer,
        compute_metrics=lambda found: task_data.score(found.predictions, found.label_ids),
    )
    trainer.remove_callback(PrinterCallback)
    if history is not None:
        _add_tensorboard(trainer, run.out / "tensorboard")
    return trainer


def _arguments(**values: Any) -> Any:
    """``Seq2SeqTrainingArguments``; batches of like length under the name that this version has for it."""
    from transformers import Seq2SeqTrainingArguments

    names = {field.name for field in dataclasses.fields(Seq2SeqTrainingArguments)}
    if "train_sampling_strategy" in names:
        values["train_sampling_strategy"] = "group_by_length"
    else:
        values["group_by_length"] = True
    return Seq2SeqTrainingArguments(**values)


def _add_tensorboard(trainer: Any, folder: Path) -> None:
    """Log to TensorBoard where it is installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return
    from transformers.integrations import TensorBoardCallback

    trainer.add_callback(TensorBoardCallback(SummaryWriter(str(folder))))


def _last_checkpoint(run: _Run) -> Path | None:
    """The newest whole checkpoint."""
    from compactor.trainer.folders import STATE_FILE

    found = [path for path in (run.out / _CHECKPOINTS).glob("checkpoint-*") if (path / "trainer_state.json").is_file()]
    found = [path for path in found if (path / STATE_FILE).is_file()]
    return max(found, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def _finish(
    run: _Run, trainer: Any, task_data: Any, tokenizer: Any, notes: list[str], teacher: Path | None
) -> PruneResult:
    """Write the model, read it back, and judge what was read; write the record and its page."""
    from compactor.trainer.folders import save_model
    from compactor.trainer.models import open_model

    config, pruner, progress = run.config, trainer.pruner, run.progress
    if _is_first_process():
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
    teacher_metrics = None if teacher is None else _judge(trainer, open_model(teacher, task_data.task, ()), task_data)
    warnings = _warnings(config, pruner)
    record = _make_record(run, trainer, task_data, metrics, teacher_metrics, teacher, notes, warnings)
    if _is_first_process():
        (run.out / RECORD).write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        _write_page(run.out, record)
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


def _warnings(config: PruneConfig, pruner: Any) -> list[str]:
    if pruner is None:
        return []
    warnings = []
    density = pruner.density()
    if density == 1:
        warnings.append("nothing was pruned: raise λ (--lambda), train longer, or pass --target-density")
    elif config.target_density is not None and abs(density - config.target_density) > 0.02:
        warnings.append(
            f"{100 * density:.1f} % of the linear weights are left, not the {100 * config.target_density:.1f} % asked for"
        )
    empty = [f"{layer.stack} {layer.name}" for layer in pruner.layers() if layer.density == 0]
    if empty:
        warnings.append(f"nothing is left of {', '.join(empty)}")
    return warnings


def _make_record(
    run: _Run,
    trainer: Any,
    task_data: Any,
    metrics: Mapping[str, Any],
    teacher_metrics: Mapping[str, Any] | None,
    teacher: Path | None,
    notes: list[str],
    warnings: list[str],
) -> dict[str, Any]:
    """The content of ``training.json``; ``docs/training.md`` lists its fields."""
    from compactor.benching.card import versions

    pruner, history, config = trainer.pruner, trainer.history, run.config
    layers = [] if pruner is None else [dataclasses.asdict(layer) for layer in pruner.layers()]
    heads = [head for layer in layers if layer["heads"] is not None for head in layer["heads"]]
    neurons = [layer["neurons"] for layer in layers if layer["neurons"] is not None]
    phases = [] if pruner is None or pruner.fixed else pruner.plan.schedule.phases()
    return {
        "schema": _SCHEMA,
        "kind": "compactor-training",
        "title": f"{run.model.name}: {config.method}",
        "method": config.method,
        "command": run.command,
        "settings": config.to_json(),
        "model": run.model.name,
        "teacher": None if teacher is None else teacher.name,
        "task": task_data.task,
        "metric": task_data.metric,
        "steps": trainer.state.max_steps,
        "phases": [{"name": name, "first": first, "last": last} for name, first, last in phases],
        "log": [] if history is None else [_finite(row) for row in history.log],
        "evaluations": [] if history is None else [_finite(row) for row in history.evaluations],
        "final": {
            "metrics": metrics,
            "teacher_metrics": teacher_metrics,
            "density": 1.0 if pruner is None else pruner.density(),
            "density_attention": 1.0 if pruner is None else pruner.density("attention"),
            "density_feed_forward": 1.0 if pruner is None else pruner.density("feed_forward"),
            "weights": [0, 0] if pruner is None else [pruner.live_weights(), pruner.all_weights()],
            "lambda": None if pruner is None or pruner.steering is None else pruner.steering.value,
            "heads": [sum(heads), len(heads)],
            "neurons": [sum(alive for alive, _ in neurons), sum(count for _, count in neurons)],
            "seconds": 0.0 if history is None else history.seconds,
            "layers": layers,
        },
        "notes": notes,
        "warnings": warnings,
        "versions": versions(),
    }


def _finite(value: Any) -> Any:
    """NaN and infinities as null: JSON has none."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write_page(folder: Path, record: Mapping[str, Any]) -> None:
    """The page, where the libraries that draw it are installed."""
    from compactor.reporting.training import render_training

    try:
        page = render_training(record)
    except ImportError:
        return
    (folder / PAGE).write_text(page, encoding="utf-8")
