"""ONNX Runtime: the graphs of an encoder-decoder, and what is generated with them.

Caches stay with the session from step to step (``compactor.runtime.decoding``), and text is searched for by
transformers' ``generate`` over the sessions (``compactor.runtime.generation``): what a user of the artefact runs.

Options: ``generation``, see ``generating.py``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compactor.benching.engines.feeding import check_options, choose_inputs
from compactor.benching.engines.generating import OPTION, Runner, search_settings
from compactor.benching.engines.ort import describe_session, device_name, open_graph, provider_options
from compactor.benching.engines.torch import set_threads, set_wait_policy
from compactor.benching.parts import DECODER_TOKENS
from compactor.benching.plan import Part, Variant
from compactor.errors import ModelDirectoryError
from compactor.runtime.decoding import ENCODER, CachedDecoder, decoder_paths, graph_path, run_on
from compactor.runtime.providers import Provider

_SOURCE = {"input_ids": np.int64, "attention_mask": np.int64}


def graph_files(variant: Variant) -> dict[str, Path]:
    """The files of its graphs, by name: the encoder first.

    Raises:
        ModelDirectoryError: One is missing.
    """
    try:
        encoder = graph_path(variant.path, ENCODER, variant.precision)
        return {ENCODER: encoder, **decoder_paths(variant.path, variant.precision)}
    except FileNotFoundError as error:
        raise ModelDirectoryError(str(error)) from error


class OrtGenerator:
    """An encoder-decoder in ONNX Runtime; ``part`` gives what is run of it.

    Args:
        variant: Its ``path`` is the artefact.
        threads: Threads of one operator, in ONNX Runtime and in PyTorch, which ranks the tokens.
        spinning: Let idle threads wait busily.
        open_with: What opens a graph, in place of ``open_session``; it hears nothing of ``threads`` and ``spinning``.

    Attributes:
        sessions: By the graph's name.
    """

    def __init__(
        self, variant: Variant, *, threads: int, spinning: bool, open_with: Callable[[Path], Any] | None = None
    ) -> None:
        check_options(variant.options, (OPTION,), where=variant.name)
        set_wait_policy(spinning=spinning)
        import onnxruntime  # noqa: F401  # ahead of PyTorch, which brings CUDA libraries of its own
        import torch
        import transformers

        from compactor.runtime.generation import EncoderDecoder

        set_threads(threads)
        provider = Provider(variant.provider)
        options = provider_options(provider, variant)
        opener = open_with or functools.partial(
            open_graph, provider=provider, options=options, threads=threads, spinning=spinning, in_turn=True
        )
        config = _config(variant.path)
        self._variant, self._where = variant, str(variant.path)
        self.sessions = {graph: opener(path) for graph, path in graph_files(variant).items()}
        device = "cuda" if provider.needs_gpu else "cpu"
        try:
            decoders = (session for graph, session in self.sessions.items() if graph != ENCODER)
            self._decoder = CachedDecoder(*decoders, device=device)
        except ValueError as error:
            raise ModelDirectoryError(str(error), where=self._where) from error
        settings = transformers.GenerationConfig.from_model_config(config)
        self._model = EncoderDecoder(self.sessions[ENCODER], self._decoder, config, settings)
        others = {"torch": torch.__version__, "transformers": transformers.__version__}
        self.environment = describe_session(self.sessions[ENCODER], threads, spinning, others)
        if provider.needs_gpu:
            self.environment |= {"device": device_name(0), "provider_options": options}

    def part(self, part: Part) -> Runner:
        """What prepares and runs a part."""
        match part.kind:
            case "generate":
                settings = search_settings(self._variant, self._model.config, part)
                return Runner(self._tensors, functools.partial(self._generate, settings))
            case "encoder":
                return Runner(self._source, lambda source: {"last_hidden_state": self._encode(source)})
            case "first step":
                return Runner(self._before_first, functools.partial(_logits, self._decoder.start))
            case "step":  # which makes new caches, and leaves those that it was given as they are
                prepare = functools.partial(self._before_step, part.past or 0)
                return Runner(prepare, functools.partial(_logits, self._decoder.step))

    def _source(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Token ids (B, T) and their mask."""
        return choose_inputs(feeds, _SOURCE, where=self._where)

    def _target(self, feeds: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """Tokens (B, N) that the decoder is fed with."""
        return choose_inputs(feeds, {**_SOURCE, DECODER_TOKENS: np.int64}, where=self._where)[DECODER_TOKENS]

    def _encode(self, source: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """States (B, T, D)."""
        states: NDArray[Any] = run_on(self.sessions[ENCODER], source, "cpu")["last_hidden_state"].numpy()
        return states

    def _tensors(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
        import torch

        return {name: torch.from_numpy(array) for name, array in self._source(feeds).items()}

    def _generate(self, settings: Any, source: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
        """Tokens (B, 1 + new), as ``generate`` gives them."""
        return {"sequences": self._model.generate(**source, generation_config=settings).numpy()}

    def _before_first(self, feeds: Mapping[str, NDArray[Any]]) -> Any:
        source = self._source(feeds)
        tokens = np.ascontiguousarray(self._target(feeds)[:, :1])
        return tokens, self._encode(source), source["attention_mask"]

    def _before_step(self, past: int, feeds: Mapping[str, NDArray[Any]]) -> Any:
        source, tokens = self._source(feeds), self._target(feeds)
        before, now = (np.ascontiguousarray(piece) for piece in (tokens[:, :past], tokens[:, past : past + 1]))
        _, caches = self._decoder.start(before, self._encode(source), source["attention_mask"])
        return now, source["attention_mask"], caches


def _logits(decode: Callable[..., Any], prepared: Any) -> dict[str, NDArray[Any]]:
    logits, _ = decode(*prepared)
    return {"logits": logits.numpy()}


def _config(folder: Path) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers raises what it likes for a damaged config
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise ModelDirectoryError(f"transformers rejects config.json: {reason}", where=str(folder)) from error
