"""What a run trains with: its teacher and its lengths, masks on the model, and the ``Trainer`` with our settings."""

from __future__ import annotations

import dataclasses
import inspect
import math
import tempfile
from pathlib import Path
from typing import Any

from compactor.checkpoint.config import read_json_object
from compactor.errors import UsageError
from compactor.positions import max_tokens
from compactor.trainer.config import PruneConfig, steps_of
from compactor.trainer.methods import Second, Shape
from compactor.trainer.pacing import Timed
from compactor.trainer.runs import CHECKPOINTS, Run, world_size

USUAL_LENGTHS = {"text-classification": 128, "question-answering": 384, "summarization": 512}
_EPOCHS = 3.0


def choose_teacher(run: Run, task: str, known: str | None) -> Path | None:
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


def choose_length(run: Run, task: str) -> int:
    """Tokens of an example at most: what was asked for, or the task's usual number as far as MODEL has positions."""
    asked, usual = run.config.max_length, USUAL_LENGTHS.get(task, USUAL_LENGTHS["text-classification"])
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


def choose_target_length(run: Run) -> int:
    """Tokens of a summary at most: as set, as far as MODEL has positions; ids beyond them cannot be written."""
    limit = max_tokens(read_json_object(run.model / "config.json"))
    return run.config.target_length if limit is None else min(run.config.target_length, limit)


def count_steps(config: PruneConfig, examples: int) -> int:
    """Optimizer steps of a run: as many as asked for, or of so many passes over the examples."""
    if config.steps is not None:
        return config.steps
    batch = config.batch_size * config.accumulate * world_size()
    return max(1, math.ceil(math.ceil(examples / batch) * (config.epochs if config.epochs is not None else _EPOCHS)))


def freeze_embeddings(model: Any) -> None:
    """Take every embedding of ``model`` out of training."""
    from torch import nn

    for module in model.modules():
        if isinstance(module, nn.Embedding):
            module.requires_grad_(False)


def install_pruner(run: Run, model: Any, task_data: Any, steps: int) -> list[str]:
    """Find the model's blocks and put masks on them; in the second run of a method, by what the first one left.

    Returns:
        Notes for the user.
    """
    import torch

    from compactor.trainer.models import open_model
    from compactor.trainer.pruner import Plan, Pruner
    from compactor.trainer.refilling import fill, keep, protect
    from compactor.trainer.schedule import Schedule
    from compactor.trainer.structure import find_blocks
    from compactor.trainer.survivors import find_survivors

    config, preset = run.config, run.config.preset
    attention, feed_forward = config.attention, config.feed_forward
    if attention is Shape.NONE and feed_forward is Shape.NONE:
        return []
    blocks = find_blocks(model, _probe(model, task_data))
    filling, fixed = preset.second is Second.FILL, preset.second in (Second.FILL, Second.KEEP)
    plan = Plan(
        attention=Shape.HEAD if fixed else attention,
        feed_forward=Shape.DIM if fixed else feed_forward,
        schedule=Schedule(steps, 0, 0) if fixed else config.schedule(steps),
        scoring=preset.scoring,
        strength=preset.default_lambda if config.strength is None else config.strength,
        target_density=None if fixed else config.target_density,
        timed=None if fixed else _timed(run, model),
        attention_lambda=preset.attention_lambda if config.attention_lambda is None else config.attention_lambda,
        feed_forward_lambda=preset.feed_forward_lambda
        if config.feed_forward_lambda is None
        else config.feed_forward_lambda,
        decoder_lambda=config.decoder_lambda,
        least=config.least,
    )
    notes: list[str] = []
    survivors = None
    if preset.second is Second.KEEP:
        survivors = find_survivors(model, blocks)
    elif preset.second is not Second.NONE:
        assert run.first_run is not None
        first = model if filling else open_model(run.first_run, task_data.task, task_data.label_names)
        survivors = find_survivors(first, blocks)
    pruner = Pruner.install(model, blocks, plan)
    notes += pruner.notes
    if survivors is not None:
        heads = sum(int(alive.sum()) for alive in survivors.heads.values())
        if preset.second is Second.KEEP:
            keep(pruner, survivors)
        elif filling:
            filled = fill(pruner, survivors, torch.Generator().manual_seed(config.seed))
            notes.append(f"{filled:,} zeros inside {heads} surviving heads were filled with small random weights")
        else:
            protect(pruner, survivors)
            notes.append(f"{heads} heads that survived the first run cannot be pruned in the second")
    return notes


