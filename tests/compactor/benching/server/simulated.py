"""Time that passes only when somebody waits or works, so that a test of a queue takes none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from compactor.benching.server.queueing import Served, poisson_arrivals, serve


class SimulatedTime:
    def __init__(self, start: float = 0.0) -> None:
        self.time = start

    def now(self) -> float:
        return self.time

    def wait_until(self, instant: float) -> None:
        self.time = max(self.time, instant)

    def work(self, seconds: float) -> None:
        self.time += seconds


class SimulatedEngine:
    """An engine whose calls take ``service(batch)`` seconds of simulated time; keeps what it was asked."""

    environment: dict[str, Any]

    def __init__(self, service: Callable[[int], float]) -> None:
        self.environment = {}
        self.time = SimulatedTime()
        self.asked: list[dict[str, np.ndarray]] = []
        self._service = service

    def prepare(self, feeds):
        return {name: feeds[name] for name in ("input_ids", "attention_mask")}

    def run(self, prepared):
        self.asked.append(prepared)
        batch = len(prepared["input_ids"])
        self.time.work(self._service(batch))
        return {"logits": np.zeros((batch, 2), np.float32)}


def play(
    qps: float,
    count: int,
    service: Callable[[int], float],
    *,
    seed: int = 0,
    max_batch: int = 1,
    give_up_s: float | None = None,
) -> Served:
    """What happens to Poisson arrivals at a server that takes ``service(batch)`` seconds."""
    time = SimulatedTime(start=123.0)
    return serve(
        poisson_arrivals(qps, count, seed),
        lambda first, last: time.work(service(last - first)),
        time,
        max_batch=max_batch,
        give_up_s=give_up_s,
    )
