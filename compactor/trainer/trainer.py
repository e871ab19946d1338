"""The Hugging Face ``Trainer`` with pruning in its steps: nothing else of it is changed.

In the order of a step: threshold, λ and masks are set (``Pruner.advance``); forward pass; task loss; the teacher's
answers and the divergence from them; the penalty on the scores; backward pass, clipping and optimizer step are the
``Trainer``'s. Mixed precision, accumulation, data parallelism, logging and checkpoints come from there.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.data import Sampler, SequentialSampler
from transformers import Seq2SeqTrainer, TrainerCallback

from compactor.errors import MeasurementError, TrainingError
from compactor.trainer.config import PruneConfig
from compactor.trainer.distillation import divergence, token_distance
from compactor.trainer.folders import find_pruner, load_training_state, save_model, save_training_state
from compactor.trainer.history import HISTORY_FILE, History
from compactor.trainer.masks import recomputed_weights
from compactor.trainer.pruner import SUBMODULE, Pruner

_DIVERGED = "lower --learning-rate, or in fp16 use bf16; --resume starts from the last checkpoint"
_OTHER_OUTPUTS = ("past_key_values", "encoder_last_hidden_state", "hidden_states", "attentions", "mems")


class OrderedTrainer(Seq2SeqTrainer):  # type: ignore[misc] # transformers is not followed by mypy
    """A ``Seq2SeqTrainer`` that evaluates in the order of the examples, also where training batches are by length."""

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        sampler = super()._get_train_sampler(*args, **kwargs)
        return (
            EpochOrder(sampler, self.args.seed)
            if hasattr(sampler, "generator") and sampler.generator is None
            else sampler
        )

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        # Several processes: accelerate deals the batches out itself, and gathers them in order.
        return SequentialSampler(eval_dataset) if self.args.world_size <= 1 else None

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """One pass, each example counted once: ``Seq2SeqTrainer`` gathers what pads the last batch as well."""
        self.gather_function = self.accelerator.gather_for_metrics
        with self._own_generation_config():
            return super().evaluation_loop(*args, **kwargs)

    @contextlib.contextmanager
    def _own_generation_config(self) -> Iterator[None]:
        """Generation with a copy of the model's settings: transformers 5 fills them up with defaults, to be saved."""
        own = getattr(self.model, "generation_config", None)
        if own is None:
            yield
            return
        self.model.generation_config = copy.deepcopy(own)
        try:
            yield
        finally:
            self.model.generation_config = own


class EpochOrder(Sampler[int]):
    """Another sampler, whose order follows from the seed and the number of the epoch alone.

    Batches of like length are drawn from the random state that an epoch begins with, which a checkpoint within that
    epoch does not hold: a run resumed from there would see some examples twice and others never.

    Args:
        sampler: Takes a ``generator``.
        seed: Of the run.
    """

    def __init__(self, sampler: Any, seed: int) -> None:
        self._sampler, self._seed, self._epoch = sampler, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """The number of the epoch that begins, from 0."""
        self._epoch = int(epoch)

    def __iter__(self) -> Iterator[int]:
        self._sampler.generator = torch.Generator().manual_seed(self._seed + self._epoch)
        return iter(self._sampler)

    def __len__(self) -> int:
        return len(self._sampler)


