"""What was asked of ``compactor bench``."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from compactor.benching.plan import Scenario
from compactor.benching.server.urls import Url


@dataclasses.dataclass(frozen=True)
class Request:
    """The arguments of ``bench`` that say what to measure; see there."""

    targets: Sequence[Path]
    urls: Sequence[Url] = ()
    baseline: Path | None = None
    providers: Sequence[str] = ("cpu",)
    threads: int | None = None
    batches: Sequence[int] | None = None
    seqs: Sequence[int] | None = None
    lengths: Path | None = None
    data: Path | None = None
    scenario: Scenario = "single"
    qps: float | None = None
    duration_s: float | None = None
    bound_ms: float | None = None
    metric: str | None = None
    rounds: int | None = None
    quick: bool = False
    seed: int = 17
    affinity: Sequence[int] | None = None
    spinning: bool = True
    profile: bool = False
    profile_layers: bool = False
    new_tokens: int | None = None
    pasts: Sequence[int] | None = None
    beams: Sequence[int] | None = None
