"""The folder of a family: may it be written to, is it the same family, and emptying it when the work begins."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compactor.checkpoint.config import read_json_object
from compactor.errors import OutputError, UsageError
from compactor.speedup.settings import SpeedSettings

if TYPE_CHECKING:
    from compactor.trainer.config import PruneConfig

FAMILY = "family.json"  # what was asked for


def identity_of(
    model: Path,
    data: Path,
    evaluation: str | Path | None,
    teacher: str | Path | None,
    settings: SpeedSettings,
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
