"""Ray workers that die, at the worst moment: they have answered a chunk, and nobody knows it yet.

They are here, and not in the test, because their processes import them by name.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compactor.predicting.on_ray import Worker

CHUNK = 3


class DiesOnce(Worker):
    """Of its kind one dies, killed by the system: the first to have chunk 3."""

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        answered = super().__call__(row)
        note = self._job.source.path.with_name("died")
        if answered["number"] == CHUNK and not note.exists():
            note.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGKILL)
        return answered


class Mortal(Worker):
    """Notes its process and what it answered, in the folder of the input."""

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        answered = super().__call__(row)
        with _notes(self._job.source.path).open("a") as file:
            file.write(f"{os.getpid()} {answered['number']}\n")
        return answered


class AlwaysDies(Worker):
    """Dies whenever it gets chunk 3."""

    retries = 1

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        answered = super().__call__(row)
        if answered["number"] == CHUNK and not answered["error"]:
            os.kill(os.getpid(), signal.SIGKILL)
        return answered


def _notes(source: Path) -> Path:
    return source.with_name("notes")
