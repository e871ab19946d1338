"""ONNX Runtime: the three graphs of an encoder-decoder, and what is generated with them.

Caches stay with the session from step to step (``compactor.runtime.decoding``), and text is searched for by
transformers' ``generate`` over the sessions (``compactor.runtime.generation``): what a user of the artefact runs.

Options: ``generation``, see ``searching.py``.
"""

from __future__ import annotations

import abc
import functools
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compactor.benching.engines.feeding import check_options, choose_inputs
from compactor.benching.engines.ort import open_graph, provider_options
from compactor.benching.engines.searching import OPTION, search_settings
from compactor.benching.engines.torch import set_threads
from compactor.benching.parts import DECODER_TOKENS
from compactor.benching.plan import Part, Variant
from compactor.errors import ModelDirectoryError
from compactor.runtime.decoding import ENCODER, FIRST, NEXT, CachedDecoder, graph_path, run_on
from compactor.runtime.providers import Provider, cuda_device_names, installed_runtimes

_SOURCE = {"input_ids": np.int64, "attention_mask": np.int64}
_TOKENS = {**_SOURCE, DECODER_TOKENS: np.int64}

Open = Callable[[Path], Any]


def graph_files(variant: Variant) -> dict[str, Path]:
    """The files of the three graphs, by name.

    Raises:
        ModelDirectoryError: One is missing.
    """
    try:
        return {graph: graph_path(variant.path, graph, variant.precision) for graph in (ENCODER, FIRST, NEXT)}
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

    input_names: tuple[str, ...] = tuple(_SOURCE)

    def __init__(self, variant: Variant, *, threads: int, spinning: bool, open_with: Open | None = None) -> None:
        check_options(variant.options, (OPTION,), where=variant.name)
        if not spinning and "torch" not in sys.modules:
            os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # as the PyTorch engine
        import onnxruntime
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
        self._device = "cuda" if provider.needs_gpu else "cpu"
        try:
            self._decoder = CachedDecoder(self.sessions[FIRST], self.sessions[NEXT], device=self._device)
        except ValueError as error:
            raise ModelDirectoryError(str(error), where=self._where) from error
        settings = transformers.GenerationConfig.from_model_config(config)
        self._model = EncoderDecoder(self.sessions[ENCODER], self._decoder, config, settings)
        self.environment: dict[str, Any] = {
            "onnxruntime": onnxruntime.__version__,
            "distributions": installed_runtimes(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "providers": list(self.sessions[ENCODER].get_providers()),
            "threads": threads,
            "spinning": spinning,
        }
        if provider.needs_gpu:
            device = dict(enumerate(cuda_device_names())).get(0, "unknown")
            self.environment |= {"device": device, "provider_options": options}

    def part(self, part: Part) -> _Part:
        """What prepares and runs a part."""
        return _KINDS[part.kind](self, part)

    # What the parts are made of

    def source(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Token ids (B, T) and their mask."""
        return choose_inputs(feeds, _SOURCE, where=self._where)

    def target(self, feeds: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """Tokens (B, N) that the decoder is fed with."""
        return choose_inputs(feeds, _TOKENS, where=self._where)[DECODER_TOKENS]

    def encode(self, source: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """States (B, T, D)."""
        states: NDArray[Any] = run_on(self.sessions[ENCODER], source, "cpu")["last_hidden_state"].numpy()
        return states

    @property
    def decoder(self) -> CachedDecoder:
        """The two graphs of the decoder."""
        return self._decoder

    def generate(self, source: Mapping[str, Any], settings: Any) -> NDArray[Any]:
        """Tokens (B, 1 + new), as ``generate`` gives them."""
        tokens: NDArray[Any] = self._model.generate(**source, generation_config=settings).numpy()
        return tokens

    def settings(self, part: Part) -> Any:
        """How to search."""
        return search_settings(self._variant, self._model.config, part)


class _Part(abc.ABC):
    """A part of an encoder-decoder that is loaded: what an ``Engine`` prepares and runs."""

    def __init__(self, engine: OrtGenerator, part: Part) -> None:
        self.engine, self.part = engine, part

    @abc.abstractmethod
    def prepare(self, feeds: Mapping[str, NDArray[Any]]) -> Any:
        """What the part starts from, ahead of the clock."""

    @abc.abstractmethod
    def run(self, prepared: Any) -> dict[str, NDArray[Any]]:
        """What comes out, in host memory."""


class _Generate(_Part):
    def __init__(self, engine: OrtGenerator, part: Part) -> None:
        super().__init__(engine, part)
        self._settings = engine.settings(part)

    def prepare(self, feeds: Mapping[str, NDArray[Any]]) -> Any:
        import torch

        return {name: torch.from_numpy(array) for name, array in self.engine.source(feeds).items()}

    def run(self, prepared: Any) -> dict[str, NDArray[Any]]:
        return {"sequences": self.engine.generate(prepared, self._settings)}


class _Encoder(_Part):
    def prepare(self, feeds: Mapping[str, NDArray[Any]]) -> Any:
        return self.engine.source(feeds)

    def run(self, prepared: Any) -> dict[str, NDArray[Any]]:
        return {"last_hidden_state": self.engine.encode(prepared)}


class _FirstStep(_Part):
    def prepare(self, feeds: Mapping[str, NDArray[Any]]) -> Any:
        source = self.engine.source(feeds)
        tokens = np.ascontiguousarray(self.engine.target(feeds)[:, :1])
        return tokens, self.engine.encode(source), source["attention_mask"]

    def run(self, prepared: Any) -> dict[str, NDArray[Any]]:
        logits, _ = self.engine.decoder.start(*prepared)
        return {"logits": logits.numpy()}


class _Step(_Part):
    def prepare(self, feeds: Mapping[str, NDArray[Any]]) -> Any:
        source, tokens, past = self.engine.source(feeds), self.engine.target(feeds), self.part.past or 0
        before, now = (np.ascontiguousarray(piece) for piece in (tokens[:, :past], tokens[:, past : past + 1]))
        _, caches = self.engine.decoder.start(before, self.engine.encode(source), source["attention_mask"])
        return now, source["attention_mask"], caches

    def run(self, prepared: Any) -> dict[str, NDArray[Any]]:
        logits, _ = self.engine.decoder.step(*prepared)  # makes new caches, and leaves these as they are
        return {"logits": logits.numpy()}


_KINDS: Mapping[str, type[_Part]] = {
    "generate": _Generate,
    "encoder": _Encoder,
    "first step": _FirstStep,
    "step": _Step,
}


def _config(folder: Path) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers raises what it likes for a damaged config
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise ModelDirectoryError(f"transformers rejects config.json: {reason}", where=str(folder)) from error
