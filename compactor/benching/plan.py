"""What is to be measured: the variants, the inputs, and how long."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from compactor.runtime.sampling import Clock

Scenario = Literal["single", "offline", "server"]
EngineName = Literal["onnxruntime", "openvino", "torch", "ctranslate2"]
ProviderName = Literal["cpu", "cuda", "tensorrt", "openvino", "torch"]


@dataclasses.dataclass(frozen=True)
class Variant:
    """One way to run the model: a row of the report.

    Attributes:
        id: Unique within a report; letters, digits, dots and dashes.
        name: For tables.
        target: The TARGET it came from, as the user gave it.
        engine: What runs it.
        provider: Where that runs it.
        precision: ``fp32``, ``fp16``, ``bf16`` or ``int8``.
        path: The graph's file, or the model directory that PyTorch loads.
        options: The engine's own: ``{"compile": True}`` for PyTorch, properties for OpenVINO.
        reason: Why it cannot run here, ``not run: no CUDA device``; None where it can.
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

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return dataclasses.asdict(self) | {"path": str(self.path)}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Variant:
        """The variant that ``to_json`` wrote."""
        return cls(**{**fields, "path": Path(fields["path"])})


@dataclasses.dataclass(frozen=True)
class Case:
    """Inputs to time: one or more batches, each a ``.npz`` with every input that some variant may want.

    Attributes:
        id: ``8x128``, or ``batch 32, bucketed``; unique within a workload.
        batch: Examples in a batch; the last may have fewer.
        seq: Tokens in each example with padding; None where lengths are those of real text.
        files: The batches, in order.
        examples: In all batches together.
        tokens: Real tokens in all batches together.
        positions: Tokens with padding.
        bucketed: Whether examples of like length were put together; None where it makes no difference.
    """

    id: str
    batch: int
    seq: int | None
    files: Sequence[Path]
    examples: int
    tokens: int
    positions: int
    bucketed: bool | None = None


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
