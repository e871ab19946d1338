"""What the figures of a training run read from its document."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

Training = Mapping[str, Any]


def finite(value: object) -> float | None:
    """A finite number, or None."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def final_metric(document: Training, whose: str) -> tuple[float, float] | None:
    """The primary metric and its standard error (0 where unknown) in ``metrics`` or ``teacher_metrics`` at the end."""
    metrics = (document["final"] or {}).get(whose) or {}
    found = metrics.get(document["metric"]) or {}
    value = finite(found.get("value"))
    return None if value is None else (value, finite(found.get("se")) or 0.0)
