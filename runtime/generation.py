"""Generate text with an exported encoder-decoder, by transformers' own ``generate``.

    model = EncoderDecoder.open("OUT_DIR", precision="int8")
    model.generate(**tokenizer(texts, padding=True, return_tensors="pt"), num_beams=4)

Greedy search, beams, sampling, length penalties, forced and forbidden tokens are ``GenerationMixin``'s; this is the
model it asks for logits. Encoded texts are not repeated for each beam: the graphs let the beams of a text share its
keys and values, which are computed once and never moved.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from transformers import AutoConfig, GenerationConfig, GenerationMixin, PretrainedConfig
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput

from .decoding import ENCODER, CachedDecoder, Caches, graph_path, open_in_turn, run_on
from .folder import read_object

_NOT_KEPT = ("output_attentions", "output_hidden_states")


class EncoderDecoder(GenerationMixin):  # type: ignore[misc]  # transformers is not read for types
    """An artefact's three graphs as a model that ``GenerationMixin`` can drive.

    Attributes:
        config: The model's.
        generation_config: The artefact's defaults; ``generate`` takes others as arguments.
    """

    main_input_name = "input_ids"
    base_model_prefix = ""
    _is_stateful = False

    def __init__(
        self, encoder: Any, decoder: CachedDecoder, config: PretrainedConfig, generation_config: GenerationConfig
    ) -> None:
        self.config, self.generation_config = config, generation_config
        self.device, self.dtype = torch.device("cpu"), torch.float32  # of what comes in and goes out
        self.encoder, self.cached = _Encoder(encoder, decoder.device), decoder

    @classmethod
    def open(
        cls, folder: str | Path, *, precision: str = "fp32", provider: str = "cpu", threads: int | None = None
    ) -> Self:
        """Open an artefact of ``compactor export``.

        Args:
            folder: Its folder.
            precision: ``fp32``, ``int8`` or ``fp16``: which of its graphs.
            provider: ``cpu`` or ``cuda``.
            threads: For one operator; one for each usable core when omitted.

        Raises:
            FileNotFoundError: The folder has no encoder-decoder in that precision.
            ProviderUnavailableError: The provider is not installed, or does not start.
        """
        config = AutoConfig.from_pretrained(folder)
        if (Path(folder) / "generation_config.json").is_file():
            settings = GenerationConfig.from_pretrained(folder)
        else:
            settings = GenerationConfig.from_model_config(config)
            stated = read_object(Path(folder) / "config.json")  # transformers 5 drops such settings from a config
            settings.update(**{name: value for name, value in stated.items() if value is not None})
        encoder = open_in_turn(graph_path(folder, ENCODER, precision), provider=provider, threads=threads)
        decoder = CachedDecoder.open(folder, precision=precision, provider=provider, threads=threads)
        return cls(encoder, decoder, config, settings)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        decoder_input_ids: torch.Tensor | None = None,
        encoder_outputs: Any = None,
        past_key_values: CacheOfSessions | None = None,
        **unused: Any,
    ) -> Seq2SeqLMOutput:
        """Logits for ``decoder_input_ids``, (R, S, V).

        Args:
            input_ids: (G, T) texts to encode, where ``encoder_outputs`` is not given.
            attention_mask: (G, T): 1 where a token is real; all of them when omitted.
            decoder_input_ids: (R, S): those that are not cached yet.
            encoder_outputs: What ``encoder`` gave.
            past_key_values: What the step before gave.
            **unused: What else ``generate`` passes along.

        Raises:
            ValueError: Attentions or hidden states are asked for, which the graphs do not compute; or there is nothing
                to encode, or to go on from.
        """
        _refuse_more_than_logits(unused)
        if encoder_outputs is None:
            if input_ids is None:
                raise ValueError("the encoder needs input_ids, or give what it made of them as encoder_outputs")
            encoder_outputs = self.encoder(input_ids=input_ids, attention_mask=attention_mask)
        if decoder_input_ids is None:
            raise ValueError("the decoder needs decoder_input_ids to go on from")
        states = encoder_outputs[0]
        mask = torch.ones(states.shape[:2], dtype=torch.long) if attention_mask is None else attention_mask
        tokens, real = _array(decoder_input_ids), _array(mask)
        if past_key_values is None:
            logits, caches = self.cached.start(tokens, _array(states), real)
            pieces = [logits]
        else:
            pieces, caches = [], past_key_values.caches
            for place in range(tokens.shape[1]):
                logits, caches = self.cached.step(np.ascontiguousarray(tokens[:, place : place + 1]), real, caches)
                pieces.append(logits)
        values = [torch.from_numpy(piece.numpy()) for piece in pieces]
        return Seq2SeqLMOutput(
            logits=values[0] if len(values) == 1 else torch.cat(values, dim=1),
            past_key_values=CacheOfSessions(caches),
            encoder_last_hidden_state=states,
        )

    __call__ = forward

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Transformers' ``generate``, with torch on one thread meanwhile.

        What torch has to do between two steps is small, and its waiting threads would hold cores that ONNX Runtime's
        are about to use.
        """
        with _OneTorchThread():
            return super().generate(*args, **kwargs)

    # What GenerationMixin asks of a model

    def get_encoder(self, modality: str | None = None) -> _Encoder:
        """What encodes the texts."""
        return self.encoder

    def can_generate(self) -> bool:
        """It does nothing else."""
        return True

    def is_remote_code(self) -> bool:
        """Whether the model's code came with its folder: never."""
        return False

    def get_experts_implementation(self) -> dict[str, str]:
        """Of no mixture of experts: it has none."""
        return {}

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # the caches are ours: each layer has its own shape

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.Tensor,
        past_key_values: CacheOfSessions | None = None,
        attention_mask: torch.Tensor | None = None,
        encoder_outputs: Any = None,
        **unused: Any,
    ) -> dict[str, Any]:
        """What ``forward`` gets: of all tokens, those that are not cached yet."""
        _refuse_more_than_logits(unused)
        done = 0 if past_key_values is None else past_key_values.get_seq_length()
        return {
            "decoder_input_ids": input_ids[:, done:],
            "attention_mask": attention_mask,
            "encoder_outputs": encoder_outputs,
            "past_key_values": past_key_values,
        }

    @staticmethod
    def _expand_inputs_for_generation(
        expand_size: int = 1,
        is_encoder_decoder: bool = True,
        input_ids: torch.Tensor | None = None,
        **model_kwargs: Any,
    ) -> tuple[torch.Tensor | None, dict[str, Any]]:
        """Rows for each beam. Texts and their encodings stay single: the beams share them."""
        if input_ids is not None and expand_size > 1:
            input_ids = input_ids.repeat_interleave(expand_size, dim=0)
        return input_ids, model_kwargs


