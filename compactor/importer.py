"""Load a checkpoint into its stock PyTorch model, and trace that into the canonical dialect.

The dialect is what ``torch.onnx.export(dynamo=True, opset_version=23)`` writes: ``Attention``, ``Gelu``,
``LayerNormalization``, ``MatMul`` and ``Add``, as an ``onnx_ir.Model``. The passes take it from there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import inspect
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch

from compactor.checkpoint import Checkpoint
from compactor.companions import max_tokens
from compactor.errors import ModelDirectoryError
from compactor.runtime.verification import Case, image_cases, text_cases
from compactor.tasks import Task, find_task

OPSET = 23
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

    @property
    def cases(self) -> list[Case]:
        """The inputs on which an export is verified: three lengths, padded right, left and with holes."""
        config = self.module.config
        if self.task.image:
            height, width = _image_size(config)
            return image_cases(self.input_names[0], channels=int(config.num_channels), height=height, width=width)
        return text_cases(
            self.input_names,
            vocab_size=int(config.vocab_size),
            max_length=_max_length(config),
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


def load_model(checkpoint: Checkpoint, task_name: str | None = None) -> LoadedModel:
    """Build the stock model of a checkpoint.

    Args:
        checkpoint: What ``read_checkpoint`` returned. Its tensors move into the model.
        task_name: The task; None infers it from ``architectures``.

    Raises:
        ModelDirectoryError: The model type is not known to transformers, is not an encoder, or lacks weights.
        UsageError: There is no such task.
    """
    where = str(checkpoint.path)
    task = find_task(
        task_name, checkpoint.config, where=where, sentence_transformers=(checkpoint.path / "modules.json").is_file()
    )
    with _quiet():
        config = _config(checkpoint, where)
        model_class = _model_class(task, config, where)
        module = _build(model_class, config, checkpoint, where)
    if task.image:
        names: tuple[str, ...] = ("pixel_values",)
    else:
        accepted = inspect.signature(module.forward).parameters
        names = tuple(name for name in ("input_ids", "attention_mask") if name in accepted)
        if "token_type_ids" in accepted and int(getattr(config, "type_vocab_size", None) or 1) > 1:
            names += ("token_type_ids",)
        if "input_ids" not in names:
            raise ModelDirectoryError(
                f"'{model_class.__name__}' takes no 'input_ids', so it cannot be exported for {task.name}",
                where=where,
                todo="pass --task with the task the model was trained for",
            )
    return LoadedModel(module, task, names, where)


def trace(loaded: LoadedModel) -> ir.Model:
    """Trace a model into an opset-23 graph with the ecosystem's input, output and axis names.

    Raises:
        ModelDirectoryError: The exporter cannot trace the model; the message holds its reason.
    """
    if loaded.task.image:
        height, width = _image_size(loaded.module.config)
        example = {"pixel_values": torch.randn(_TRACE_BATCH, int(loaded.module.config.num_channels), height, width)}
        axes: dict[str, Any] = {"pixel_values": {0: torch.export.Dim("batch_size")}}
    else:
        length = min(_TRACE_LENGTH, _max_length(loaded.module.config))
        ids = torch.full((_TRACE_BATCH, length), int(loaded.module.config.vocab_size) // 2, dtype=torch.long)
        filled = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
        example = {name: filled[name] for name in loaded.input_names}
        sizes = {0: torch.export.Dim("batch_size"), 1: torch.export.Dim("sequence_length")}
        axes = dict.fromkeys(example, sizes)
    try:
        with _quiet(), torch.no_grad():
            produced = [name for name, value in loaded.module(**example).items() if value is not None]
            program = torch.onnx.export(
                loaded.module,
                (),
                kwargs=example,
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes=axes,
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        reason = str(error.__cause__ or error).strip().splitlines()
        raise ModelDirectoryError(
            f"'{type(loaded.module).__name__}' cannot be traced: {reason[0] if reason else type(error).__name__}",
            where=loaded.where,
            todo="run again with --debug for the exporter's own report",
        ) from error
    assert program is not None
    model: ir.Model = program.model.clone()
    _forget_weights(loaded.module, program.model, kept=model)
    _keep_outputs(model, produced, loaded)
    return model


def _forget_weights(module: Any, traced: ir.Model, kept: ir.Model) -> None:
    """Let go of the weights in ``traced``, and of those of ``module`` in nodes that its optimization dropped.

    onnxscript's optimizer keeps the graphs and nodes it last saw for as long as the process lives, and with them a
    copy of the model.
    """
    for value in traced.graph.initializers.values():
        value.const_value = None
    weights = {id(tensor) for tensor in (*module.parameters(), *module.buffers())}
    wanted = {id(value) for value in kept.graph.initializers.values()}
    for value in gc.get_objects():
        if not issubclass(type(value), ir.Value):  # isinstance() would wake lazy proxies
            continue
        if id(getattr(value.const_value, "raw", None)) in weights and id(value) not in wanted:
            value.const_value = None


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


def _config(checkpoint: Checkpoint, where: str) -> Any:
    from transformers import CONFIG_MAPPING

    model_type = str(checkpoint.config.get("model_type"))
    if model_type not in CONFIG_MAPPING:
        raise ModelDirectoryError(
            f"transformers knows no model type '{model_type}'",
            where=where,
            todo="compactor runs no code from the model directory; it exports model types that transformers ships",
        )
    try:
        config = CONFIG_MAPPING[model_type].from_dict(dict(checkpoint.config))
    except Exception as error:  # transformers raises what it likes for a damaged config
        raise ModelDirectoryError(f"transformers rejects config.json: {error}", where=where) from error
    for key in ("output_attentions", "output_hidden_states", "use_cache", "torchscript"):
        if hasattr(config, key):
            setattr(config, key, False)
    config.return_dict = True
    if getattr(config, "is_decoder", False) or _only_generates(config):
        raise ModelDirectoryError(
            "decoder-only models are not supported",
            where=where,
            todo="compactor exports encoders; use a BERT-like model",
        )
    return config


def _only_generates(config: Any) -> bool:
    """Whether the family is a decoder: its attention is causal, and no class of it fills in masks."""
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

    known = type(config) in AutoModelForCausalLM._model_mapping
    return known and type(config) not in AutoModelForMaskedLM._model_mapping


def _model_class(task: Task, config: Any, where: str) -> Any:
    import transformers

    mapping = getattr(transformers, task.auto_class)._model_mapping
    if type(config) not in mapping:
        raise ModelDirectoryError(
            f"transformers has no '{config.model_type}' model for {task.name}",
            where=where,
            todo="decoder-only and encoder-decoder models are not supported; for encoders pass another --task",
        )
    found = mapping[type(config)]
    return found[0] if isinstance(found, tuple) else found


def _build(model_class: Any, config: Any, checkpoint: Checkpoint, where: str) -> Any:
    options: dict[str, Any] = {}
    is_base = not any(key.startswith("pooler.") or ".pooler." in key for key in checkpoint.tensors)
    if "add_pooling_layer" in inspect.signature(model_class.__init__).parameters and is_base:
        options["add_pooling_layer"] = False
    module, info = _from_pretrained(model_class, config, checkpoint.tensors, options, where)
    missing = sorted(key for key in info["missing_keys"] if not key.endswith(("position_ids", "token_type_ids")))
    mismatched = sorted(str(key[0] if isinstance(key, tuple | list) else key) for key in info["mismatched_keys"])
    if missing or mismatched:
        what = f"the weights lack '{missing[0]}'" if missing else f"'{mismatched[0]}' does not have the config's shape"
        more = len(missing) + len(mismatched) - 1
        raise ModelDirectoryError(
            f"{what}{f' and {more} more' if more else ''}, which '{model_class.__name__}' needs",
            where=where,
            todo="pass --task with the task the model was trained for, or save the whole model",
        )
    return module.eval().requires_grad_(False)


def _from_pretrained(
    model_class: Any, config: Any, tensors: dict[str, torch.Tensor], options: dict[str, Any], where: str
) -> tuple[Any, dict[str, Any]]:
    for attention in ("sdpa", "eager"):
        try:
            return model_class.from_pretrained(  # type: ignore[no-any-return]
                None,
                config=config,
                state_dict=dict(tensors),
                dtype=torch.float32,
                attn_implementation=attention,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are reported, by name, and then refused
                **options,
            )
        except Exception as error:  # transformers raises what it likes for a config it cannot build
            if attention == "sdpa" and isinstance(error, ValueError) and "attention" in str(error):
                continue  # this family has no fused attention
            reason = f"{type(error).__name__}: {error}".strip().splitlines()[0]
            raise ModelDirectoryError(
                f"transformers cannot build '{model_class.__name__}': {reason}", where=where
            ) from error
    raise AssertionError("unreachable")


def _image_size(config: Any) -> tuple[int, int]:
    size = config.image_size
    return (int(size[0]), int(size[1])) if isinstance(size, list | tuple) else (int(size), int(size))


def _padding(config: Any) -> int:
    """The padding token's id; 0 where the config has none that is a token, such as -1."""
    stated = getattr(config, "pad_token_id", None)
    return stated if isinstance(stated, int) and 0 <= stated < int(config.vocab_size) else 0


def _max_length(config: Any) -> int:
    return max_tokens(config.to_dict()) or max(_SEQUENCE_LENGTHS)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers and the exporter from writing to the user's terminal; errors still raise."""
    loggers = [
        logging.getLogger(name) for name in ("transformers", "torch.onnx", "torch.export", "onnxscript", "onnx_ir")
    ]
    levels = [logger.level for logger in loggers]
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    with warnings.catch_warnings(), Path(os.devnull).open("w") as devnull, contextlib.redirect_stdout(devnull):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
