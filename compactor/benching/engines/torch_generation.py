"""PyTorch: the stock model of an encoder-decoder, its masks folded in, and what its own ``generate`` makes of it.

Options: ``generation``, see ``generating.py``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compactor.benching.engines.feeding import check_options, choose_inputs
from compactor.benching.engines.generating import OPTION, Runner, search_settings
from compactor.benching.engines.torch import choose_device, describe_module, set_threads, set_wait_policy
from compactor.benching.parts import DECODER_TOKENS
from compactor.benching.plan import Part, Variant

_SOURCE = ("input_ids", "attention_mask")


class TorchGenerator:
    """An encoder-decoder in PyTorch, in float32; ``part`` gives what is run of it.

    Attributes:
        module: The model itself.
    """

    def __init__(self, variant: Variant, *, threads: int, spinning: bool) -> None:
        check_options(variant.options, (OPTION,), where=variant.name)
        set_wait_policy(spinning=spinning)
        import torch

        from compactor.checkpoint import read_checkpoint
        from compactor.importing.encoder_decoder import load_encoder_decoder
        from compactor.tasks import GENERATION, TASKS

        self._device = choose_device(variant.provider)
        set_threads(threads)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        self._variant, self._where = variant, str(variant.path)
        self.module = load_encoder_decoder(read_checkpoint(variant.path), TASKS[GENERATION]).module.to(self._device)
        self.environment = describe_module(self.module, self._device, dtype="float32", tf32=False)

    def part(self, part: Part) -> Runner:
        """What prepares and runs a part."""
        match part.kind:
            case "generate":
                settings = search_settings(self._variant, self.module.config, part)
                return self._runner("sequences", self._source, functools.partial(self._generate, settings))
            case "encoder":
                return self._runner("last_hidden_state", self._source, lambda given: self._encode(self._move(given)))
            case "first step":
                return self._runner("logits", self._before_first, self._first_step)
            case "step":
                return self._runner("logits", functools.partial(self._before_step, part.past or 0), self._step)

    def _runner(self, output: str, prepare: Callable[..., Any], compute: Callable[[Any], Any]) -> Runner:
        """``compute`` gives a tensor on the device."""
        import torch

        def run(prepared: Any) -> dict[str, NDArray[Any]]:
            with torch.inference_mode():
                return {output: compute(prepared).cpu().numpy()}

        return Runner(prepare, run)

    def _feeds(self, feeds: Mapping[str, NDArray[Any]], *names: str) -> dict[str, Any]:
        """Some of ``feeds`` as tensors in host memory."""
        import torch

        chosen = choose_inputs(feeds, dict.fromkeys(names, np.int64), where=self._where)
        return {name: torch.from_numpy(array) for name, array in chosen.items()}

    def _source(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
        return self._feeds(feeds, *_SOURCE)

    def _move(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """The same on the device."""
        return {name: tensor.to(self._device) for name, tensor in tensors.items()}

    def _encode(self, tensors: Mapping[str, Any]) -> Any:
        """States (B, T, D) of tensors on the device."""
        encoder = self.module.get_encoder()
        return encoder(input_ids=tensors["input_ids"], attention_mask=tensors["attention_mask"])[0]

    def _decode(self, states: Any, mask: Any, tokens: Any, **cached: Any) -> Any:
        return self.module(
            encoder_outputs=(states,), attention_mask=mask, decoder_input_ids=tokens, use_cache=True, **cached
        )

    def _generate(self, settings: Any, prepared: Any) -> Any:
        return self.module.generate(**self._move(prepared), generation_config=settings)

    def _before_first(self, feeds: Mapping[str, NDArray[Any]]) -> Any:
        import torch

        tensors = self._feeds(feeds, *_SOURCE, DECODER_TOKENS)
        with torch.no_grad():
            states = self._encode(self._move(tensors)).cpu()
        return {"tokens": tensors[DECODER_TOKENS][:, :1], "states": states, "mask": tensors["attention_mask"]}

    def _first_step(self, prepared: Any) -> Any:
        return self._decode(**self._move(prepared)).logits

    def _before_step(self, past: int, feeds: Mapping[str, NDArray[Any]]) -> Any:
        import torch

        tensors = self._move(self._feeds(feeds, *_SOURCE, DECODER_TOKENS))
        tokens, mask = tensors[DECODER_TOKENS], tensors["attention_mask"]
        with torch.no_grad():
            states = self._encode(tensors)
            before = self._decode(states, mask, tokens[:, :past])
        return states, mask, tokens[:, past : past + 1].cpu(), before.past_key_values

    def _step(self, prepared: Any) -> Any:
        states, mask, token, cache = prepared
        logits = self._decode(states, mask, token.to(self._device), past_key_values=cache).logits
        cache.self_attention_cache.crop(-1)  # the next call finds the cache as this one did; copies nothing
        return logits
