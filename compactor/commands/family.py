"""``compactor prune --speedup``: a family of models that keep a promised speed."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compactor.console import Console
from compactor.errors import MeasurementError, UsageError

if TYPE_CHECKING:
    from compactor.speedup.settings import SpeedSettings
    from compactor.trainer.config import PruneConfig

_SEQ = 128
_OF_TRAINING = ("task", "batch_size", "max_length", "learning_rate", "freeze_embeddings")
_OF_PENALTIES = {"strength": "lambda", "block": "block"}


def refuse_penalties(block: str | None, trials: int | None, settings: dict[str, Any]) -> None:
    """Raises UsageError where an option says how movement pruning works, and no method of it was asked for."""
    if settings["target_density"] is not None:
        raise UsageError("--target-density and --speedup promise two things", todo="leave one out")
    if settings["method"] not in (None, "tuned"):
        if trials is not None:
            raise UsageError(f"--trials: '{settings['method']}' tries no sizes, it trains", todo="leave it out")
        return
    for name, option in _OF_PENALTIES.items():
        if {**settings, "block": block}[name] is not None:
            raise UsageError(
                f"--{option} says how a penalty prunes, and --speedup prunes without",
                todo="leave it out, or add --method hybrid",
            )


def refuse_training(teacher: Path | None, settings: dict[str, Any]) -> None:
    """Raises UsageError where an option is of a training that was not asked for."""
    for name in _OF_TRAINING:
        if settings[name] is not None:
            option = name.replace("_", "-")
            raise UsageError(f"--{option} is of a training", todo="pass --steps to train, or leave it out")
    if teacher is not None:
        raise UsageError("without training nobody learns from a teacher", todo="pass --steps, or leave it out")


def read_settings(
    speedup: str,
    precision: str | None,
    seed: int | None,
    *,
    batch: int | None,
    seq: int | None,
    lengths: Path | None,
    costs: Path | None,
    trials: int | None,
) -> SpeedSettings:
    """What was asked for; raises UsageError where it contradicts itself."""
    from compactor.speedup.costs import Load
    from compactor.speedup.settings import SpeedSettings, parse_speedups

    if precision not in (None, "int8", "fp32"):
        raise UsageError(f"a speed in {precision} is not promised on a CPU", todo="pass --precision int8 or fp32")
    if seq is not None and lengths is not None:
        raise UsageError("--seq and --lengths contradict each other", todo="leave one out")
    chosen = seq if seq is not None or lengths is not None else _SEQ
    load = Load(1 if batch is None else batch, chosen, lengths, precision or "int8")
    options = {"trials": trials, "seed": seed}
    given = {name: value for name, value in options.items() if value is not None}
    return SpeedSettings(parse_speedups(speedup), load, costs=costs, **given)


def make_family(
    console: Console,
    model: Path,
    data: Path,
    output: Path,
    *,
    asked: SpeedSettings,
    training: PruneConfig | None,
    evaluation: Path | None,
    teacher: Path | None,
    resume: bool,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Make the models and print what came of them; raises MeasurementError where one misses its speed."""
    with console.working() as progress:
        from compactor.speedup.family import prune_to_speed

        result = prune_to_speed(
            model,
            data,
            output,
            asked,
            evaluation=evaluation,
            training=training,
            teacher=teacher,
            resume=resume,
            overwrite=overwrite,
            command=shlex.join(["compactor", *sys.argv[1:]]),
            progress=progress,
        )
    if as_json:
        console.document({"path": str(result.path), "speedup": result.record})
    else:
        _print_family(console, result.record, shown_as=output)
    if result.missed:
        names = ", ".join(member["name"] for member in result.missed)
        raise MeasurementError(
            f"the promised speed is missed by more than {100 * result.record['tolerance']:.0f} %: {names}",
            where=str(output),
            todo="the models are there and usable; try again on a quiet machine",
        )


def _print_family(console: Console, record: dict[str, Any], *, shown_as: Path) -> None:
    name = record["metric"]
    console.line(f"{record['model']}: {record['load_words']}, {record['machine']['cpu_model']}")
    whole = record["whole"]
    rows = [
        ["whole, fp32", "", "", "", *_quality(whole["fp32_metrics"], name)],
        ["whole", "", "1.00", "", *_quality(whole["metrics"], name)],
    ]
    for model in record["models"]:
        found = model["measured"]
        interval = "" if found["low"] is None else f"[{found['low']:.2f}, {found['high']:.2f}]"
        measured = f"{found['speedup']:.2f}{'' if model['kept'] else ' missed'}"
        quality = _quality(model["metrics"], name)
        rows.append([model["name"], f"{model['predicted']:.2f}", measured, interval, *quality])
    console.table(["model", ">predicted", ">measured", "95 %", f">{name or 'metric'}", ">difference"], rows)
    for warning in record["warnings"]:
        console.line(f"warning: {warning}")
    console.heading(f"Written to {shown_as}")
    console.line(f"how it went:  {shown_as / 'speedup.html'}")
    fastest = shown_as / record["models"][-1]["name"]
    console.line(f"make it fast:  compactor export {shlex.quote(str(fastest))} OUT_DIR")


def _quality(metrics: dict[str, Any] | None, name: str | None) -> tuple[str, str]:
    """A metric, and its difference from the whole model's in fp32."""
    found = (metrics or {}).get(name or "")
    if found is None:
        return "", ""
    apart = found["difference"]
    if apart is None:
        return f"{100 * found['value']:.2f} %", ""
    error = "" if apart["se"] is None else f" ± {100 * apart['se']:.2f}"
    return f"{100 * found['value']:.2f} %", f"{100 * apart['value']:+.2f}{error}"
