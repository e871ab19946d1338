"""A run: what it was given, and the folder that it writes.

    OUT/                    config.json, model.safetensors, tokenizer: a stock model with its zeros in place
    OUT/pruning.json        its masks, with pruning.safetensors (``compactor.checkpoint.pruning_record``)
    OUT/training.json       what happened; OUT/training.html shows it
    OUT/run.json            the settings, by which --resume knows that it goes on with the same run
    OUT/checkpoints/        of the ``Trainer``: each a stock model too, with what resuming needs
    OUT/tensorboard/        where TensorBoard is installed
    OUT/first/              of filled and rewind: the run before, the same files

Nothing is written before data, model and teacher have been read and fit.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compactor.checkpoint.config import read_json_object
from compactor.console import Progress
from compactor.errors import OutputError, UsageError
from compactor.trainer.config import PruneConfig
from compactor.trainer.pacing import Pace

CHECKPOINTS = "checkpoints"
FIRST = "first"
_RUN = "run.json"
SCHEMA = 1


@dataclasses.dataclass(frozen=True)
class Run:
    """What ``prune`` was given, checked and turned into paths."""

    model: Path
    data: Path
    evaluation: Path
    out: Path
    config: PruneConfig
    teacher: Path | None
    first_run: Path | None
    resume: bool
    details: bool
    command: str
    progress: Progress
    pace: Pace | None = None
    fills: bool = False  # whether the heads that it leaves are filled by the run after it

    @property
    def identity(self) -> dict[str, Any]:
        """What must be the same for a run to be resumed."""
        return {
            "schema": SCHEMA,
            "model": self.model.name,
            "teacher": None if self.teacher is None else self.teacher.name,
            "first_run": None if self.first_run is None else self.first_run.name,
            "data": self.data.name,
            "evaluation": self.evaluation.name,
            "processes": world_size(),
            "settings": self.config.to_json(),
            **({} if self.pace is None else {"wanted_time": self.pace.wanted}),
        }


def check_folder(run: Run, *, overwrite: bool) -> None:
    """Make sure that ``out`` may be written into. The first process does it: the others would see its work.

    Raises:
        OutputError: It holds something else, or a run that shall neither be resumed nor replaced.
        UsageError: It holds a run with other settings.
    """
    if not is_first_process():
        return
    if run.out.resolve() == run.model.resolve() or run.model.resolve() in run.out.resolve().parents:
        raise UsageError("OUT lies in MODEL", where=str(run.out), todo="choose a folder outside of it")
    if run.out.exists() and not run.out.is_dir():
        raise OutputError("the output folder is a file", where=str(run.out), todo="choose another place")
    if not run.out.is_dir() or not any(run.out.iterdir()):
        return
    state = run.out / _RUN
    if not state.is_file():
        raise OutputError(
            "the output folder holds something that is no run", where=str(run.out), todo="choose another folder"
        )
    if not run.resume and not overwrite:
        raise OutputError(
            "the output folder holds a run", where=str(run.out), todo="pass --resume to go on, or --overwrite"
        )
    before = read_json_object(state)
    if run.resume and before != json.loads(json.dumps(run.identity)):
        raise UsageError(
            f"the run in it has other settings: {_differences(before, run.identity)}",
            where=str(run.out),
            todo="resume with those of the first start, or choose another folder",
        )


def claim_folder(run: Run) -> None:
    """Empty ``out`` of an earlier run that is not resumed, and write down the settings: training is about to begin.

    Raises:
        OutputError: It cannot be written to.
    """
    if not is_first_process():
        return
    try:
        run.out.mkdir(parents=True, exist_ok=True)
        for path in () if run.resume else list(run.out.iterdir()):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        (run.out / _RUN).write_text(json.dumps(run.identity, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(
            f"the output folder cannot be written: {error.strerror}", where=str(run.out), todo="check the path"
        ) from error


def last_checkpoint(run: Run) -> Path | None:
    """The newest whole checkpoint."""
    from compactor.trainer.folders import STATE_FILE

    found = [path for path in (run.out / CHECKPOINTS).glob("checkpoint-*") if (path / "trainer_state.json").is_file()]
    found = [path for path in found if (path / STATE_FILE).is_file()]
    return max(found, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    flat_before = {**before, **before.get("settings", {})}
    flat_now = {**now, **now["settings"]}
    names = [name for name in flat_now if name != "settings" and flat_before.get(name) != flat_now[name]]
    return ", ".join(f"{name} was {flat_before.get(name)!r}" for name in names[:3]) or "another version of compactor"


def is_first_process() -> bool:
    """Whether this process is the one that writes."""
    return int(os.environ.get("RANK", "0")) == 0


def world_size() -> int:
    """How many processes train, as torchrun says."""
    return int(os.environ.get("WORLD_SIZE", "1"))
