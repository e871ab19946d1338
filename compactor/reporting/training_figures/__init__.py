"""The figures of a training run, and what they read from its document. A figure that has no data is not there.

Attention, feed-forward and the two together keep their colours and letters through all figures.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

Training = Mapping[str, Any]

KINDS = {"attention": "attention", "cross_attention": "cross-attention", "feed_forward": "feed-forward"}


def finite(value: object) -> float | None:
    """A finite number, or None."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def metric_in(metrics: Mapping[str, Any] | None, name: str) -> Any:
    """A metric whose value is a number, or None."""
    found = (metrics or {}).get(name)
    return None if found is None or finite(found["value"]) is None else found


def final_metric(document: Training, whose: str = "metrics") -> Any:
    """The primary metric at the end, in ``metrics`` or in ``teacher_metrics``; None where it is no number."""
    return metric_in((document["final"] or {}).get(whose), document["metric"])
