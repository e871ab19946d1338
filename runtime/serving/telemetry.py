"""What a replica says of itself: metrics for Prometheus, and a log line a request, without its texts.

Ray collects the metrics of all replicas of a node and shows them on the node's metrics port, with Serve's own
(``ray_serve_*``) beside them.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from ray.serve.metrics import Counter, Gauge, Histogram

logger = logging.getLogger("ray.serve")

_LATENCIES_MS = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 30_000]
_SIZES = [1, 2, 4, 8, 16, 32, 64, 128]
_TOKENS = [16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192]


class Telemetry:
    """The metrics of one replica."""

    def __init__(self, model: str) -> None:
        tags = {"model": model}

        def tagged(kind: Any, name: str, description: str, *more: str, **options: Any) -> Any:
            metric = kind(f"compactor_{name}", description=description, tag_keys=("model", *more), **options)
            metric.set_default_tags(dict(tags))  # Ray adds its own to what it is given
            return metric

        self._latency = tagged(
            Histogram,
            "request_latency_ms",
            "From a request's arrival at the replica to its reply.",
            "route",
            "status",
            boundaries=_LATENCIES_MS,
        )
        self._batch = tagged(Histogram, "batch_size", "Texts that were run together.", boundaries=_SIZES)
        self._tokens = tagged(Histogram, "text_tokens", "Tokens of a text.", boundaries=_TOKENS)
        self._queue = tagged(Gauge, "queue_length", "Texts that wait for the model.")
        self._rejected = tagged(Counter, "rejected_total", "Requests that were refused.", "reason")

    def batch(self, size: int, waiting: int) -> None:
        """A batch begins, and so many texts wait for the next."""
        self._batch.observe(size)
        self._queue.set(waiting)

    def text(self, tokens: int) -> None:
        """A text was tokenized."""
        self._tokens.observe(tokens)

    def request(self, route: str, status: int, started: float, texts: int) -> None:
        """A request was answered.

        Args:
            route: Of its path, without values.
            status: Of the reply.
            started: When it came, by ``time.perf_counter``.
            texts: How many texts it held.
        """
        elapsed_ms = 1e3 * (time.perf_counter() - started)
        self._latency.observe(elapsed_ms, tags={"route": route, "status": str(status)})
        if status >= 400:
            self._rejected.inc(tags={"reason": str(status)})
        fields = {"route": route, "status": status, "texts": texts, "elapsed_ms": round(elapsed_ms, 3)}
        level = logging.ERROR if status >= 500 else logging.INFO
        logger.log(level, "answered", extra={f"compactor_{name}": value for name, value in fields.items()})
