"""Run the graphs of an encoder-decoder: encode once, decode a first step, then one token at a time.

    encoder_model             input_ids, attention_mask                             -> last_hidden_state
    decoder_model             input_ids (R, S), encoder_hidden_states, its mask     -> logits, present.*
    decoder_with_past_model   input_ids (R, 1), the mask, past_key_values.*         -> logits, present.*.decoder.*

The last two may be one, ``decoder_model_merged``, which is told by ``use_cache_branch`` which of them it is to be.

What comes out as ``present.3.decoder.key`` goes into the next step as ``past_key_values.3.decoder.key``. Every layer
has its own head count and widths, and some have no attention at all: which caches there are, the sessions say. Caches
stay where the session computes them, and are not copied on the way from one step to the next.

The keys and values of cross-attention (``.encoder.``) are made by the first step and used by all: R rows may share G
encoded sequences, R/G rows each, such as the beams of one text.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from .sessions import open_with_options, session_options

ENCODER, FIRST, NEXT = "encoder_model", "decoder_model", "decoder_with_past_model"
MERGED = "decoder_model_merged"
SWITCH = "use_cache_branch"
"""The input (1,) of a merged decoder, bool: whether it takes a step after others."""

SUFFIXES: Mapping[str, str] = {"fp32": "", "int8": "_quantized", "fp16": "_fp16"}

_PAST, _PRESENT = "past_key_values.", "present."
_STATES = "encoder_hidden_states"
_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


@dataclasses.dataclass(frozen=True)
class Caches:
    """Keys and values after some tokens, as ``OrtValue`` by the name under which the next step takes them.

    Attributes:
        own: Of self-attention, (R, H, tokens, d): they grow by a token a step, and belong to their rows.
        shared: Of cross-attention, (G, H, encoder tokens, d).
        length: Tokens decoded so far.
    """

    own: Mapping[str, Any]
    shared: Mapping[str, Any]
    length: int

    def reorder(self, take: Callable[[Any], Any]) -> Caches:
        """Caches for other rows: ``take`` maps each ``OrtValue`` of ``own``. Rows keep their encoded sequence."""
        return dataclasses.replace(self, own={name: take(value) for name, value in self.own.items()})


def graph_path(folder: str | Path, graph: str, precision: str) -> Path:
    """Where a graph of an artefact lies, in ``onnx/`` or beside ``config.json``.

    Args:
        folder: The artefact.
        graph: ``encoder_model``, ``decoder_model``, ``decoder_with_past_model`` or ``decoder_model_merged``.
        precision: ``fp32``, ``int8`` or ``fp16``.

    Raises:
        FileNotFoundError: It has no such graph.
    """
    name = f"{graph}{SUFFIXES[precision]}.onnx"
    for path in (Path(folder) / "onnx" / name, Path(folder) / name):
        if path.is_file():
            return path
    raise FileNotFoundError(f"there is no '{name}' in '{folder}' or in its folder 'onnx'")


def decoder_paths(folder: str | Path, precision: str) -> dict[str, Path]:
    """Where the graphs of an artefact's decoder lie, by name: the two, or else the merged one.

    Raises:
        FileNotFoundError: It has neither.
    """
    try:
        return {graph: graph_path(folder, graph, precision) for graph in (FIRST, NEXT)}
    except FileNotFoundError:
        with contextlib.suppress(FileNotFoundError):
            return {MERGED: graph_path(folder, MERGED, precision)}
        raise


def is_merged(session: Any) -> bool:
    """Whether a decoder's session is that of ``decoder_model_merged``."""
    return any(entry.name == SWITCH for entry in session.get_inputs())


