"""A time to reach instead of a density: what a run asks of whoever can predict and measure it.

Threshold and λ are steered as towards a density; the density itself is, at each step, the largest at which the model is
predicted to take no longer than the schedule has it by then. Before masks settle, what they leave is measured, and the
prediction corrected by it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

_HALVINGS = 14  # of the interval in which a density is looked for: to 6e-5
LOOKS = 3  # measurements before masks settle, at most
CLOSE = 0.02  # of the wanted time: no further look


class Pace(Protocol):
    """What models take, as a share of the time of the whole one."""

    @property
    def wanted(self) -> float:
        """The share to reach."""

    def share(self, sizes: Mapping[str, int]) -> float:
        """The predicted share, from the heads or neurons of each block by its name, ``layers.0.attention``."""

    def measure(self, folder: Path) -> float:
        """The measured share of a stock model in ``folder``."""


@dataclasses.dataclass(frozen=True)
class Timed:
    """A ``Pace`` for the model that is trained.

    Attributes:
        wanted: The share to reach.
        share: As of ``Pace``.
        measure: The measured share of the model with its masks of now.
    """

    wanted: float
    share: Callable[[Mapping[str, int]], float]
    measure: Callable[[], float]


@dataclasses.dataclass(frozen=True)
class Look:
    """One measurement.

    Attributes:
        density: Of the masked matrices.
        predicted: The share of the whole model's time by the sum of costs.
        measured: That of the graph.
    """

    density: float
    predicted: float
    measured: float


def densest(share: Callable[[float], float], wanted: float) -> float:
    """The largest density at which ``share``, which grows with it, is at most ``wanted``; 0 where there is none."""
    if share(1.0) <= wanted:
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if share(middle) <= wanted else (low, middle)
    return low
