"""What a family of models is asked for, checked before any work begins."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

from compactor.errors import UsageError
from compactor.speedup.costs import Load

_MOST_TARGETS = 8


@dataclasses.dataclass(frozen=True)
class SpeedSettings:
    """What is asked for.

    Attributes:
        speedups: Times of the whole model over those of the models to make, ascending.
        load: What is timed.
        costs: A ``costs.json`` of this or another machine; None measures them.
        trials: Choices of sizes that are tried for each target.
        seed: Of everything random.
    """

    speedups: tuple[float, ...]
    load: Load = dataclasses.field(default_factory=Load)
    costs: Path | None = None
    trials: int = 16
    seed: int = 17

    def __post_init__(self) -> None:
        """Check them.

        Raises:
            UsageError: A target is none, or there are too many; or the load is none.
        """
        for target in self.speedups:
            if not math.isfinite(target) or target <= 1:
                raise UsageError(
                    f"a speed-up of {target:g} is none", todo="ask for numbers above 1, such as --speedup 1.5,2,3"
                )
        if not self.speedups or len(self.speedups) > _MOST_TARGETS:
            raise UsageError(f"{len(self.speedups)} speed-ups", todo=f"ask for 1 to {_MOST_TARGETS} of them")
        if len(set(map(name_of, self.speedups))) < len(self.speedups):
            raise UsageError("two speed-ups are the same", todo="ask for each once")
        if list(self.speedups) != sorted(self.speedups):
            object.__setattr__(self, "speedups", tuple(sorted(self.speedups)))
        if self.load.batch < 1 or (self.load.seq is not None and self.load.seq < 1):
            raise UsageError("a batch or a length below 1", todo="change --batch or --seq")
        if self.trials < 1:
            raise UsageError("fewer than one trial", todo="raise the number of trials")


def parse_speedups(text: str) -> tuple[float, ...]:
    """``1.5,2,3``.

    Raises:
        UsageError: It is no list of numbers.
    """
    try:
        return tuple(float(part.strip().lower().removesuffix("x").removesuffix("×")) for part in text.split(","))
    except ValueError as error:
        raise UsageError(
            f"'{text}' is no list of speed-ups", todo="ask for numbers, such as --speedup 1.5,2,3"
        ) from error


def name_of(target: float) -> str:
    """The folder of a target: ``2.0x``, ``1.75x``."""
    text = f"{target:.4g}"
    return f"{text if '.' in text else f'{text}.0'}x"


def names_of(targets: Sequence[float]) -> list[str]:
    """The folders of all targets."""
    return [name_of(target) for target in targets]
