"""Models of any speed, made of one model that has been looked at once: sizes chosen, what is left solved, written."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from compactor.errors import UsageError
from compactor.speedup.costs import Costs
from compactor.speedup.folders import replace_folder, write_folder
from compactor.speedup.promise import Measured
from compactor.speedup.repair import Repair
from compactor.speedup.search import Choices, search
from compactor.speedup.settings import SpeedSettings, name_of
from compactor.speedup.subject import Subject
from compactor.speedup.surgeon import Surgeon
from compactor.speedup.units import Linears, Unit


@dataclasses.dataclass(frozen=True)
class Member:
    """One model of a family.

    Attributes:
        target: The speed-up that was asked for.
        folder: Where it lies.
        sizes: Heads or neurons of each block.
        predicted: The speed-up by the sum of costs.
        loss: How far its answers are from the whole model's; None where a method of its own made it.
        corrected: Whether its sizes were chosen a second time, by the measured error.
        measured: Its speed.
    """

    target: float
    folder: Path
    sizes: tuple[int, ...]
    predicted: float
    loss: float | None
    corrected: bool = False
    measured: Measured | None = None

    @property
    def kept(self) -> bool:
        """Whether the promise is."""
        return self.measured is not None and self.measured.keeps(self.target)


class Shop:
    """All that is known of a model once it has been looked at, from which models of any speed can be made.

    Args:
        subject: The model, or one that was already made smaller.
        units: Its blocks.
        costs: Of the whole model's blocks.
        settings: What is asked for.
        say: Told of the progress.

    Attributes:
        units: Its blocks.
        costs: Of them.
    """

    def __init__(
        self,
        subject: Subject,
        units: Sequence[Unit],
        costs: Costs,
        settings: SpeedSettings,
        say: Callable[[str], None],
    ) -> None:
        self._subject, self._settings, self._say = subject, settings, say
        self.units, self.costs = units, costs
        self._linears = Linears(subject.model, self.units)
        self._repair = Repair(subject, self.units)
        self._surgeon = Surgeon(subject, self.units, self._linears, say)
        self._weights = self._surgeon.sensitivities(say)
        self._choices = [
            Choices(sizes, self.costs.times(unit, sizes), self._surgeon.errors(number, sizes).numpy())
            for number, unit in enumerate(self.units)
            for sizes in [self._surgeon.sizes(number)]
        ]

    def make(self, target: float, folder: Path, *, factor: float = 1.0) -> Member:
        """A model of ``target`` in ``folder``.

        Args:
            target: The speed-up.
            folder: Replaced where it exists.
            factor: The speed-up that sizes are chosen for, over ``target``: what an earlier measurement corrects.

        Raises:
            UsageError: It is out of reach.
        """
        name, settings = name_of(target), self._settings
        self._say(f"{name}: choosing sizes")
        budget = self.costs.dense_ms / (target * factor) - self.costs.fixed_ms
        found = search(
            self._choices,
            self._weights,
            budget,
            lambda places: self._surgeon.loss(self._sizes(places)),
            trials=settings.trials,
            seed=settings.seed,
        )
        if found is None:
            raise UsageError(
                f"a speed-up of {target:g} is out of reach on this machine",
                todo="ask for less, or for a larger batch or longer texts",
            )
        sizes = self._sizes(found[0])
        self._repair.run(self._surgeon, self._linears, sizes, lambda text: self._say(f"{name}: {text}"))
        loss = self._surgeon.loss_now()
        part = folder.with_name(f".part-{folder.name}")
        shutil.rmtree(part, ignore_errors=True)
        write_folder(self._subject, part)
        replace_folder(part, folder)
        self._linears.restore()
        predicted = self.costs.dense_ms / self.costs.total(self.units, sizes)
        return Member(target, folder, sizes, predicted, loss, factor != 1.0)

    def _sizes(self, places: Sequence[int]) -> tuple[int, ...]:
        return tuple(block.sizes[place] for block, place in zip(self._choices, places, strict=True))
