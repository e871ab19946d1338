"""The whole way from one model to a family of faster ones: costs, surgery, search, repair, and the promise checked."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from compactor.console import Progress
from compactor.errors import OutputError, UsageError, as_output_error
from compactor.speedup.costs import COSTS, Costs, measure_costs
from compactor.speedup.folders import replace_folder, write_folder
from compactor.speedup.promise import Measured, export_all, judge, measure
from compactor.speedup.records import RECORD, make_record, write_record
from compactor.speedup.repair import Repair
from compactor.speedup.search import Choices, search
from compactor.speedup.settings import Settings, name_of
from compactor.speedup.subject import Subject
from compactor.speedup.surgeon import Surgeon
from compactor.speedup.units import Linears, find_units

WHOLE = "whole"
_RUN = ".run.json"
_EVALUATION_FP32 = "whole, fp32"


@dataclasses.dataclass(frozen=True)
class Member:
    """One model of a family.

    Attributes:
        target: The speed-up that was asked for.
        folder: Where it lies.
        sizes: Heads or neurons of each block.
        predicted: The speed-up by the sum of costs.
        loss: How far its answers are from the whole model's.
        corrected: Whether its sizes were chosen a second time, by the measured error.
        measured: Its speed.
    """

    target: float
    folder: Path
    sizes: tuple[int, ...]
    predicted: float
    loss: float
    corrected: bool = False
    measured: Measured | None = None

    @property
    def kept(self) -> bool:
        """Whether the promise is."""
        return self.measured is not None and self.measured.keeps(self.target)


@dataclasses.dataclass(frozen=True)
class FamilyResult:
    """What was made.

    Attributes:
        path: The folder.
        record: The content of its ``speedup.json``.
    """

    path: Path
    record: dict[str, Any]

    @property
    def missed(self) -> list[dict[str, Any]]:
        """The models that do not keep their promise."""
        return [member for member in self.record["models"] if not member["kept"]]


class Shop:
    """All that is known of a model once it has been looked at, from which models of any speed can be made.

    Args:
        subject: The model.
        settings: What is asked for.
        out: Where costs are kept.
        say: Told of the progress.

    Attributes:
        costs: Of its blocks.

    Raises:
        UsageError: A target is out of reach, or the costs are of something else.
        ModelDirectoryError: The model has no block that could be pruned.
    """

    def __init__(self, subject: Subject, settings: Settings, out: Path, say: Callable[[str], None]) -> None:
        self._subject, self._settings, self._say = subject, settings, say
        example = subject.search[-1]
        self.units = find_units(subject.model, {name: tensor[:1] for name, tensor in example.items()})
        self._linears = Linears(subject.model, self.units)
        if settings.costs is not None:
            self.costs = Costs.read(settings.costs, self.units, settings.load)
        else:
            self.costs = measure_costs(subject, self.units, self._linears, settings.load, say)
            (out / COSTS).write_text(json.dumps(self.costs.to_json(), indent=1) + "\n", encoding="utf-8")
        self.dense_ms = self.costs.total(self.units, [unit.count for unit in self.units])
        most = self.dense_ms / max(self.costs.fixed_ms, 1e-9)
        if settings.speedups[-1] >= most:
            raise UsageError(
                f"a speed-up of {settings.speedups[-1]:g} is out of reach: with nothing left of any block it is "
                f"{most:.3g}, and embedding and head take the rest",
                todo=f"ask for less than {0.9 * most:.3g}",
            )
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
        """
        name, settings = name_of(target), self._settings
        self._say(f"{name}: choosing sizes")
        budget = self.dense_ms / (target * factor) - self.costs.fixed_ms
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
        return Member(target, folder, sizes, self.dense_ms / self.costs.total(self.units, sizes), loss, factor != 1.0)

    def _sizes(self, places: Sequence[int]) -> tuple[int, ...]:
        return tuple(block.sizes[place] for block, place in zip(self._choices, places, strict=True))