class CacheOfSessions:
    """The caches of a step, as far as ``GenerationMixin`` handles them."""

    is_compileable = False

    def __init__(self, caches: Caches) -> None:
        self.caches = caches

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens decoded so far."""
        return self.caches.length

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Go on with other rows. Beams stay with their text, so the keys and values of cross-attention stay too."""
        own = self.caches.own.values()
        if all(value.shape()[0] == len(beam_idx) for value in own) and beam_idx.tolist() == list(range(len(beam_idx))):
            return  # every beam went on from itself
        self.caches = self.caches.reorder(lambda value: _take(value, beam_idx))


class _OneTorchThread:
    """While one is entered, torch works on one thread; also where several threads generate at a time."""

    _lock: ClassVar[threading.Lock] = threading.Lock()
    _entered: ClassVar[int] = 0
    _before: ClassVar[int] = 1

    def __enter__(self) -> None:
        kind = type(self)
        with kind._lock:
            if not kind._entered:
                kind._before = torch.get_num_threads()
            kind._entered += 1
            torch.set_num_threads(1)  # of this thread, and of those that use torch for the first time

    def __exit__(self, *_: object) -> None:
        kind = type(self)
        with kind._lock:
            kind._entered -= 1
            torch.set_num_threads(kind._before)


class _Encoder:
    """The encoder's graph, as ``GenerationMixin`` calls it."""

    main_input_name = "input_ids"

    def __init__(self, session: Any, device: str) -> None:
        self.session, self.device = session, device

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **unused: Any
    ) -> BaseModelOutput:
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        feeds = {"input_ids": _array(input_ids), "attention_mask": _array(mask)}
        outputs = run_on(self.session, feeds, "cpu")
        return BaseModelOutput(last_hidden_state=torch.from_numpy(outputs["last_hidden_state"].numpy()))

    __call__ = forward


def _refuse_more_than_logits(options: Mapping[str, Any]) -> None:
    wanted = [name for name in _NOT_KEPT if options.get(name)]
    if wanted:
        raise ValueError(f"the exported graphs give logits only: leave out {wanted[0]}")


def _array(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    return np.ascontiguousarray(tensor.numpy())


def _take(value: Any, rows: torch.Tensor) -> Any:
    """Some rows of an ``OrtValue``, where it lies."""
    import onnxruntime

    if value.device_name() == "cpu":
        return onnxruntime.OrtValue.ortvalue_from_numpy(np.take(value.numpy(), rows.numpy(), axis=0))
    tensor = torch.utils.dlpack.from_dlpack(value._ortvalue.to_dlpack()).index_select(0, rows.to("cuda"))
    return onnxruntime.OrtValue(onnxruntime.capi._pybind_state.OrtValue.from_dlpack(tensor.__dlpack__(), False))
