"""The whole way from one model to a family of faster ones: costs, surgery, search, repair, and the promise checked."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compactor.console import Progress
from compactor.errors import UsageError, as_output_error
from compactor.speedup.checker import Checker
from compactor.speedup.claiming import check_out, claim_out, identity_of
from compactor.speedup.costs import COSTS, Costs, graph_of, measure_costs
from compactor.speedup.gradual import Gradual, train_gradually
from compactor.speedup.penalties import train_by_penalties
from compactor.speedup.promise import FP32, WHOLE, judge
from compactor.speedup.records import make_record, write_record
from compactor.speedup.settings import SpeedSettings, name_of
from compactor.speedup.shop import Shop
from compactor.speedup.subject import Subject
from compactor.speedup.units import find_units
from compactor.trainer.methods import Second
from compactor.trainer.pruning import check_pace
from compactor.trainer.tasks import TASKS

if TYPE_CHECKING:
    from compactor.trainer.config import PruneConfig


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


def prune_to_speed(
    model: str | Path,
    data: str | Path,
    out: str | Path,
    settings: SpeedSettings,
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
        training: How models are trained; None trains nothing. With the method ``tuned`` each is trained before the next
            is made of it; any other prunes MODEL in its own way, once for each target.
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
    by_surgery = training is None or training.preset.second is Second.KEEP
    if training is not None and not by_surgery:
        check_pace(training)
    identity = identity_of(model, data, evaluation, teacher, settings, training)
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
        units = find_units(subject.model, subject.example)
        kept = out / COSTS if resume and (out / COSTS).is_file() else settings.costs
        costs = None if kept is None else Costs.read(kept, units, settings.load)
        if costs is not None:
            costs.check_reach(settings.speedups[-1])
        checker = Checker(settings.load, Path(work), progress)
        claim_out(out, identity, resume=resume)
        try:
            checker.export(WHOLE, model)
            if costs is None:
                costs = measure_costs(subject, units, settings.load, checker.graphs[WHOLE], progress)
                costs.check_reach(settings.speedups[-1])
            (out / COSTS).write_text(json.dumps(costs.to_json(), indent=1) + "\n", encoding="utf-8")
            if training is None:
                shop = Shop(subject, units, costs, settings, progress)
                members = [shop.make(target, out / name_of(target)) for target in settings.speedups]
                members = checker.keep_promises(shop, members)
            else:
                run = Gradual(model, data, Path(str(evaluation)), out, training, Path(teacher or model), resume)
                if by_surgery:
                    shop = Shop(subject, units, costs, settings, progress)
                    members = train_gradually(run, shop, checker, settings, progress)
                else:
                    members = train_by_penalties(run, units, costs, checker, settings, progress)
            speeds = checker.measure(member.folder.name for member in members)
            members = [dataclasses.replace(member, measured=speeds[member.folder.name]) for member in members]
            metric: str | None = None
            metrics: dict[str, Any] = {}
            if evaluation is not None:
                whole = graph_of(checker.exported(WHOLE), "fp32")
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
        units=units,
        settings=settings,
        costs=costs,
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