def prune_to_speed(
    model: str | Path,
    data: str | Path,
    out: str | Path,
    settings: Settings,
    *,
    evaluation: str | Path | None = None,
    overwrite: bool = False,
    command: str = "compactor.prune_to_speed(...)",
    progress: Progress = lambda message: None,
) -> FamilyResult:
    """Make models that are faster by given factors, in one shot: no training, and no labels.

    Args:
        model: A Hugging Face or sentence-transformers model directory of an encoder of texts, fine-tuned.
        data: Texts as the model will meet them; 2,000 are plenty.
        out: The folder to write: ``1.5x``, ``2.0x``, ..., ``costs.json``, ``speedup.json`` and ``speedup.html``.
        settings: What is asked for.
        evaluation: Labelled examples on which the models are judged, in the graphs that will be served.
        overwrite: Replace an earlier family in ``out``.
        command: What was typed, for the page.
        progress: Told how it is going.

    Returns:
        The folder, and what happened; models that miss their target are among ``missed``.

    Raises:
        UsageError: Settings, texts and model do not fit, or a target is out of reach.
        ModelDirectoryError: The model cannot be read, or is of a kind that this is not built for.
        OutputError: ``out`` holds something else, or cannot be written.
        VerificationError: An export of one of the models differs from it.
    """
    start = time.monotonic()
    model, data, out = Path(model), Path(data), Path(out)
    check_out(out, model, overwrite=overwrite)
    progress("loading libraries")
    from compactor.trainer.models import quiet_transformers

    with quiet_transformers():
        subject = Subject.open(model, data, settings.seed)
        settings.load.feeds(subject.spec)  # refuses lengths that the model does not take
        try:
            claim_out(out)
            shop = Shop(subject, settings, out, progress)
            members = [shop.make(target, out / name_of(target)) for target in settings.speedups]
            with tempfile.TemporaryDirectory(prefix="compactor-speedup-") as work:
                checked, metrics = _check(shop, model, members, settings, evaluation, Path(work), progress)
        except BaseException as error:
            if not any((out / name_of(target)).is_dir() for target in settings.speedups):
                shutil.rmtree(out, ignore_errors=True)  # nothing half-written
            failure = as_output_error(error, out) if isinstance(error, Exception) else None
            if failure is not None:
                raise failure from error
            raise
    record = make_record(
        model=model,
        data=data,
        subject=subject,
        units=shop.units,
        settings=settings,
        costs=shop.costs,
        members=checked,
        metrics=metrics,
        command=command,
        seconds=time.monotonic() - start,
    )
    write_record(out, record)
    return FamilyResult(out, record)


def _check(
    shop: Shop,
    model: Path,
    members: Sequence[Member],
    settings: Settings,
    evaluation: str | Path | None,
    work: Path,
    progress: Progress,
) -> tuple[list[Member], dict[str, Any]]:
    """Export and measure; correct once what missed its target; judge all on labelled data."""
    load = settings.load
    graphs = export_all(
        {WHOLE: model, **{member.folder.name: member.folder for member in members}}, work, load, progress
    )
    speeds, report = measure(graphs, load, progress)
    done = [dataclasses.replace(member, measured=speeds[member.folder.name]) for member in members]
    again = [member for member in done if not member.kept]
    if again:
        for member in again:
            assert member.measured is not None
            made = shop.make(member.target, member.folder, factor=member.target / member.measured.speedup)
            name = member.folder.name
            graphs |= {name: export_all({name: member.folder}, work / "again", load, progress)[name]}
            done[done.index(member)] = made
        speeds, report = measure(graphs, load, progress)
        done = [dataclasses.replace(member, measured=speeds[member.folder.name]) for member in done]
    metrics: dict[str, Any] = {"metric": None, "models": {}}
    if evaluation is not None:
        metric, found = judge(_with_fp32(graphs, work), Path(evaluation), progress)
        metrics = {"metric": metric, "models": found}
    metrics["machine"], metrics["verdict"] = report["machine"], report["verdict"]
    return done, metrics


def _with_fp32(graphs: Mapping[str, Path], work: Path) -> dict[str, Path]:
    """The whole model in fp32 in front: what all others are held against."""
    from compactor.speedup.costs import graph_of

    return {_EVALUATION_FP32: graph_of(work / WHOLE, "fp32"), **graphs}


def check_out(out: Path, model: Path, *, overwrite: bool) -> None:
    """Whether a family may be written to ``out``.

    Raises:
        OutputError: It holds something else, or a family that is not to be replaced.
        UsageError: It lies in the model, or is the model.
    """
    if out.resolve() == model.resolve() or model.resolve() in out.resolve().parents:
        raise UsageError("OUT lies in MODEL", where=str(out), todo="choose a folder outside of it")
    if out.exists() and not out.is_dir():
        raise OutputError("the output folder is a file", where=str(out), todo="choose another place")
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not (out / RECORD).is_file() and not (out / _RUN).is_file():
        raise OutputError(
            "the output folder holds something that is no family of models",
            where=str(out),
            todo="choose another folder",
        )
    if not overwrite:
        raise OutputError("the output folder holds a family of models", where=str(out), todo="pass --overwrite")


def claim_out(out: Path) -> None:
    """Empty ``out`` of an earlier family: the work is about to begin.

    Raises:
        OutputError: It cannot be written to.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        for path in list(out.iterdir()):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        (out / _RUN).write_text("{}\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(
            f"the output folder cannot be written: {error.strerror}", where=str(out), todo="check the path"
        ) from error
