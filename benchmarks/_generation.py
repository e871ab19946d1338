"""Time an encoder-decoder in a process of its own: one forward pass, a whole generation, and the parts of that.

    forward     the encoder, and the decoder once over tokens that are given (teacher forcing): what the paper measures
    generate    the encoder, and as many new tokens as asked for, by transformers' ``generate``

The parts of a generation are those that ``generate`` calls: encoder, first step, next steps, reordering of caches.
The rest is its own: scores of all tokens, the best beams, bookkeeping.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from benchmarks import _graphs
from benchmarks._workshop import Arrays, read_arrays
from compactor.benching.plan import Settings
from compactor.runtime.profiling import NodeEvent, profile_session
from compactor.runtime.sampling import Clock, peak_memory_bytes, sample

FORWARD, GENERATE = "forward", "generate"
ENCODER, FIRST_STEP, NEXT_STEPS, REORDERING, REST = "encoder", "first step", "next steps", "reordering", "the rest"
PARTS = (ENCODER, FIRST_STEP, NEXT_STEPS, REORDERING, REST)
HEAD = "lm_head"
_KIND = re.compile(r"layers\.\d+\.(\w+)/")
_PROFILED_RUNS = 20
_SPLIT_RUNS = 2

Ids = NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class Workload:
    """What is asked of a model.

    Attributes:
        source: Tokens of the one input.
        tokens: New tokens of a generation, and those that the forward pass is given.
        beams: Of the search.
    """

    source: int
    tokens: int
    beams: int

    @property
    def generation(self) -> dict[str, Any]:
        """Arguments of ``generate``: no more and no fewer tokens than asked for, behind the one it starts with."""
        length = 1 + self.tokens
        return {
            "num_beams": self.beams,
            "do_sample": False,
            "early_stopping": False,
            "min_length": length,
            "max_length": length,
        }


class Model:
    """An open encoder-decoder.

    Args:
        engine: ``onnxruntime`` runs an artefact of ``compactor export``; ``torch`` a model directory, eagerly.
        path: Its folder.
        precision: ``fp32`` or ``int8``.
        threads: Of one operator; None leaves PyTorch's as they are.
    """

    def __init__(self, engine: str, path: Path, precision: str = "fp32", threads: int | None = None) -> None:
        import transformers

        self.is_ours = engine == "onnxruntime"
        if self.is_ours:  # the other's process does without these imports
            import onnxruntime

            from compactor.runtime.generation import EncoderDecoder

            self.module: Any = EncoderDecoder.open(path, precision=precision, threads=threads)
            self.environment = {"onnxruntime": onnxruntime.__version__, "transformers": transformers.__version__}
        else:
            import torch

            if threads is not None:
                torch.set_num_threads(threads)
            self.module = _graphs.load_torch(path)
            self.environment = {
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                "threads": torch.get_num_threads(),
                "attention": self.module.config._attn_implementation,
            }

    def forward(self, ids: Ids, targets: Ids) -> NDArray[Any]:
        """Logits (1, S, V) of ``targets`` (1, S) after ``ids`` (1, T), without a cache."""
        import torch

        with torch.inference_mode():
            source, given = torch.from_numpy(ids), torch.from_numpy(targets)
            found = self.module(
                input_ids=source, attention_mask=torch.ones_like(source), decoder_input_ids=given, use_cache=False
            )
            return np.asarray(found.logits.numpy())

    def generate(self, ids: Ids, workload: Workload) -> Ids:
        """The tokens of the best beam, (1, S), by transformers' ``generate``."""
        import torch

        source = torch.from_numpy(ids)
        with torch.inference_mode():
            found = self.module.generate(source, attention_mask=torch.ones_like(source), **workload.generation)
        return np.asarray(found.numpy())

    def calls(self) -> list[tuple[Any, str, str | Callable[..., str]]]:
        """What a generation calls: its owner, its name there, and the part that it is, or what tells that of a call."""
        if self.is_ours:
            from compactor.runtime.generation import CacheOfSessions

            return [
                (type(self.module.encoder), "__call__", ENCODER),
                (self.module.cached, "start", FIRST_STEP),
                (self.module.cached, "step", NEXT_STEPS),
                (CacheOfSessions, "reorder_cache", REORDERING),
            ]
        from transformers.cache_utils import EncoderDecoderCache

        def step(*_: Any, past_key_values: Any = None, **__: Any) -> str:
            return FIRST_STEP if past_key_values is None or not past_key_values.get_seq_length() else NEXT_STEPS

        return [
            (self.module.get_encoder(), "forward", ENCODER),
            (self.module, "forward", step),
            (EncoderDecoderCache, "reorder_cache", REORDERING),
        ]


