"""Load an encoder-decoder, run it for reference, and trace its two halves into the canonical dialect.

The decoder is traced once, without a cache: its time is two inputs, ``past_length`` and ``causal_mask``, so that
structure is found, and decided on, in one graph. ``attach-caches`` then makes of it the graph of the first step and
that of every next one.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import nn
from transformers.cache_utils import EncoderDecoderCache

from compactor.checkpoint import Checkpoint
from compactor.errors import ModelDirectoryError, describe_failure
from compactor.importing.encoder import LoadedModel
from compactor.importing.stock import build_model
from compactor.importing.tracing import trace_module
from compactor.passes.caching.attach_caches import CAUSAL_MASK, PAST_LENGTH, TOKENS
from compactor.runtime.verification import Case
from compactor.tasks import TASKS, Task

PROMPT, DECODED = 2, 6  # decoder tokens of a case: those of the first step, and all of them
_DECODED_LENGTH = 32  # encoder tokens in the decoder's cases
_TABLES = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")


@dataclasses.dataclass(frozen=True)
class LoadedEncoderDecoder:
    """A checkpoint as a stock PyTorch encoder-decoder in float32.

    Attributes:
        module: The whole model, in evaluation mode.
        encoder: Its encoder, as a model that gives token embeddings.
        task: What it is exported for.
        where: The model directory, for messages.
    """

    module: Any
    encoder: LoadedModel
    task: Task
    where: str

    @property
    def max_tokens(self) -> int | None:
        """Tokens of a text that the encoder reads, at most; None where nothing limits them."""
        return self.encoder.max_tokens

    @property
    def cases(self) -> list[Case]:
        """What the decoder is verified on: encodings of padded texts, and tokens to decode after them.

        ``decoder_input_ids`` (B, DECODED), ``encoder_hidden_states`` (B, S, D), ``encoder_attention_mask`` (B, S).
        """
        random = np.random.default_rng(0)
        vocabulary = int(self.module.config.vocab_size)
        cases = []
        for case in self.encoder.cases:
            ids = case.feeds["input_ids"]
            if not (ids.shape[0] == 1 or ids.shape[1] == _DECODED_LENGTH):
                continue
            feeds = {
                "decoder_input_ids": random.integers(0, vocabulary, (len(ids), DECODED)),
                "encoder_hidden_states": self.encoder.run(case)["last_hidden_state"],
                "encoder_attention_mask": case.feeds["attention_mask"],
            }
            cases.append(Case(f"{case.name}, {DECODED} tokens decoded", feeds, None))
        return cases

    def run(self, case: Case) -> dict[str, Any]:
        """The logits (B, DECODED, V) of one of ``cases``, computed at once and without a cache."""
        feeds = {name: torch.from_numpy(array) for name, array in case.feeds.items()}
        try:
            with torch.no_grad():
                result = self.module(
                    attention_mask=feeds["encoder_attention_mask"],
                    encoder_outputs=(feeds["encoder_hidden_states"],),
                    decoder_input_ids=feeds["decoder_input_ids"],
                    use_cache=False,
                )
        except Exception as error:  # whatever a stock model raises for a config that makes no working one
            raise ModelDirectoryError(
                f"'{type(self.module).__name__}' fails on case {case.name}: "
                f"{describe_failure(error, 'transformers', 'torch')}",
                where=self.where,
                todo="its config.json and weights do not make a working model for this task",
            ) from error
        if not result.logits.isfinite().all():
            raise ModelDirectoryError(
                f"the masked model's own logits are not finite on case {case.name}",
                where=self.where,
                todo="look for NaN, infinity or overflow in its weights",
            )
        return {"logits": result.logits.numpy()}

    def trace(self, beside: Sequence[ir.Model] = ()) -> ir.Model:
        """The decoder's graph, without a cache. The weights move into it.

        Inputs: ``input_ids`` (B, S), ``encoder_hidden_states`` (B, T, D), ``encoder_attention_mask`` (B, T),
        ``past_length`` (), ``causal_mask`` (1, 1, S, S). Output: ``logits`` (B, S, V).

        Args:
            beside: The encoder's graph, which shares weights with it, and keeps them.

        Raises:
            ModelDirectoryError: The exporter cannot trace it.
        """
        decoder = _Timeless(self.module).eval()
        width = int(self.module.config.d_model)
        batch, length, source = 2, 5, 7
        example = {
            TOKENS: torch.full((batch, length), int(self.module.config.vocab_size) // 2),
            "encoder_hidden_states": torch.randn(batch, source, width),
            "encoder_attention_mask": torch.ones(batch, source, dtype=torch.long),
            PAST_LENGTH: torch.tensor(0),
            CAUSAL_MASK: torch.zeros(1, 1, length, length),
        }
        rows, tokens = torch.export.Dim("batch_size"), torch.export.Dim("decoder_sequence_length")
        keys = torch.export.Dim("encoder_sequence_length")
        axes: dict[str, Any] = {
            TOKENS: {0: rows, 1: tokens},
            "encoder_hidden_states": {0: rows, 1: keys},
            "encoder_attention_mask": {0: rows, 1: keys},
            PAST_LENGTH: {},
            CAUSAL_MASK: {2: tokens, 3: tokens},
        }
        name = type(self.module).__name__
        model, _ = trace_module(decoder, example, axes, name=name, where=self.where, beside=beside)
        model.graph.outputs[0].name = "logits"
        return model


def load_encoder_decoder(checkpoint: Checkpoint, task: Task) -> LoadedEncoderDecoder:
    """Build the stock model of a checkpoint that writes text.

    Args:
        checkpoint: What ``read_checkpoint`` returned. Its tensors move into the model.
        task: One that generates.

    Raises:
        ModelDirectoryError: The model is no encoder-decoder, lacks weights, or its tied weights differ.
    """
    where = str(checkpoint.path)
    _check_tied(checkpoint, where)
    module = build_model(checkpoint, task)
    if not module.config.is_encoder_decoder:
        raise ModelDirectoryError(
            f"'{type(module).__name__}' has no encoder and decoder, so it cannot be exported for {task.name}",
            where=where,
            todo="pass --task with the task the model was trained for",
        )
    encoder = LoadedModel(module.get_encoder(), TASKS["feature-extraction"], ("input_ids", "attention_mask"), where)
    return LoadedEncoderDecoder(module, encoder, task, where)


def _check_tied(checkpoint: Checkpoint, where: str) -> None:
    """Refuse tables that the config ties but that differ: transformers would keep one of them without a word."""
    if not checkpoint.config.get("tie_word_embeddings", True):
        return
    shared = checkpoint.config.get("share_encoder_decoder_embeddings", True)
    tables = {
        name: tensor for name, tensor in checkpoint.tensors.items() if name.endswith(_TABLES if shared else _TABLES[2:])
    }
    names = sorted(tables)
    for name in names[1:]:
        first, other = tables[names[0]], tables[name]
        if first.shape != other.shape or not torch.equal(first, other):
            raise ModelDirectoryError(
                f"'{names[0]}' and '{name}' differ, but config.json says that they are one tensor",
                where=where,
                todo="save the model again with its embeddings tied, or set 'tie_word_embeddings' to false",
            )


class _Timeless(nn.Module):
    """A decoder and its head whose position in time is an input."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module = module

    def forward(
        self,
        input_ids: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        encoder_attention_mask: torch.Tensor,
        past_length: torch.Tensor,
        causal_mask: torch.Tensor,
    ) -> Mapping[str, torch.Tensor]:
        decoder = self.module.get_decoder()
        positions: dict[str, Any] = {}
        if "cache_position" in inspect.signature(decoder.forward).parameters:  # transformers 4
            positions["cache_position"] = torch.arange(input_ids.shape[1]) + past_length
        states = decoder(
            input_ids=input_ids,
            attention_mask=causal_mask,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
            past_key_values=_EmptyHanded(past_length),
            use_cache=True,
            return_dict=True,
            **positions,
        )[0]
        logits = self.module.lm_head(states)
        bias = getattr(self.module, "final_logits_bias", None)
        return {"logits": logits if bias is None else logits + bias}


class _EmptyHanded(EncoderDecoderCache):  # type: ignore[misc]  # transformers is not read for types
    """A cache that says how long it is, but keeps nothing."""

    def __init__(self, length: torch.Tensor) -> None:
        self.self_attention_cache, self.cross_attention_cache = _Through(length), _Through(length)
        self.is_updated: dict[int, bool] = {}

    def get_seq_length(self, layer_idx: int = 0) -> Any:
        return self.self_attention_cache.get_seq_length()


class _Through:
    is_compileable = False

    def __init__(self, length: torch.Tensor) -> None:
        self.length = length

    def update(self, keys: torch.Tensor, values: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return keys, values

    def get_seq_length(self, layer_idx: int = 0) -> torch.Tensor:
        return self.length