class CachedDecoder:
    """A decoder's two graphs, or the one that is both.

    Args:
        first: Session of ``decoder_model``, or of ``decoder_model_merged``.
        following: Session of ``decoder_with_past_model``; None where ``first`` is merged.
        device: ONNX Runtime's name of the memory that caches stay in: ``"cpu"`` or ``"cuda"``.

    Raises:
        ValueError: The two do not agree on a cache, being of different models, or one is missing.
    """

    def __init__(self, first: Any, following: Any = None, *, device: str = "cpu") -> None:
        if (following is None) != is_merged(first):
            raise ValueError("a decoder is one merged graph, or a first step's and every next one's")
        self._for_first: dict[str, Any] = {}  # what a merged graph wants to be given, and does not look at
        self._for_next: dict[str, Any] = {}
        if following is None:
            following = first
            self._for_first[SWITCH], self._for_next[SWITCH] = np.array([False]), np.array([True])
            for entry in first.get_inputs():
                if entry.name.startswith(_PAST):
                    self._for_first[entry.name] = np.zeros((1, 1, 0, 1), _TYPES[entry.type])
                elif entry.name == _STATES:
                    self._for_next[_STATES] = np.zeros((1, 1, entry.shape[2]), _TYPES[entry.type])
        self.first, self.following, self.device = first, following, device
        self.cache_shapes = {
            entry.name: tuple(entry.shape) for entry in following.get_inputs() if entry.name.startswith(_PAST)
        }
        made = {_as_past(entry.name): tuple(entry.shape) for entry in first.get_outputs() if _is_present(entry.name)}
        if set(made) != set(self.cache_shapes):
            raise ValueError(f"only one of the decoder's graphs has {sorted(set(made) ^ set(self.cache_shapes))}")
        for name, shape in self.cache_shapes.items():
            if not self._for_next and (shape[1], shape[3]) != (made[name][1], made[name][3]):
                raise ValueError(f"'{name}' is {shape} in one of the decoder's graphs and {made[name]} in the other")

    @classmethod
    def open(cls, folder: str | Path, *, precision: str = "fp32", provider: str = "cpu", **options: Any) -> Self:
        """Open an artefact's decoder. ``options`` are those of ``open_in_turn``."""
        paths = decoder_paths(folder, precision).values()
        sessions = [open_in_turn(path, provider=provider, **options) for path in paths]
        return cls(*sessions, device="cpu" if provider == "cpu" else "cuda")

    def start(self, tokens: NDArray[Any], states: Any, mask: NDArray[Any]) -> tuple[Any, Caches]:
        """The first step.

        Args:
            tokens: (R, S) int64.
            states: (G, T, D) float: what the encoder gave, an array or an ``OrtValue``. G divides R.
            mask: (G, T) int64: 1 where the encoder's token is real.

        Returns:
            Logits (R, S, V) as an ``OrtValue``, and the caches.
        """
        feeds = {"input_ids": tokens, _STATES: states, "encoder_attention_mask": mask}
        outputs = run_on(self.first, feeds | self._for_first, self.device)
        caches = {_as_past(name): value for name, value in outputs.items() if _is_present(name)}
        own = {name: value for name, value in caches.items() if ".decoder." in name}
        shared = {name: value for name, value in caches.items() if ".encoder." in name}
        return outputs["logits"], Caches(own, shared, tokens.shape[1])

    def step(self, tokens: NDArray[Any], mask: NDArray[Any], caches: Caches) -> tuple[Any, Caches]:
        """One more token for each row: tokens (R, 1), logits (R, 1, V)."""
        feeds = {"input_ids": tokens, "encoder_attention_mask": mask, **caches.own, **caches.shared}
        outputs = run_on(self.following, feeds | self._for_next, self.device)
        own = {_as_past(name): value for name, value in outputs.items() if _as_past(name) in caches.own}
        return outputs["logits"], Caches(own, caches.shared, caches.length + 1)

    def decode(self, tokens: NDArray[Any], states: Any, mask: NDArray[Any], *, prompt: int = 1) -> NDArray[np.float32]:
        """Logits (R, S, V) of known ``tokens`` (R, S): ``prompt`` of them in the first step, then one by one."""
        logits, caches = self.start(tokens[:, :prompt], states, mask)
        pieces = [logits.numpy()]
        for place in range(prompt, tokens.shape[1]):
            logits, caches = self.step(tokens[:, place : place + 1], mask, caches)
            pieces.append(logits.numpy())
        return np.concatenate(pieces, axis=1)


def open_in_turn(
    path: str | Path, *, provider: str = "cpu", provider_options: Mapping[str, str] | None = None, **options: Any
) -> Any:
    """Open a session that takes turns with others: its threads rest as soon as a run has ended.

    They would go on waiting busily, on cores that the next session's threads are about to use.

    Args:
        path: The graph.
        provider: As of ``open_session``.
        provider_options: Likewise.
        **options: Those of ``session_options``.

    Raises:
        ProviderUnavailableError: The provider is not installed, or does not start.
    """
    chosen = session_options(**options)
    chosen.add_session_config_entry("session.force_spinning_stop", "1")
    return open_with_options(path, chosen, provider=provider, provider_options=provider_options)


def run_on(session: Any, feeds: Mapping[str, Any], device: str) -> dict[str, Any]:
    """The outputs of ``session`` as ``OrtValue`` by name, left in the memory of ``device``.

    Args:
        session: An ``onnxruntime.InferenceSession``.
        feeds: C-contiguous arrays or ``OrtValue``; those that the graph has no input for are left out.
        device: ``"cpu"`` or ``"cuda"``.
    """
    import onnxruntime

    wanted = {entry.name for entry in session.get_inputs()}
    values = {
        name: feed if isinstance(feed, onnxruntime.OrtValue) else onnxruntime.OrtValue.ortvalue_from_numpy(feed)
        for name, feed in feeds.items()
        if name in wanted
    }
    names = [entry.name for entry in session.get_outputs()]
    if device == "cpu":
        return dict(zip(names, session.run_with_ort_values(names, values), strict=True))
    binding = session.io_binding()
    for name, value in values.items():
        binding.bind_ortvalue_input(name, value)
    for name in names:
        binding.bind_output(name, "cpu" if name == "logits" else device)
    session.run_with_iobinding(binding)
    return dict(zip(names, binding.get_outputs(), strict=True))


def _is_present(name: str) -> bool:
    return name.startswith(_PRESENT)


def _as_past(name: str) -> str:
    return _PAST + name.removeprefix(_PRESENT)
