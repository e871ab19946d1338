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

NOT_FINITE = "the model's output is not a finite number"


def softmax(logits: NDArray[Any]) -> NDArray[Any]:
    """Over the last axis, in the precision of the logits."""
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=-1, keepdims=True))


def sigmoid(logits: NDArray[Any]) -> NDArray[Any]:
    """Of each number, in its precision: no overflow at either end, and small numbers stay exact."""
    small = np.exp(-np.abs(logits))
    return np.asarray(np.where(logits >= 0, 1, small) / (1 + small))


def named(labels: Sequence[str], count: int) -> tuple[str, ...]:
    """``count`` labels, by the names that there are, and by those that transformers gives to labels without one."""
    return tuple(labels[i] if i < len(labels) else f"LABEL_{i}" for i in range(count))
