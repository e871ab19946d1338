"""Every model of a family exported and measured beside the whole one, and made again where it breaks its promise."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from compactor.speedup.costs import Load, export_graph
from compactor.speedup.promise import WHOLE, Measured, measure
from compactor.speedup.shop import Member, Shop


@dataclasses.dataclass
class Checker:
    """Exports models and measures them beside the whole one; what it exported, it keeps.

    Attributes:
        load: What is timed.
        work: Where exports go.
        say: Told of the progress.
        graphs: By name, the whole model's first.
        report: Of the last measurement, valid where all that what was asked for comes from are.
    """

    load: Load
    work: Path
    say: Callable[[str], None]
    graphs: dict[str, Path] = dataclasses.field(default_factory=dict)
    report: dict[str, Any] = dataclasses.field(default_factory=dict)
    _found: dict[Path, tuple[Measured, int]] = dataclasses.field(default_factory=dict)  # with the report's number
    _reports: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    _artefacts: dict[str, Path] = dataclasses.field(default_factory=dict)
    _exports: int = 0

    def export(self, name: str, folder: Path) -> None:
        """Export ``folder`` as ``name``, in place of what was exported so before."""
        self._exports += 1
        self.say(f"exporting {name}")
        self._artefacts[name] = self.work / str(self._exports)
        self.graphs[name] = export_graph(folder, self._artefacts[name], self.load.precision)

    def exported(self, name: str) -> Path:
        """The artefact of ``name``, which holds its graph in fp32, too."""
        return self._artefacts[name]

    def measure(self, names: Iterable[str]) -> dict[str, Measured]:
        """The speed of some models; a graph that was measured beside the whole model's is not measured again."""
        chosen = {name: self.graphs[name] for name in (WHOLE, *names)}
        new = {name: path for name, path in chosen.items() if name == WHOLE or path not in self._found}
        if len(new) > 1 or not self._found:
            found, report = measure(new, self.load, self.say)
            self._reports.append(report)
            self._found |= {path: (found[name], len(self._reports) - 1) for name, path in new.items()}
        used = [self._reports[number] for number in sorted({self._found[path][1] for path in chosen.values()})]
        verdict = {
            "valid": all(report["verdict"]["valid"] for report in used),
            "reasons": list(dict.fromkeys(reason for report in used for reason in report["verdict"]["reasons"])),
        }
        self.report = {**used[-1], "verdict": {**used[-1]["verdict"], **verdict}}
        return {name: self._found[path][0] for name, path in chosen.items()}

    def keep_promises(self, shop: Shop, members: Sequence[Member]) -> list[Member]:
        """Measure models, and make those that surely miss their target once more, by what was measured."""
        for member in members:
            self.export(member.folder.name, member.folder)
        speeds = self.measure(member.folder.name for member in members)
        done = []
        for member in members:
            found = speeds[member.folder.name]
            if found.breaks(member.target):
                self.say(f"{member.folder.name}: measured {found.speedup:.2f}, so sizes are chosen again")
                member = shop.make(member.target, member.folder, factor=member.target / found.speedup)
                self.export(member.folder.name, member.folder)
            done.append(member)
        return done
