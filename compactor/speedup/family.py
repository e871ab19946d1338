"""The whole way from one model to a family of faster ones: costs, surgery, search, repair, and the promise checked."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compactor.checkpoint.config import read_json_object
from compactor.console import Progress
from compactor.errors import OutputError, UsageError, as_output_error
from compactor.speedup.costs import COSTS, Costs, Load, export_graph, graph_of, measure_costs
from compactor.speedup.folders import replace_folder, write_folder
from compactor.speedup.promise import Measured, judge, measure
from compactor.speedup.records import make_record, write_record
from compactor.speedup.repair import Repair
from compactor.speedup.search import Choices, search
from compactor.speedup.settings import Settings, name_of
from compactor.speedup.subject import Subject
from compactor.speedup.surgeon import Surgeon
from compactor.speedup.units import Linears, find_units
from compactor.trainer.pruning import prune
from compactor.trainer.tasks import TASKS

if TYPE_CHECKING:
    from compactor.trainer.config import PruneConfig

WHOLE, FP32 = "whole", "whole, fp32"
FAMILY = "family.json"  # what was asked for, as long as nothing is finished
STARTS = "starts"  # of a family that is trained: each model before its training
MEMBER = ".member.json"  # what surgery found, beside such a start
TRAINED = "training.json"


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
        subject: The model, or one that was already made smaller.
        settings: What is asked for.
        out: Where costs are kept.
        whole: The graph of the whole model.
        say: Told of the progress.
        costs: Of the whole model's blocks; None measures those of ``subject``, unless there is a file of them.

    Attributes:
        units: Its blocks.
        costs: Of them.

    Raises:
        UsageError: A target is out of reach, or the costs are of something else.
        ModelDirectoryError: The model has no block that could be pruned.
    """

    def __init__(
        self,
        subject: Subject,
        settings: Settings,
        out: Path,
        whole: Path,
        say: Callable[[str], None],
        *,
        costs: Costs | None = None,
    ) -> None:
        self._subject, self._settings, self._say = subject, settings, say
        example = subject.search[-1]
        self.units = find_units(subject.model, {name: tensor[:1] for name, tensor in example.items()})
        self._linears = Linears(subject.model, self.units)
        if costs is None and settings.costs is not None:
            costs = Costs.read(settings.costs, self.units, settings.load)
        self.costs = costs or measure_costs(subject, self.units, self._linears, settings.load, whole, say)
        (out / COSTS).write_text(json.dumps(self.costs.to_json(), indent=1) + "\n", encoding="utf-8")
        most = self.costs.dense_ms / max(self.costs.fixed_ms, 1e-9)
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


@dataclasses.dataclass
class Checker:
    """Exports models and measures them beside the whole one; what it exported, it keeps.

    Attributes:
        load: What is timed.
        work: Where exports go.
        say: Told of the progress.
        graphs: By name, the whole model's first.
        speeds: The graphs that were measured last, and what was found.
        report: Of that measurement.
    """

    load: Load
    work: Path
    say: Callable[[str], None]
    graphs: dict[str, Path] = dataclasses.field(default_factory=dict)
    speeds: tuple[dict[str, Path], dict[str, Measured]] | None = None
    report: dict[str, Any] = dataclasses.field(default_factory=dict)
    _exports: int = 0

    def export(self, name: str, folder: Path) -> None:
        """Export ``folder`` as ``name``, in place of what was exported so before."""
        self._exports += 1
        self.say(f"exporting {name}")
        self.graphs[name] = export_graph(folder, self.work / str(self._exports), self.load.precision)

    def measure(self, names: Iterable[str]) -> dict[str, Measured]:
        """The speed of some models; what was measured of the same graphs already is not measured again."""
        chosen = {name: self.graphs[name] for name in (WHOLE, *names)}
        if self.speeds is None or self.speeds[0] != chosen:
            found, self.report = measure(chosen, self.load, self.say)
            self.speeds = chosen, found
        return self.speeds[1]

    def keep_promises(self, shop: Shop, members: Sequence[Member]) -> list[Member]:
        """Measure models, and make those that miss their target once more, by what was measured."""
        for member in members:
            self.export(member.folder.name, member.folder)
        speeds = self.measure(member.folder.name for member in members)
        done = []
        for member in members:
            found = speeds[member.folder.name]
            if not found.keeps(member.target):
                self.say(f"{member.folder.name}: measured {found.speedup:.2f}, so sizes are chosen again")
                member = shop.make(member.target, member.folder, factor=member.target / found.speedup)
                self.export(member.folder.name, member.folder)
            done.append(member)
        return done


