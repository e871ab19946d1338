"""A family by the paper's methods: each model a run from the whole one, with λ steered by what its blocks take."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compactor.console import Progress
from compactor.speedup.checker import Checker
from compactor.speedup.costs import Costs
from compactor.speedup.gradual import Gradual
from compactor.speedup.settings import SpeedSettings, name_of
from compactor.speedup.shop import Member
from compactor.speedup.units import Unit
from compactor.trainer.pruning import prune
from compactor.trainer.records import RECORD
from compactor.trainer.runs import FIRST


@dataclasses.dataclass(frozen=True)
class MeasuredPace:
    """What a run of ``prune`` asks, answered by the costs of blocks and by exports.

    Attributes:
        wanted: The share of the whole model's time to reach.
        name: The model's.
        units: Blocks.
        costs: Of them.
        checker: Exports and measures.
    """

    wanted: float
    name: str
    units: Sequence[Unit]
    costs: Costs
    checker: Checker

    def share(self, sizes: Mapping[str, int]) -> float:
        """By the sum of costs."""
        chosen = [sizes.get(unit.name, unit.count) for unit in self.units]
        return self.costs.total(self.units, chosen) / self.costs.dense_ms

    def measure(self, folder: Path) -> float:
        """Of the exported graph, beside the whole one."""
        self.checker.export(self.name, folder)
        return 1 / self.checker.measure([self.name])[self.name].speedup


def train_by_penalties(
    run: Gradual, units: Sequence[Unit], costs: Costs, checker: Checker, settings: SpeedSettings, progress: Progress
) -> list[Member]:
    """One run for each target, all from the whole model.

    Reference: Lagunas et al. (2021), whose λ is set by hand, and whose density then follows.
    """
    members = []
    for target in settings.speedups:
        name = name_of(target)
        folder = run.out / name
        pace = MeasuredPace(1 / target, name, units, costs, checker)
        if not (run.resume and (folder / RECORD).is_file()):
            prune(
                run.model,
                run.data,
                run.evaluation,
                folder,
                config=run.config,
                teacher=run.teacher if run.config.preset.teacher else None,
                resume=run.resume and folder.is_dir(),
                pace=pace,
                command=f"the training of {name}",
                progress=lambda text, name=name: progress(f"{name}: {text}"),  # type: ignore[misc]
            )
        record = _read(folder)
        left = {
            layer["name"]: sum(layer["heads"]) if layer["heads"] is not None else layer["neurons"][0]
            for layer in record["final"]["layers"]
        }
        sizes = tuple(left.get(unit.name, unit.count) for unit in units)
        looks = record["looks"] or _read(folder / FIRST)["looks"]  # filled: it is the first run that goes by time
        checker.export(name, folder)
        members.append(Member(target, folder, sizes, 1 / pace.share(left), None, corrected=len(looks) > 1))
    return members


def _read(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    return content
