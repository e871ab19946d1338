"""What is to be measured: the variants, the inputs, and how long."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from compactor.runtime.sampling import Clock

Scenario = Literal["single", "offline", "server"]
EngineName = Literal["onnxruntime", "openvino", "torch", "ctranslate2", "http"]
ProviderName = Literal["cpu", "cuda", "tensorrt", "openvino", "torch", "remote"]
Kind = Literal["generate", "encoder", "first step", "step"]


@dataclasses.dataclass(frozen=True)
class Variant:
    """One way to run the model: a row of the report.

    Attributes:
        id: Unique within a report; letters, digits, dots and dashes.
        name: For tables.
        target: The TARGET it came from, as the user gave it.
        engine: What runs it; ``http`` is an endpoint that somebody else runs, and ``target`` its URL.
        provider: Where that runs it; of an endpoint ``remote``.
        precision: ``fp32``, ``fp16``, ``bf16`` or ``int8``; of an endpoint ``unknown``.
        path: The graph's file, or the model directory that PyTorch loads; of an encoder-decoder's graphs, their folder.
            Means nothing for an endpoint.
        options: The engine's own: ``{"compile": True}`` for PyTorch, properties for OpenVINO.
        reason: Why it cannot run here, ``not run: no CUDA device``; None where it can.
        generates: Whether it is an encoder-decoder, whose cases each run a ``Part`` of it.
    """

    id: str
    name: str
    target: str
    engine: EngineName
    provider: ProviderName
    precision: str
    path: Path
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    reason: str | None = None
    generates: bool = False

    @property
    def is_endpoint(self) -> bool:
        """Whether somebody else runs it, and requests are sent to it."""
        return self.engine == "http"

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return dataclasses.asdict(self) | {"path": str(self.path)}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Variant:
        """The variant that ``to_json`` wrote."""
        return cls(**{**fields, "path": Path(fields["path"])})


@dataclasses.dataclass(frozen=True)
class Part:
    """What a case runs of an encoder-decoder.

    Attributes:
        kind: ``generate``: the whole way from source to written tokens. ``encoder``: the source alone. ``first step``:
            the decoder's first token, with the keys and values of cross-attention. ``step``: one more token.
        past: Of a step: tokens decoded before it, whose keys and values are cached; else None.
        new_tokens: Of ``generate``: how many each example gets, no less and no more.
        beams: Of ``generate``: 1 is greedy search; None is the model's own setting.
        may_end: Of ``generate``: whether a text may end before it has ``new_tokens``, as it does in use.
    """

    kind: Kind
    past: int | None = None
    new_tokens: int | None = None
    beams: int | None = None
    may_end: bool = False

    @property
    def words(self) -> str:
        """For the case's id: ``step after 16 tokens``, ``generate 32 tokens with 4 beams``."""
        if self.kind == "step":
            return f"step after {self.past} tokens"
        if self.kind == "generate":
            return f"generate {self.new_tokens} tokens with {self.beams} beam{'s' * (self.beams != 1)}"
        return self.kind


@dataclasses.dataclass(frozen=True)
class Case:
    """Inputs to time: one or more batches, each a ``.npz`` with every input that some variant may want.

    Attributes:
        id: ``8x128``, or ``batch 32, bucketed``; unique within a workload.
        batch: Examples in a batch; the last may have fewer.
        seq: Tokens in each example with padding; None where lengths are those of real text.
        files: The batches, in order.
        examples: In all batches together.
        tokens: Real tokens in all batches together; of a part that decodes, those it writes.
        positions: Tokens with padding.
        bucketed: Whether examples of like length were put together; None where it makes no difference.
        part: What of an encoder-decoder is run; None runs a model with one graph.
    """

    id: str
    batch: int
    seq: int | None
    files: Sequence[Path]
    examples: int
    tokens: int
    positions: int
    bucketed: bool | None = None
    part: Part | None = None


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to measure.

    Attributes:
        scenario: ``single`` (one request after the other), ``offline`` (all at once) or ``server`` (Poisson arrivals).
        threads: Of each variant.
        threads_reason: Why that many.
        affinity: Logical CPUs that the processes are pinned to; None leaves that to the system.
        spinning: Let idle threads wait busily, as ONNX Runtime does by default.
        rounds: How often each variant is started anew.
        clock: How long to warm up and to sample, in each process and for each case.
        seed: Of the inputs, the arrivals and the bootstrap.
        quick: Whether the rounds and the clock were cut down.
    """

    scenario: Scenario
    threads: int
    threads_reason: str
    affinity: Sequence[int] | None
    spinning: bool
    rounds: int
    clock: Clock
    seed: int
    quick: bool
