"""How an artefact's folder is laid out: ``hf`` and ``flat``. ``triton.py`` has the third."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from compactor.errors import UsageError
from compactor.exporting.recipe import Recipe
from compactor.tasks import Task

LayoutName = Literal["hf", "flat", "triton"]


@dataclasses.dataclass(frozen=True)
class Layout:
    """The layouts that a model is written in: ``hf`` puts graphs into ``onnx/``, ``flat`` beside ``config.json``."""

    name: LayoutName

    def graphs(self, directory: Path) -> Path:
        """The folder for graphs in the artefact ``directory``; it exists."""
        folder = directory if self.name == "flat" else directory / "onnx"
        folder.mkdir(exist_ok=True)
        return folder

    def accept(self, task: Task, where: Path) -> None:
        """Raises UsageError where models for ``task`` have no such layout."""

    def copy(self, artefact: Path, directory: Path, recipe: Recipe, say: Callable[[str], None]) -> dict[str, Any]:
        """Fill ``directory`` with what this layout needs of an earlier artefact, and return its manifest.

        Raises:
            UsageError: It has this layout, or one that is as good.
        """
        raise UsageError(
            "this folder was exported already",
            where=str(artefact),
            todo="pass --layout triton to make a Triton repository of it, or give the checkpoint",
        )

    def arrange(self, directory: Path, manifest: dict[str, Any]) -> dict[str, Any]:
        """Turn the complete artefact in ``directory`` into this layout, and return its manifest."""
        return manifest
