"""A family whose models are trained: each is made of the one before, which has learned to do with less."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from compactor.console import Progress
from compactor.speedup.checker import Checker
from compactor.speedup.settings import SpeedSettings, name_of
from compactor.speedup.shop import Member, Shop
from compactor.speedup.subject import Subject
from compactor.speedup.units import find_units
from compactor.trainer.config import PruneConfig
from compactor.trainer.pruning import prune
from compactor.trainer.records import RECORD

STARTS = "starts"  # each model before its training
MEMBER = ".member.json"  # what surgery found, beside such a start


@dataclasses.dataclass(frozen=True)
class Gradual:
    """What the trainings of a family have in common: as of ``prune_to_speed``."""

    model: Path
    data: Path
    evaluation: Path
    out: Path
    config: PruneConfig
    teacher: Path
    resume: bool


def train_gradually(
    run: Gradual, shop: Shop, checker: Checker, settings: SpeedSettings, progress: Progress
) -> list[Member]:
    """One target after another: the model of the one before made smaller, then trained with its zeros held.

    Reference: Kurtić, Frantar and Alistarh (2023), Section 4.1, "gradual structured pruning".
    """
    members: list[Member] = []
    for target in settings.speedups:
        name = name_of(target)
        folder, begun = run.out / name, run.out / STARTS / name
        kept = begun / MEMBER
        if run.resume and kept.is_file():
            stated = json.loads(kept.read_text(encoding="utf-8"))
            member = Member(folder=begun, target=target, **{**stated, "sizes": tuple(stated["sizes"])})
            checker.export(name, begun)
        else:
            if members:
                subject = Subject.open(members[-1].folder, run.data, settings.seed)
                shop = Shop(subject, find_units(subject.model, subject.example), shop.costs, settings, progress)
            begun.parent.mkdir(exist_ok=True)
            (member,) = checker.keep_promises(shop, [shop.make(target, begun)])
            stated = {"sizes": member.sizes, "predicted": member.predicted, "loss": member.loss}
            kept.write_text(json.dumps({**stated, "corrected": member.corrected}), encoding="utf-8")
        if not (run.resume and (folder / RECORD).is_file()):
            prune(
                begun,
                run.data,
                run.evaluation,
                folder,
                config=run.config,
                teacher=run.teacher,
                resume=run.resume and folder.is_dir(),
                command=f"the training of {name}",
                progress=lambda text, name=name: progress(f"{name}: {text}"),  # type: ignore[misc]
            )
        checker.export(name, folder)
        members.append(dataclasses.replace(member, folder=folder))
    return members
