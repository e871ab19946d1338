"""Load a checkpoint into its stock PyTorch model, and trace that into the canonical dialect.

The dialect is what ``torch.onnx.export(dynamo=True, opset_version=23)`` writes: ``Attention``, ``Gelu``,
``LayerNormalization``, ``MatMul`` and ``Add``, as an ``onnx_ir.Model``. The passes take it from there.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import onnx_ir as ir
import torch

from compactor.checkpoint import Checkpoint
from compactor.companions.sentence_modules import sentence_task
from compactor.errors import ModelDirectoryError, describe_failure
from compactor.importing.inputs import (
    PIXELS,
    Shape,
    example_images,
    example_texts,
    image_shape,
    input_names,
    token_types,
)
from compactor.importing.limits import longest_sequence
from compactor.importing.stock import build_model
from compactor.importing.tracing import trace_module
from compactor.runtime.verification import Case, image_cases, text_cases
from compactor.tasks import GENERATION, Task, find_task

_SEQUENCE_LENGTHS = (7, 32, 128)


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A checkpoint as a stock PyTorch model in float32, ready to run or to trace.

    Attributes:
        module: The model, in evaluation mode.
        task: What it is exported for.
        input_names: Names of the graph's inputs.
        where: The model directory, for messages.
        image: Channels, height and width of its images; None for a model of texts.
    """

    module: Any
    task: Task
    input_names: tuple[str, ...]
    where: str
    image: Shape | None = None

    @functools.cached_property
    def max_tokens(self) -> int | None:
        """Tokens of a sequence, at most; None where nothing limits them, and for images."""
        return None if self.image is not None else longest_sequence(self.module, self.input_names)

    @property
    def _example(self) -> dict[str, torch.Tensor]:
        if self.image is not None:
            return example_images(self.image)
        return example_texts(self.input_names, int(self.module.config.vocab_size), self.max_tokens)

    @property
    def cases(self) -> list[Case]:
        """The inputs on which an export is verified: three lengths, padded right, left and with holes."""
        config = self.module.config
        if self.image is not None:
            channels, height, width = self.image
            return image_cases(PIXELS, channels=channels, height=height, width=width)
        return text_cases(
            self.input_names,
            vocab_size=int(config.vocab_size),
            max_length=self.max_tokens or max(_SEQUENCE_LENGTHS),
            pad_token_id=_padding(config),
            type_vocab_size=token_types(config),
            end_token_id=_end(config),
            lengths=_SEQUENCE_LENGTHS,
        )

    def run(self, case: Case) -> dict[str, Any]:
        """The model's outputs on ``case``, as numpy arrays by output name.

        Raises:
            ModelDirectoryError: The model itself fails, lacks an output, or gives numbers that are not finite.
        """
        feeds = {name: torch.from_numpy(array) for name, array in case.feeds.items()}
        result = self._forward(feeds, f"case {case.name}")
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

    def with_extras(self, tensors: Collection[str]) -> LoadedModel:
        """The same model, with the extra outputs of its task that it gives and whose weights are there.

        Args:
            tensors: Names of the checkpoint's tensors. A pooler that is not among them has random weights.

        Raises:
            ModelDirectoryError: The model itself fails.
        """
        result = self._forward(self._example, "two examples")
        random = {"pooler_output"} if _has_pooler(self.module.state_dict()) and not _has_pooler(tensors) else set()
        names = (*self.task.outputs, *self.task.extras)
        outputs = tuple(name for name in names if result.get(name) is not None and name not in random)
        task = dataclasses.replace(self.task, outputs=outputs or self.task.outputs, extras=())
        return dataclasses.replace(self, task=task)

    def _forward(self, feeds: dict[str, torch.Tensor], what: str) -> Any:
        try:
            with torch.no_grad():
                result = self.module(**feeds)
                return result if isinstance(result, Mapping) else {}
        except Exception as error:  # whatever a stock model raises for a config that makes no working one
            raise ModelDirectoryError(
                f"'{type(self.module).__name__}' fails on {what}: {describe_failure(error, 'transformers', 'torch')}",
                where=self.where,
                todo="its config.json and weights do not make a working model for this task",
            ) from error

    def trace(self, beside: Sequence[ir.Model] = ()) -> ir.Model:
        """An opset-23 graph with the ecosystem's input, output and axis names. The weights move into it.

        Args:
            beside: Graphs of other parts of the same model, which keep their weights.

        Raises:
            ModelDirectoryError: The exporter cannot trace the model; the message holds its reason.
        """
        given = self._example
        sizes = {0: torch.export.Dim("batch_size")}
        if self.image is None:
            sizes[1] = torch.export.Dim("sequence_length")
        name = type(self.module).__name__
        model, produced = trace_module(
            self.module, given, dict.fromkeys(given, sizes), name=name, where=self.where, beside=beside
        )
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
    decodes = "decoder_input_ids" in inspect.signature(module.forward).parameters
    if getattr(module.config, "is_encoder_decoder", False) and decodes and not task.generates:
        raise ModelDirectoryError(
            f"'{type(module).__name__}' is an encoder-decoder, which is exported for {GENERATION}, not {task.name}",
            where=where,
            todo=f"pass --task {GENERATION} if its weights are those of a model that writes text",
        )
    names = input_names(module, task, where)
    image = image_shape(module, checkpoint.model_path, where) if task.image else None
    loaded = LoadedModel(module, task, names, where, image)
    if sentence_task(checkpoint.path, checkpoint.model_path) is not None:
        return loaded  # its modules say what a text's vector is made of, and no pooler
    return loaded.with_extras(checkpoint.tensors) if task.extras else loaded


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


def _has_pooler(tensors: Collection[str]) -> bool:
    return any("pooler." in name for name in tensors)


def _end(config: Any) -> int | None:
    """The token at which a tower of CLIP makes the vector of a text; without it that would be a padded position's."""
    stated = getattr(config, "eos_token_id", None)
    tower = config.model_type.endswith("_text_model")
    return stated if tower and isinstance(stated, int) and 0 <= stated < int(config.vocab_size) else None


def _padding(config: Any) -> int:
    """The padding token's id; 0 where the config has none that is a token, such as -1."""
    stated = getattr(config, "pad_token_id", None)
    return stated if isinstance(stated, int) and 0 <= stated < int(config.vocab_size) else 0
