"""Threshold and λ as functions of the step; and how λ is steered where a density is wanted.

With p the part of the pruning phase that is left, from 1 to 0::

    τ(p) = τ_f + (τ_0 - τ_f) p³,  τ_0 = 0        λ(p) = λ_f τ(p) / τ_f

Before it, in the warm-up, both are 0; after it, in the cool-down, τ is τ_f and the masks are settled: weights recover
from the last cut. Reference: Lagunas et al. (2021), Section 3 and Appendix; Sanh, Wolf and Rush, "Movement Pruning",
2020, Equation 4.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

Phase = Literal["warm-up", "pruning", "cool-down"]

FINAL_THRESHOLD = 0.1  # of the sigmoid of a score
_GAIN = 0.05  # how much the logarithm of λ moves in a step, for each unit that the cut is off its line
_REACH = 10.0


@dataclasses.dataclass(frozen=True)
class Schedule:
    """When what is pruned.

    Attributes:
        steps: Optimizer steps in all.
        warm_up: Of these, the first ones, before pruning.
        cool_down: The last ones, with masks settled.
        final_threshold: τ_f.
    """

    steps: int
    warm_up: int
    cool_down: int
    final_threshold: float = FINAL_THRESHOLD

    @property
    def settled_from(self) -> int:
        """The first step with masks settled."""
        return self.steps - self.cool_down

    def phase(self, step: int) -> Phase:
        """Where ``step``, from 0, lies."""
        if step < self.warm_up:
            return "warm-up"
        return "pruning" if step < self.settled_from else "cool-down"

    def left(self, step: int) -> float:
        """p: the part of the pruning phase that is left, 1 in the warm-up and 0 in the cool-down."""
        if self.phase(step) == "warm-up":
            return 1.0
        length = self.settled_from - self.warm_up
        return max(0.0, 1 - (step - self.warm_up) / length) if length > 0 else 0.0

    def threshold(self, step: int) -> float:
        """τ at ``step``."""
        return self.final_threshold * (1 - self.left(step) ** 3)

    def strength(self, step: int) -> float:
        """λ at ``step``, as a share of λ_f."""
        return 1 - self.left(step) ** 3

    def density(self, step: int, target: float) -> float:
        """The part of the weights that is to be left at ``step`` on the way to ``target``."""
        return target + (1 - target) * self.left(step) ** 3

    def phases(self) -> list[tuple[Phase, int, int]]:
        """Each phase that has steps: its name, its first step, and the one after its last."""
        bounds: list[tuple[Phase, int, int]] = [
            ("warm-up", 0, self.warm_up),
            ("pruning", self.warm_up, self.settled_from),
            ("cool-down", self.settled_from, self.steps),
        ]
        return [bound for bound in bounds if bound[1] < bound[2]]


@dataclasses.dataclass
class Steering:
    """λ_f, moved in the pruning phase so that scores fall as fast as a wanted density needs.

    The density itself would say too late: scores take hundreds of steps to reach the threshold. What is looked at is
    the *cut*, the score above which the blocks make up what the schedule wants to be left by now. It shall fall evenly
    from 0 to logit(τ_f). λ_f grows while the cut is above that line, and shrinks while it is below. Blocks above the
    cut are on and those under it off in any case, so the density follows the schedule also where scores do not.

    Attributes:
        value: λ_f now.
        first: λ_f at the start; it stays within a factor of ``_REACH`` of it, or the task would no longer count.
    """

    value: float
    first: float

    def move(self, cut: float, schedule: Schedule, step: int) -> None:
        """Adjust λ_f before ``step``, from where the cut is."""
        final = math.log(schedule.final_threshold / (1 - schedule.final_threshold))
        above = cut - final * (1 - schedule.left(step))
        moved = math.log(self.value / self.first) + _GAIN * max(-1.0, min(1.0, above))
        limit = math.log(_REACH)
        self.value = self.first * math.exp(max(-limit, min(limit, moved)))

    def to_json(self) -> dict[str, float]:
        """What resuming needs."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Steering:
        """What ``to_json`` gave."""
        return cls(float(content["value"]), float(content["first"]))
