"""Build the stock PyTorch model of a checkpoint: no code from the folder, no weight missing, in silence."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import torch
import transformers

from compactor.checkpoint import Checkpoint
from compactor.checkpoint.config import has_no_norm
from compactor.checkpoint.fitting import Fit
from compactor.checkpoint.no_norm import replace_norms
from compactor.errors import ModelDirectoryError, describe_failure
from compactor.importing.adapting import adapt
from compactor.importing.classes import config_class, model_class, stock_class, tower_class
from compactor.importing.direction import looks_ahead, says_both_ways
from compactor.quiet import quiet
from compactor.tasks import Task

# Of a model that compares texts with images: the tensors of each half, and of both.
_OF_TEXTS, _OF_IMAGES = ("text_model.", "text_projection."), ("vision_model.", "visual_projection.")
_OF_BOTH = ("logit_scale", "logit_bias")


def build_model(checkpoint: Checkpoint, task: Task) -> Any:
    """The model for ``task`` in float32 and evaluation mode. The checkpoint's tensors move into it.

    Where the config says so, its LayerNorms are NoNorms.

    Raises:
        ModelDirectoryError: The model type is not known to transformers, is a decoder, or lacks weights.
    """
    where = str(checkpoint.path)
    named = (checkpoint.config.get("architectures") or [""])[0]
    with quiet():
        config = _config(checkpoint, named, where)
        half = tower_class(task, config, named)
        if half is not None:
            config, checkpoint = _half_config(config, task), _half(checkpoint, task)
        module = _build(half or model_class(task, config, named, where), config, checkpoint, task, where)
        if _only_generates(config) and not _looks_ahead(module, where):
            raise ModelDirectoryError(
                f"config.json asks for attention that looks both ways, and '{type(module).__name__}' of transformers "
                f"{transformers.__version__} does not follow it in every batch",
                where=where,
                todo="decoder-only models are not supported; use one whose stock class follows its config, such as "
                "Gemma 3's",
            )
    if has_no_norm(checkpoint.config):
        replace_norms(module, where)
    adapt(module)
    return module


def _config(checkpoint: Checkpoint, named: str, where: str) -> Any:
    found = config_class(str(checkpoint.config.get("model_type")), named)
    if found is None:
        raise ModelDirectoryError(
            f"transformers knows no model type '{checkpoint.config.get('model_type')}'",
            where=where,
            todo="compactor runs no code from the model directory; it exports model types that transformers ships",
        )
    try:
        config = found.from_dict(dict(checkpoint.config))
    except Exception as error:  # transformers raises what it likes for a damaged config
        raise ModelDirectoryError(
            f"transformers rejects config.json: {describe_failure(error, 'transformers')}", where=where
        ) from error
    config = _plain(config)
    if getattr(config, "is_decoder", False) or (_only_generates(config) and not says_both_ways(config)):
        raise _decoder(where)
    return config


def _half(checkpoint: Checkpoint, task: Task) -> Checkpoint:
    """The checkpoint without what belongs to the other half alone, or to the comparison of the two."""
    other = (*_OF_BOTH, *(_OF_TEXTS if task.image else _OF_IMAGES))
    kept = {name: tensor for name, tensor in checkpoint.tensors.items() if not name.startswith(other)}
    return dataclasses.replace(checkpoint, tensors=kept)


def _half_config(config: Any, task: Task) -> Any:
    """The config of the half that reads images, or of the one that reads texts."""
    half = _plain(config.vision_config if task.image else config.text_config)
    if hasattr(half, "projection_dim") and hasattr(config, "projection_dim"):
        half.projection_dim = config.projection_dim  # the whole model's counts: its half's may be a mere default
    return half


def _plain(config: Any) -> Any:
    """The same config, with nothing returned but what the task needs, by name."""
    for key in ("output_attentions", "output_hidden_states", "use_cache", "use_mems_eval", "torchscript"):
        if hasattr(config, key):
            setattr(config, key, False)
    config.return_dict = True
    if hasattr(config, "chunk_size_feed_forward"):
        config.chunk_size_feed_forward = 0  # it changes no number, and a trace of it holds for one length alone
    return config


def _only_generates(config: Any) -> bool:
    """Whether the family is a decoder: its attention is causal, and no class of it fills in masks."""
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

    known = type(config) in AutoModelForCausalLM._model_mapping and not config.is_encoder_decoder
    return known and type(config) not in AutoModelForMaskedLM._model_mapping


def _looks_ahead(module: Any, where: str) -> bool:
    try:
        return looks_ahead(module)
    except Exception as error:  # whatever a stock model raises
        raise ModelDirectoryError(
            f"'{type(module).__name__}' fails on two texts: {describe_failure(error, 'transformers', 'torch')}",
            where=where,
        ) from error


def _decoder(where: str) -> ModelDirectoryError:
    return ModelDirectoryError(
        "decoder-only models are not supported",
        where=where,
        todo="compactor exports encoders and encoder-decoders; use a BERT-like or BART-like model, or a decoder whose "
        "config makes its attention look both ways ('use_bidirectional_attention', or 'is_causal' of false)",
    )


def _build(found: Any, config: Any, checkpoint: Checkpoint, task: Task, where: str) -> Any:
    options: dict[str, Any] = {}
    is_base = not any(key.startswith("pooler.") or ".pooler." in key for key in checkpoint.tensors)
    if "add_pooling_layer" in inspect.signature(found.__init__).parameters and is_base:
        options["add_pooling_layer"] = False
    fit = Fit(found, config, where)
    tensors = fit.add_base_name(checkpoint.tensors)
    fit.refuse_no_trunk(tensors)
    module, info = _from_pretrained(found, config, tensors, options, where)
    built = module.state_dict()
    fit.refuse_other_shapes(info["mismatched_keys"], tensors, built)
    hollow = {name for name, tensor in built.items() if tensor.is_meta}  # tied to a tensor that is missing as well
    fit.refuse_missing({*info["missing_keys"], *hollow}, tensors, task)
    fit.refuse_strays(info["unexpected_keys"], tensors, trunk_only=_is_trunk(task, checkpoint))
    return module.eval().requires_grad_(False)


def _is_trunk(task: Task, checkpoint: Checkpoint) -> bool:
    """Whether a task without a head was meant: asked for, or told by a class of transformers.

    A class of the user's own that ends in ``Model``, as transformers' classes without a head do, may have any head.
    """
    named = (checkpoint.config.get("architectures") or [""])[0]
    own = named.endswith("Model") and stock_class(named) is None
    return task.auto_class == "AutoModel" and not own


def _from_pretrained(
    found: Any, config: Any, tensors: dict[str, torch.Tensor], options: dict[str, Any], where: str
) -> tuple[Any, dict[str, Any]]:
    for attention in ("sdpa", "eager"):
        try:
            return found.from_pretrained(  # type: ignore[no-any-return]
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
            reason = describe_failure(error, "transformers")
            raise ModelDirectoryError(f"transformers cannot build '{found.__name__}': {reason}", where=where) from error
    raise AssertionError("unreachable")