def _timed(run: Run, model: Any) -> Timed | None:
    """The run's time to reach, with ``model``'s own measurement: as it will be once its heads are filled, if they are.

    Nothing that training draws is drawn by a measurement.
    """
    if run.pace is None:
        return None
    import torch

    from compactor.trainer.folders import find_pruner, stock_copy
    from compactor.trainer.refilling import grown

    pace = run.pace

    def measure() -> float:
        pruner = find_pruner(model)
        assert pruner is not None
        run.progress("measuring what is left")
        groups = list(pruner.all_groups)
        before = [group.live.clone() for group in groups]
        with tempfile.TemporaryDirectory(prefix="compactor-pace-") as folder, torch.random.fork_rng():
            if run.fills:
                for group, live in zip(groups, grown(pruner), strict=True):
                    group.set_live(live)
            stock_copy(model).save_pretrained(folder)
            for group, live in zip(groups, before, strict=True):
                group.live.copy_(live)
            return pace.measure(Path(folder))

    return Timed(pace.wanted, pace.share, measure)


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


def weight_of_states(config: PruneConfig, model: Any, teacher: Any) -> float:
    """α_hidden: as set; else the method's, where the teacher has as many layers as the model, and as wide ones."""
    if teacher is None:
        if config.alpha_hidden:
            raise UsageError("alpha_hidden holds states against a teacher's, and there is none", todo="leave it out")
        return 0.0
    if config.alpha_hidden is not None:
        return config.alpha_hidden
    names = ("hidden_size", "num_hidden_layers")
    alike = all(getattr(model.config, name, None) == getattr(teacher.config, name, None) for name in names)
    return config.preset.default_hidden if alike else 0.0


def make_trainer(run: Run, model: Any, task_data: Any, tokenizer: Any, teacher: Any, history: Any, steps: int) -> Any:
    """The ``Trainer`` with our settings in its words; on both versions of transformers."""
    import torch
    from transformers import PrinterCallback

    from compactor.trainer.trainer import PruningTrainer

    config = run.config
    every = config.eval_steps or max(1, steps // 10)
    arguments = _argument_class()(
        output_dir=str(run.out / CHECKPOINTS),
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
        ddp_backend="gloo" if world_size() > 1 and not torch.cuda.is_available() else None,
        dataloader_pin_memory=torch.cuda.is_available(),
        predict_with_generate=task_data.task == "summarization",
        generation_max_length=choose_target_length(run),
        generation_num_beams=config.beams,
        **({} if task_data.task == "image-classification" else _batches_of_like_length()),
    )
    if arguments.n_gpu > 1:
        raise UsageError(
            f"{arguments.n_gpu} GPUs in one process are not supported",
            todo="torchrun --standalone --nproc_per_node N -m compactor prune ..., or CUDA_VISIBLE_DEVICES=0",
        )
    trainer = PruningTrainer(
        config=config,
        facts={"method": config.method, "settings": config.to_json(), "processes": world_size()},
        teacher=teacher,
        history=history,
        alpha_hidden=weight_of_states(config, model, teacher),
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


def _batches_of_like_length() -> dict[str, Any]:
    """The setting, under the name that this version of transformers has for it."""
    names = {field.name for field in dataclasses.fields(_argument_class())}
    if "train_sampling_strategy" in names:
        return {"train_sampling_strategy": "group_by_length"}
    return {"group_by_length": True}


def _argument_class() -> Any:
    from transformers import Seq2SeqTrainingArguments

    return Seq2SeqTrainingArguments


def _add_tensorboard(trainer: Any, folder: Path) -> None:
    """Log to TensorBoard where it is installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return
    from transformers.integrations import TensorBoardCallback

    trainer.add_callback(TensorBoardCallback(SummaryWriter(str(folder))))
