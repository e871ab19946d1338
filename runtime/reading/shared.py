"""What the readers share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..answers import Answer, Refused
from ..encoding import Encoded

Outputs: TypeAlias = Mapping[str, NDArray[Any]]  # of one window, without a batch axis; token outputs without padding
Reader: TypeAlias = Callable[[Encoded, Sequence[Outputs]], Answer | Refused]


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Over the last axis."""
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=-1, keepdims=True))


def numbered(count: int) -> tuple[str, ...]:
    """The names that transformers gives to labels without names."""
    return tuple(f"LABEL_{number}" for number in range(count))