class PruningTrainer(OrderedTrainer):
    """An ``OrderedTrainer`` for a model with or without a pruner, and with or without a teacher.

    Args:
        config: Learning rates and the weights of the losses.
        facts: What is written beside every checkpoint.
        teacher: Answers every training batch; None for none.
        history: Told what each log line and each evaluation holds, on the first process.
        alpha_hidden: The weight of the teacher's states; 0 does not ask for them.
        **kwargs: The ``Trainer``'s own.
    """

    def __init__(
        self,
        *,
        config: PruneConfig,
        facts: Mapping[str, Any],
        teacher: nn.Module | None = None,
        history: History | None = None,
        alpha_hidden: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.config = config
        self.facts = dict(facts)
        self.teacher = None if teacher is None else teacher.to(self.args.device).eval().requires_grad_(False)
        self.history = history
        self._alpha_hidden = 0.0 if teacher is None else alpha_hidden
        self.model_accepts_loss_kwargs = False  # our loss is a mean over the batch
        self._parts: dict[str, list[Tensor]] = {}
        self._teacher_takes = (
            frozenset() if teacher is None else frozenset(inspect.signature(teacher.forward).parameters)
        )
        if self.pruner is not None:
            self.add_callback(_Advance(self.pruner))

    optimizer: Any

    @property
    def pruner(self) -> Pruner | None:
        """What prunes the model."""
        return find_pruner(self.model)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW on weights and scores, each with its own learning rate; the class is the ``Trainer``'s choice."""
        if self.optimizer is None:
            scores = [p for n, p in self.model.named_parameters() if n.startswith(f"{SUBMODULE}.")]
            known = {id(parameter) for parameter in scores}
            weights = [p for p in self.model.parameters() if p.requires_grad and id(p) not in known]
            # Biases and norms are not decayed. By their axes: the names of masked weights are not the usual ones.
            groups: list[dict[str, Any]] = [
                {"params": [p for p in weights if p.ndim > 1], "weight_decay": self.config.weight_decay},
                {"params": [p for p in weights if p.ndim <= 1], "weight_decay": 0.0},
                {"params": scores, "weight_decay": 0.0, "lr": self.config.score_learning_rate},
            ]
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            self.optimizer = optimizer_class([group for group in groups if group["params"]], **options)
        optimizer: torch.optim.Optimizer = self.optimizer
        return optimizer

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """One forward and backward pass, in which masked weights are not kept."""
        with recomputed_weights():
            loss: Tensor = super().training_step(*args, **kwargs)
        return loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Task loss, and in training the divergence from the teacher and the penalty on the scores."""
        asked = {"output_hidden_states": True} if model.training and self._alpha_hidden > 0 else {}
        outputs = model(**inputs, **asked)
        loss = outputs["loss"]
        if model.training:
            self._note("task_loss", loss)
            if self.teacher is not None:
                with torch.no_grad():
                    taken = {name: inputs[name] for name in inputs if name in self._teacher_takes}
                    answers = self.teacher(**taken, **asked)
                apart = divergence(outputs, answers, inputs, self.config.temperature)
                self._note("distillation_loss", apart)
                loss = self.config.alpha_ce * loss + self.config.alpha_teacher * apart
                if asked:
                    states = token_distance(outputs, answers, inputs)
                    self._note("hidden_loss", states)
                    loss = loss + self._alpha_hidden * states
            penalty = None if self.pruner is None else self.pruner.penalty()
            if penalty is not None:
                self._note("regularization", penalty)
                loss = loss + penalty
        return (loss, outputs) if return_outputs else loss

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Metrics with the masks that the scores give now.

        Raises:
            TrainingError: The model's answers are no numbers.
        """
        if self.pruner is not None:
            self.pruner.refresh()
        kwargs["ignore_keys"] = list(_OTHER_OUTPUTS)
        # A summary takes a forward pass a token: masked weights are made once, and held, for all of them.
        held = parametrize.cached() if self.args.predict_with_generate else contextlib.nullcontext()
        try:
            with held:
                metrics: dict[str, float] = super().evaluate(*args, **kwargs)
        except MeasurementError as error:
            raise TrainingError(f"{error.what} at step {self.state.global_step}", todo=_DIVERGED) from error
        if self.history is not None:
            self.history.evaluated(self.state.global_step, self.pruner, metrics)
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add to a training line the parts of the loss and what is left of the model.

        Raises:
            TrainingError: The loss is no number.
        """
        if "loss" in logs:
            if not torch.isfinite(torch.tensor(logs["loss"])):
                raise TrainingError(
                    f"the loss is {logs['loss']} at step {self.state.global_step}",
                    todo=_DIVERGED,
                )
            logs |= {name: float(torch.stack(values).mean()) for name, values in self._parts.items()}
            if self.pruner is not None:
                logs |= {
                    "threshold": self.pruner.threshold,
                    "lambda": self.pruner.strength,
                    "density": self.pruner.density(),
                    "density_attention": self.pruner.density("attention"),
                    "density_feed_forward": self.pruner.density("feed_forward"),
                    "heads": self.pruner.heads()[0],
                }
            self._parts = {}
            if self.history is not None:
                self.history.logged(self.state.global_step, logs)
        super().log(logs, start_time)

    def _note(self, name: str, value: Tensor) -> None:
        self._parts.setdefault(name, []).append(value.detach())  # a number only when it is logged: a GPU goes on

    # Checkpoints

    def _save(self, output_dir: str | None = None, state_dict: Mapping[str, Tensor] | None = None) -> None:
        """A folder that stock transformers open, and beside it what resuming needs."""
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        save_model(self.model, folder, tokenizer=self.processing_class, facts=self.facts)
        save_training_state(self.model, folder)
        if self.history is not None:
            self.history.write(folder / HISTORY_FILE)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Weights, scores, masks, the pruner's state; the ``Trainer`` reads optimizer, schedule and random states."""
        folder = Path(resume_from_checkpoint)
        load_training_state(self.model if model is None else model, folder)
        if self.history is not None:
            self.history.read(folder / HISTORY_FILE)


class _Advance(TrainerCallback):  # type: ignore[misc]
    """Tells the pruner the step before each optimizer step."""

    def __init__(self, pruner: Pruner) -> None:
        self._pruner = pruner

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Before the first batch of a step."""
        self._pruner.advance(state.global_step)