def prune_to_speed(
    model: str | Path,
    data: str | Path,
    out: str | Path,
    settings: Settings,
    *,
    evaluation: str | Path | None = None,
    training: PruneConfig | None = None,
    teacher: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    command: str = "compactor.prune_to_speed(...)",
    progress: Progress = lambda message: None,
) -> FamilyResult:
    """Make models that are faster by given factors: in one shot, without training, or with training in between.

    Args:
        model: A Hugging Face or sentence-transformers model directory of an encoder of texts, fine-tuned.
        data: Texts as the model will meet them; 2,000 are plenty. With ``training``, labelled examples to learn from.
        out: The folder to write: ``1.5x``, ``2.0x``, ..., ``costs.json``, ``speedup.json`` and ``speedup.html``.
        settings: What is asked for.
        evaluation: Labelled examples on which the models are judged, in the graphs that will be served.
        training: How each model is trained before the next is made of it; None trains nothing.
        teacher: Whom they learn from; ``model`` where it is None.
        resume: Go on with a family that is being trained.
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
        TrainingError: The loss is no number.
    """
    start = time.monotonic()
    model, data, out = Path(model), Path(data), Path(out)
    if training is not None and evaluation is None:
        raise UsageError("training needs examples to be judged on", todo="pass --eval")
    identity = _identity(model, data, evaluation, teacher, settings, training)
    check_out(out, model, identity, resume=resume, overwrite=overwrite)
    progress("loading libraries")
    from compactor.trainer.models import quiet_transformers

    with quiet_transformers(), tempfile.TemporaryDirectory(prefix="compactor-speedup-") as work:
        subject = Subject.open(model, data, settings.seed)
        if training is not None and subject.task.name not in TASKS:
            raise UsageError(
                f"a model for {subject.task.name} is not trained here",
                where=str(model),
                todo="make it faster in one shot: leave out --steps and --epochs",
            )
        settings.load.feeds(subject.spec)  # refuses lengths that the model does not take
        checker = Checker(settings.load, Path(work), progress)
        claim_out(out, identity, resume=resume)
        try:
            known = out / COSTS
            own = dataclasses.replace(settings, costs=known) if resume and known.is_file() else settings
            checker.export(WHOLE, model)
            shop = Shop(subject, own, out, checker.graphs[WHOLE], progress)
            if training is None:
                members = [shop.make(target, out / name_of(target)) for target in settings.speedups]
                members = checker.keep_promises(shop, members)
            else:
                run = Gradual(model, data, Path(str(evaluation)), out, training, Path(teacher or model), resume)
                members = train_gradually(run, shop, checker, settings, progress)
            speeds = checker.measure(member.folder.name for member in members)
            members = [dataclasses.replace(member, measured=speeds[member.folder.name]) for member in members]
            metric: str | None = None
            metrics: dict[str, Any] = {}
            if evaluation is not None:
                whole = graph_of(Path(work) / "1", "fp32")  # the first export
                metric, metrics = judge({FP32: whole, **checker.graphs}, Path(evaluation), progress)
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
        members=members,
        whole_ms=speeds[WHOLE].latency_ms,
        metric=metric,
        metrics=metrics,
        report=checker.report,
        steps=None if training is None else training.to_json(),
        command=command,
        seconds=time.monotonic() - start,
    )
    write_record(out, record)
    return FamilyResult(out, record)


@dataclasses.dataclass(frozen=True)
class Gradual:
    """What each training of a family has in common: as of ``prune_to_speed``."""

    model: Path
    data: Path
    evaluation: Path
    out: Path
    config: PruneConfig
    teacher: Path
    resume: bool


def train_gradually(run: Gradual, shop: Shop, checker: Checker, settings: Settings, progress: Progress) -> list[Member]:
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
                shop = Shop(subject, settings, run.out, checker.graphs[WHOLE], progress, costs=shop.costs)
            begun.parent.mkdir(exist_ok=True)
            (member,) = checker.keep_promises(shop, [shop.make(target, begun)])
            stated = {"sizes": member.sizes, "predicted": member.predicted, "loss": member.loss}
            kept.write_text(json.dumps({**stated, "corrected": member.corrected}), encoding="utf-8")
        if not (run.resume and (folder / TRAINED).is_file()):
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


def _identity(
    model: Path,
    data: Path,
    evaluation: str | Path | None,
    teacher: str | Path | None,
    settings: Settings,
    training: PruneConfig | None,
) -> dict[str, Any]:
    """What must be the same for a family to be gone on with."""
    return {
        "model": model.name,
        "data": data.name,
        "evaluation": None if evaluation is None else Path(evaluation).name,
        "teacher": None if teacher is None else Path(teacher).name,
        "speedups": list(settings.speedups),
        "load": settings.load.to_json(),
        "trials": settings.trials,
        "seed": settings.seed,
        "training": None if training is None else training.to_json(),
    }


def check_out(out: Path, model: Path, identity: Mapping[str, Any], *, resume: bool, overwrite: bool) -> None:
    """Whether a family may be written to ``out``.

    Raises:
        OutputError: It holds something else, or a family that is neither to be replaced nor to be gone on with.
        UsageError: It lies in the model, or is the model; or the family in it was asked for differently.
    """
    if out.resolve() == model.resolve() or model.resolve() in out.resolve().parents:
        raise UsageError("OUT lies in MODEL", where=str(out), todo="choose a folder outside of it")
    if out.exists() and not out.is_dir():
        raise OutputError("the output folder is a file", where=str(out), todo="choose another place")
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not (out / FAMILY).is_file():
        raise OutputError(
            "the output folder holds something that is no family of models",
            where=str(out),
            todo="choose another folder",
        )
    if resume:
        before = read_json_object(out / FAMILY)
        different = [name for name, value in identity.items() if before.get(name) != json.loads(json.dumps(value))]
        if different:
            raise UsageError(
                f"the family in it was made with another {different[0]}: {before.get(different[0])}",
                where=str(out),
                todo="resume with the options of the first start, or choose another folder",
            )
    elif not overwrite:
        raise OutputError(
            "the output folder holds a family of models", where=str(out), todo="pass --overwrite, or --resume"
        )


def claim_out(out: Path, identity: Mapping[str, Any], *, resume: bool) -> None:
    """Empty ``out`` of an earlier family that is not gone on with: the work is about to begin.

    Raises:
        OutputError: It cannot be written to.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        for path in () if resume else list(out.iterdir()):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        (out / FAMILY).write_text(json.dumps(identity, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(
            f"the output folder cannot be written: {error.strerror}", where=str(out), todo="check the path"
        ) from error