def measure_variant(
    engine: str, path: Path, precision: str, inputs: Path, workload: Workload, how: Settings, answers: Path | None
) -> dict[str, Any]:
    """One process of one variant, in the form of the harness's worker, and ``parts``: the split of a generation.

    Args:
        engine: ``torch`` or ``onnxruntime``.
        path: Its model.
        precision: ``fp32`` or ``int8``.
        inputs: ``.npz`` of ``ids`` and ``targets``.
        workload: What is asked.
        how: Threads of one operator, and how long to sample ``forward`` and ``generate``.
        answers: Where to leave what it gave; None leaves nothing.
    """
    before = peak_memory_bytes()
    start = time.perf_counter()
    model = Model(engine, path, precision, how.threads)
    load_ms = 1e3 * (time.perf_counter() - start)
    arrays = read_arrays(inputs)
    forward = _time(lambda: model.forward(arrays["ids"], arrays["targets"]), how.clock)
    generate = _time(lambda: model.generate(arrays["ids"], workload), how.clock)
    found = {
        "environment": model.environment,
        "load_ms": round(load_ms, 3),
        "rss_before_bytes": before,
        "peak_rss_bytes": peak_memory_bytes(),
        "cases": {FORWARD: forward, GENERATE: generate},
        "parts": split(model, arrays["ids"], workload),
    }
    if answers is not None:
        write_answers(answers, model, arrays, workload)
    return found


def _time(call: Callable[[], Any], clock: Clock) -> dict[str, Any]:
    start = time.perf_counter()
    call()
    first_ms = 1e3 * (time.perf_counter() - start)
    samples, usage = sample(call, clock)
    return {
        "first_ms": round(first_ms, 4),
        "samples_ms": [round(milliseconds, 4) for milliseconds in samples],
        "usage": usage.to_json(),
    }


def split(model: Model, ids: Ids, workload: Workload) -> dict[str, float]:
    """Milliseconds of each part of a generation, and ``steps``: how many next steps there were."""
    calls: dict[str, list[float]] = {part: [] for part in PARTS}  # how long each took, in seconds

    def timed(call: Callable[..., Any], part: str | Callable[..., str]) -> Callable[..., Any]:
        def timed_call(*args: Any, **kwargs: Any) -> Any:
            name = part if isinstance(part, str) else part(*args, **kwargs)
            start = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                calls[name].append(time.perf_counter() - start)

        return timed_call

    with contextlib.ExitStack() as watched:
        for owner, name, part in model.calls():
            watched.enter_context(mock.patch.object(owner, name, timed(getattr(owner, name), part)))
        start = time.perf_counter()
        for _ in range(_SPLIT_RUNS):
            model.generate(ids, workload)
        total = time.perf_counter() - start
    seconds = {part: sum(each) for part, each in calls.items()}
    seconds[REST] = total - sum(seconds.values())
    found = {part: round(1e3 * seconds[part] / _SPLIT_RUNS, 3) for part in PARTS}
    return found | {"steps": len(calls[NEXT_STEPS]) / _SPLIT_RUNS}


def write_answers(path: Path, model: Model, arrays: Arrays, workload: Workload) -> None:
    """Keep the ``logits`` of the forward pass and the ``tokens`` of the generation."""
    logits = model.forward(arrays["ids"], arrays["targets"])
    np.savez(path, logits=logits, tokens=model.generate(arrays["ids"], workload))


def write_reference(model_dir: Path, path: Path, inputs: Path, workload: Workload) -> None:
    """``write_answers`` of the model as it is, zeros and all, in PyTorch and fp32."""
    write_answers(path, Model("torch", model_dir), read_arrays(inputs), workload)


def profile_step(folder: Path, precision: str, workload: Workload, threads: int) -> dict[str, Any]:
    """Where the time of one step goes, half-way through the generation, by ONNX Runtime's profile.

    Returns:
        ``ms`` of all nodes; ``parts``, milliseconds of each kind of sublayer, of the head and of the rest.
    """
    import onnxruntime

    from compactor.runtime.decoding import NEXT, graph_path
    from compactor.runtime.sessions import open_session

    path = graph_path(folder, NEXT, precision)
    session = open_session(path, threads=threads)
    random = np.random.default_rng(0)
    past = workload.tokens // 2
    feeds: dict[str, NDArray[Any]] = {
        "input_ids": np.full((workload.beams, 1), 7),
        "encoder_attention_mask": np.ones((1, workload.source), dtype=np.int64),
    }
    for entry in session.get_inputs():
        if entry.name not in feeds:
            own = ".decoder." in entry.name
            shape = (workload.beams if own else 1, entry.shape[1], past if own else workload.source, entry.shape[3])
            feeds[entry.name] = random.normal(size=shape).astype(np.float32)
    (logits,) = session.run(["logits"], feeds)
    del session
    profile = profile_session(path, {"step": [feeds]}, runs=_PROFILED_RUNS, warm_up=3, threads=threads)["step"]
    parts: dict[str, float] = collections.defaultdict(float)
    for event in profile.events:
        parts[step_part(event, logits.shape[-1])] += event.time_us / 1e3 / profile.runs
    return {
        "onnxruntime": onnxruntime.__version__,
        "past": past,
        "ms": profile.total_ms,
        "parts": {kind: round(ms, 4) for kind, ms in sorted(parts.items(), key=lambda item: -item[1])},
        "operators": profile.by_operator(),
    }


def step_part(event: NodeEvent, vocabulary: int) -> str:
    """What a node of a step belongs to: a kind of sublayer such as ``cross_attention``, ``lm_head``, or ``other``."""
    if event.outputs and event.outputs[0][1][-1:] == (vocabulary,):
        return HEAD
    found = _KIND.search(event.name)
    return found[1] if found else "other"
