"""Load a checkpoint into its stock PyTorch model, and trace that into the canonical dialect.

The dialect is what ``torch.onnx.export(dynamo=True, opset_version=23)`` writes: ``Attention``, ``Gelu``,
``LayerNormalization``, ``MatMul`` and ``Add``, as an ``onnx_ir.Model``. The passes take it from there.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Sequence
from typing import Any

import onnx_ir as ir
import torch

from compactor.checkpoint import Checkpoint
from compactor.companions.sentence_modules import sentence_task
from compactor.errors import ModelDirectoryError
from compactor.importing.limits import longest_sequence
from compactor.importing.stock import build_model
from compactor.importing.tracing import trace_module
from compactor.runtime.verification import Case, image_cases, text_cases
from compactor.tasks import GENERATION, Task, find_task

_TRACE_BATCH, _TRACE_LENGTH = 2, 16
_SEQUENCE_LENGTHS = (7, 32, 128)


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A checkpoint as a stock PyTorch model in float32, ready to run or to trace.

    Attributes:
        module: The model, in evaluation mode.
        task: What it is exported for.
        input_names: Names of the graph's inputs.
        where: The model directory, for messages.
    """

    module: Any
    task: Task
    input_names: tuple[str, ...]
    where: str

    @functools.cached_property
    def max_tokens(self) -> int | None:
        """Tokens of a sequence, at most; None where nothing limits them, and for images."""
        return None if self.task.image else longest_sequence(self.module, self.input_names)

    @property
    def cases(self) -> list[Case]:
        """The inputs on which an export is verified: three lengths, padded right, left and with holes."""
        config = self.module.config
        if self.task.image:
            channels, height, width = _image_shape(config, self.where)
            return image_cases(self.input_names[0], channels=channels, height=height, width=width)
        return text_cases(
            self.input_names,
            vocab_size=int(config.vocab_size),
            max_length=self.max_tokens or max(_SEQUENCE_LENGTHS),
            pad_token_id=_padding(config),
            type_vocab_size=int(getattr(config, "type_vocab_size", None) or 1),
            lengths=_SEQUENCE_LENGTHS,
        )

    def run(self, case: Case) -> dict[str, Any]:
        """The model's outputs on ``case``, as numpy arrays by output name.

        Raises:
            ModelDirectoryError: The model itself fails, lacks an output, or gives numbers that are not finite.
        """
        try:
            with torch.no_grad():
                result = self.module(**{name: torch.from_numpy(array) for name, array in case.feeds.items()})
        except (ArithmeticError, IndexError, RuntimeError, TypeError, ValueError) as error:
            raise ModelDirectoryError(
                f"'{type(self.module).__name__}' fails on case {case.name}: {error}",
                where=self.where,
                todo="its config.json and weights do not make a working model for this task",
            ) from error
        for name in self.task.outputs:
            if result.get(name) is None:
                raise ModelDirectoryError(
                    f"the model has no output '{name}' for {self.task.name}",
                    where=self.where,
                    todo="pass another --task",
                )
            if not result[name].isfinite().all():
                raise ModelDirectoryError(
                    f"the masked model's own '{name}' is not finite on case {case.name}",
                    where=self.where,
                    todo="look for NaN, infinity or overflow in its weights",
                )
        return {name: result[name].numpy() for name in self.task.outputs}

    def trace(self, beside: Sequence[ir.Model] = ()) -> ir.Model:
        """An opset-23 graph with the ecosystem's input, output and axis names. The weights move into it.

        Args:
            beside: Graphs of other parts of the same model, which keep their weights.

        Raises:
            ModelDirectoryError: The exporter cannot trace the model; the message holds its reason.
        """
        if self.task.image:
            example = {"pixel_values": torch.randn(_TRACE_BATCH, *_image_shape(self.module.config, self.where))}
            axes: dict[str, Any] = {"pixel_values": {0: torch.export.Dim("batch_size")}}
        else:
            length = min(_TRACE_LENGTH, self.max_tokens or _TRACE_LENGTH)
            ids = torch.full((_TRACE_BATCH, length), int(self.module.config.vocab_size) // 2, dtype=torch.long)
            filled = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
            example = {name: filled[name] for name in self.input_names}
            sizes = {0: torch.export.Dim("batch_size"), 1: torch.export.Dim("sequence_length")}
            axes = dict.fromkeys(example, sizes)
        name = type(self.module).__name__
        model, produced = trace_module(self.module, example, axes, name=name, where=self.where, beside=beside)
        _keep_outputs(model, produced, self)
        return model


def load_model(checkpoint: Checkpoint, task: Task | None = None) -> LoadedModel:
    """Build the stock model of a checkpoint.

    Args:
        checkpoint: What ``read_checkpoint`` returned. Its tensors move into the model.
        task: What it is for; None takes what the folder says of itself.

    Raises:
        ModelDirectoryError: The model type is not known to transformers, is not an encoder, or lacks weights.
    """
    where = str(checkpoint.path)
    if task is None:
        task = find_task(sentence_task(checkpoint.path, checkpoint.model_path), checkpoint.config, where=where)
    module = build_model(checkpoint, task)
    config = module.config
    if getattr(config, "is_encoder_decoder", False) and not task.generates:
        raise ModelDirectoryError(
            f"'{type(module).__name__}' is an encoder-decoder, which is exported for {GENERATION}, not {task.name}",
            where=where,
            todo=f"pass --task {GENERATION} if its weights are those of a model that writes text",
        )
    if task.image:
        names: tuple[str, ...] = ("pixel_values",)
    else:
        accepted = inspect.signature(module.forward).parameters
        names = tuple(name for name in ("input_ids", "attention_mask") if name in accepted)
        if "token_type_ids" in accepted and int(getattr(config, "type_vocab_size", None) or 1) > 1:
            names += ("token_type_ids",)
        if "input_ids" not in names:
            raise ModelDirectoryError(
                f"'{type(module).__name__}' takes no 'input_ids', so it cannot be exported for {task.name}",
                where=where,
                todo="pass --task with the task the model was trained for",
            )
    return LoadedModel(module, task, names, where)


def _keep_outputs(model: ir.Model, produced: list[str], loaded: LoadedModel) -> None:
    """Name the graph's outputs as the task does and drop the others."""
    missing = [name for name in loaded.task.outputs if name not in produced]
    if missing:
        raise ModelDirectoryError(
            f"the model has no output '{missing[0]}' for {loaded.task.name}",
            where=loaded.where,
            todo="pass another --task",
        )
    values = dict(zip(produced, model.graph.outputs, strict=False))
    kept = [values[name] for name in loaded.task.outputs]
    for name, value in zip(loaded.task.outputs, kept, strict=True):
        value.name = name
    model.graph.outputs[:] = kept


def _image_shape(config: Any, where: str) -> tuple[int, int, int]:
    """Channels, height and width of the images that a model takes."""
    told = config if hasattr(config, "image_size") else getattr(config, "vision_config", config)  # CLIP's, SigLIP's
    size, channels = getattr(told, "image_size", None), getattr(told, "num_channels", None)
    sizes = [channels, *(size if isinstance(size, list | tuple) else (size, size))]
    if len(sizes) != 3 or not all(isinstance(number, int) and number > 0 for number in sizes):
        raise ModelDirectoryError(
            f"config.json of this {config.model_type} does not say which images it takes: "
            f"'image_size' is {size!r}, 'num_channels' is {channels!r}",
            where=where,
            todo="models whose images are described elsewhere than there or in 'vision_config' are not built",
        )
    return sizes[0], sizes[1], sizes[2]


def _padding(config: Any) -> int:
    """The padding token's id; 0 where the config has none that is a token, such as -1."""
    stated = getattr(config, "pad_token_id", None)
    return stated if isinstance(stated, int) and 0 <= stated < int(config.vocab_size) else 0
