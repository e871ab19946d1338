"""PyTorch: the stock model of an encoder-decoder, its masks folded in, and what its own ``generate`` makes of it.

Options: ``generation``, see ``searching.py``.
"""

from __future__ import annotations

import abc
import os
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compactor.benching.engines.feeding import check_options, choose_inputs
from compactor.benching.engines.searching import OPTION, search_settings
from compactor.benching.engines.torch import choose_device, set_threads
from compactor.benching.parts import DECODER_TOKENS
from compactor.benching.plan import Part, Variant

_TYPES = dict.fromkeys(("input_ids", "attention_mask", DECODER_TOKENS), np.int64)


class TorchGenerator:
    """An encoder-decoder in PyTorch, in float32; ``part`` gives what is run of it.

    Attributes:
        module: The model itself.
    """

    input_names: tuple[str, ...] = ("input_ids", "attention_mask")

    def __init__(self, variant: Variant, *, threads: int, spinning: bool) -> None:
        check_options(variant.options, (OPTION,), where=variant.name)
        if not spinning and "torch" not in sys.modules:
            os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # read once, when the thread pool's library is loaded
        import torch
        import transformers

        from compactor.checkpoint import read_checkpoint
        from compactor.importing.encoder_decoder import load_encoder_decoder
        from compactor.tasks import GENERATION, TASKS

        self.device = choose_device(variant.provider)
        set_threads(threads)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        self.variant, self._where = variant, str(variant.path)
        self.module = load_encoder_decoder(read_checkpoint(variant.path), TASKS[GENERATION]).module.to(self.device)
        self.environment: dict[str, Any] = {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "providers": [self.device],
            "dtype": "float32",
            "attention": getattr(self.module.config, "_attn_implementation", None),
            "threads": torch.get_num_threads(),
            "interop_threads": torch.get_num_interop_threads(),
            "spinning": os.environ.get("OMP_WAIT_POLICY", "").upper() != "PASSIVE",
        }
        if self.device == "cuda":
            self.environment |= {"device": torch.cuda.get_device_name(), "cuda": torch.version.cuda, "tf32": False}

    def part(self, part: Part) -> _Part:
        """What prepares and runs a part."""
        return _KINDS[part.kind](self, part)

    def feeds(self, feeds: Mapping[str, NDArray[Any]], *names: str) -> dict[str, Any]:
        """Some of ``feeds`` as tensors in host memory."""
        import torch

        chosen = choose_inputs(feeds, {name: _TYPES[name] for name in names}, where=self._where)
        return {name: torch.from_numpy(array) for name, array in chosen.items()}


class _Part(abc.ABC):
    """A part of an encoder-decoder that is loaded: what an ``Engine`` prepares and runs."""

    output = "logits"

    def __init__(self, engine: TorchGenerator, part: Part) -> None:
        self.engine, self.part = engine, part

    @abc.abstractmethod
    def prepare(self, feeds: Mapping[str, NDArray[Any]]) -> Any:
        """What the part starts from, ahead of the clock."""

    def run(self, prepared: Any) -> dict[str, NDArray[Any]]:
        """What comes out, in host memory; the device is finished."""
        import torch

        with torch.inference_mode():
            return {self.output: self.compute(prepared).cpu().numpy()}

    @abc.abstractmethod
    def compute(self, prepared: Any) -> Any:
        """The same as a tensor, on the device."""

    def on_device(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        return {name: tensor.to(self.engine.device) for name, tensor in tensors.items()}

    def encode(self, tensors: Mapping[str, Any]) -> Any:
        """States (B, T, D) of tensors on the device."""
        encoder = self.engine.module.get_encoder()
        return encoder(input_ids=tensors["input_ids"], attention_mask=tensors["attention_mask"])[0]


class _Generate(_Part):
    output = "sequences"

    def __init__(self, engine: TorchGenerator, part: Part) -> None:
        super().__init__(engine, part)
        self._settings = search_settings(engine.variant, engine.module.config, part)

    def prepare(self, feeds: Mapping[str, NDArray[Any]]) -> Any:
        return self.engine.feeds(feeds, "input_ids", "attention_mask")

    def compute(self, prepared: Any) -> Any:
        return self.engine.module.generate(**self.on_device(prepared), generation_config=self._settings)


class _Encoder(_Part):
    output = "last_hidden_state"

    def prepare(self, feeds: Mapping[str, NDArray[Any]]) -> Any:
        return self.engine.feeds(feeds, "input_ids", "attention_mask")

    def compute(self, prepared: Any) -> Any:
        return self.encode(self.on_device(prepared))


class _FirstStep(_Part):
    def prepare(self, feeds: Mapping[str, NDArray[Any]]) -> Any:
        import torch

        tensors = self.engine.feeds(feeds, *_TYPES)
        with torch.no_grad():
            states = self.encode(self.on_device(tensors)).cpu()
        return {"tokens": tensors[DECODER_TOKENS][:, :1], "states": states, "mask": tensors["attention_mask"]}

    def compute(self, prepared: Any) -> Any:
        given = self.on_device(prepared)
        return self.engine.module(
            encoder_outputs=(given["states"],),
            attention_mask=given["mask"],
            decoder_input_ids=given["tokens"],
            use_cache=True,
        ).logits


class _Step(_Part):
    def prepare(self, feeds: Mapping[str, NDArray[Any]]) -> Any:
        import torch

        past = self.part.past or 0
        tensors = self.on_device(self.engine.feeds(feeds, *_TYPES))
        tokens, mask = tensors[DECODER_TOKENS], tensors["attention_mask"]
        with torch.no_grad():
            states = self.encode(tensors)
            before = self.engine.module(
                encoder_outputs=(states,), attention_mask=mask, decoder_input_ids=tokens[:, :past], use_cache=True
            )
        return {"token": tokens[:, past : past + 1].cpu(), "mask": mask, "states": states}, before.past_key_values

    def compute(self, prepared: Any) -> Any:
        given, cache = prepared
        logits = self.engine.module(
            encoder_outputs=(given["states"],),
            attention_mask=given["mask"],
            decoder_input_ids=given["token"].to(self.engine.device),
            past_key_values=cache,
            use_cache=True,
        ).logits
        cache.self_attention_cache.crop(-1)  # the next call finds the cache as this one did; copies nothing
        return logits


_KINDS: Mapping[str, type[_Part]] = {
    "generate": _Generate,
    "encoder": _Encoder,
    "first step": _FirstStep,
    "step": _Step,
}
