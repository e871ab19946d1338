"""``--layout triton``: an artefact becomes a model repository of NVIDIA's Triton Inference Server.

    OUT_DIR/compactor.json, config.json, tokenizer.json ...   for the client, which tokenises; and still an artefact
    OUT_DIR/NAME/config.pbtxt                                  the model, as Triton sees it
    OUT_DIR/NAME/1/model.onnx                                  its most compact graph, or the one that was asked for

Triton takes every folder of a repository for a model, and every folder of a model whose name begins with a digit for a
version of it; ``1_Pooling`` of sentence-transformers would be both. So nothing but the model's folder is a folder, and
such modules lie inside of its version. Files it ignores.

One graph, because Triton would load several at once, each with threads of its own.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from compactor.checkpoint.config import read_json_object
from compactor.companions.copying import copy_companions
from compactor.errors import UsageError, VerificationError
from compactor.exporting.layouts import Layout, LayoutName
from compactor.exporting.recipe import Recipe
from compactor.manifest import artefact_file_problems, load_manifest
from compactor.runtime.artefacts import PRECISIONS
from compactor.runtime.threads import explain_threads
from compactor.runtime.triton import VERSION, Settings, is_model_name, write_model
from compactor.tasks import Task, find_task

_MODULES = "modules.json"  # of sentence-transformers


@dataclasses.dataclass(frozen=True)
class Repository(Layout):
    """A model repository; None leaves a choice here.

    Attributes:
        model_name: The model's name, else that of the checkpoint's folder.
        threads: Of one operator, else one for each usable core of this machine.
        precision: The most compact of them is served, else that of the artefact.

    Raises:
        UsageError: The name or the number of threads cannot be.
    """

    name: LayoutName = "triton"
    model_name: str | None = None
    threads: int | None = None
    precision: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise UsageError(f"{self.threads} threads run nothing", todo="give at least one")
        if self.model_name is not None:
            _check_name(self.model_name)  # before an hour's work, not after it

    def accept(self, task: Task, where: Path) -> None:
        """Raises UsageError for an encoder-decoder: a repository's model is one graph, which answers in one pass."""
        if task.generates:
            raise UsageError(
                "an encoder-decoder has three graphs that take turns, and Triton's onnxruntime backend runs one",
                where=str(where),
                todo="export it with --layout hf, for 'compactor serve' or compactor.runtime.load",
            )

    def copy(self, artefact: Path, directory: Path, recipe: Recipe, say: Callable[[str], None]) -> dict[str, Any]:
        """Fill ``directory`` with what a repository needs of an earlier artefact, and return its manifest.

        Raises:
            ModelDirectoryError: The manifest or a companion is damaged.
            UsageError: It is an encoder-decoder, has no such precision, or was asked for what only a compiler can do.
            VerificationError: A model file has changed since it was exported.
        """
        for option in recipe.stated():
            raise UsageError(
                f"--{option.replace('_', '-')} is for a checkpoint, and this folder was exported already",
                where=str(artefact),
                todo="leave the option, or give the checkpoint",
            )
        say("copying the artefact")
        manifest = load_manifest(artefact)
        self.accept(find_task(manifest["task"], {}, where=str(artefact)), artefact)
        problems = artefact_file_problems(manifest, artefact)
        if problems:
            raise VerificationError(
                f"the artefact was changed: {problems[0]}",
                where=str(artefact),
                todo="export the model again, with --overwrite",
            )
        file = self._choose(manifest, artefact)["file"]
        graph = directory / file
        graph.parent.mkdir(parents=True, exist_ok=True)
        for name in (graph.name, f"{graph.name}_data"):
            source = (artefact / file).with_name(name)
            if source.is_file():
                shutil.copyfile(source, graph.with_name(name))
        config = read_json_object(artefact / "config.json")
        copy_companions(artefact, directory, config, allow_pickle=recipe.allow_pickle)
        return manifest

    def arrange(self, directory: Path, manifest: dict[str, Any]) -> dict[str, Any]:
        """Turn the artefact in ``directory``, which is under construction, into a repository.

        Returns:
            Its manifest: the graph's new place, and none for the graphs that were verified and not kept.

        Raises:
            ArtefactError: Triton could not run the graph.
            UsageError: The name is none for a model, or the artefact has no such precision.
        """
        name = self._choose_name(directory, manifest)
        chosen = self._choose(manifest, directory)
        served = directory / ".served"  # in whose place the folders that are left over cannot be
        graph = write_model(directory / chosen["file"], served, name, _settings(manifest["target"], self.threads))
        _move_modules(directory, served / VERSION / "modules", f"{name}/{VERSION}/modules")
        for rest in directory.iterdir():
            if rest.is_dir() and rest != served:
                shutil.rmtree(rest)
        served.rename(directory / name)

        graph = directory / name / graph.relative_to(served)
        data = graph.with_name(f"{graph.name}_data")
        size = graph.stat().st_size + (data.stat().st_size if data.is_file() else 0)
        kept = {**chosen, "file": graph.relative_to(directory).as_posix(), "bytes": size}
        return {
            **manifest,
            "recipe": {**manifest["recipe"], "layout": self.name},
            "stages": [kept if stage is chosen else {**stage, "file": None} for stage in manifest["stages"]],
        }

    def _choose_name(self, directory: Path, manifest: dict[str, Any]) -> str:
        name: str = manifest["source"]["path_name"] if self.model_name is None else self.model_name
        _check_name(name)
        if (directory / name).is_file():
            raise UsageError(f"a file of the repository is called '{name}' already", todo="pass another --model-name")
        return name

    def _choose(self, manifest: dict[str, Any], where: Path) -> dict[str, Any]:
        """The stage to serve."""
        stages = {PRECISIONS[stage["name"]]: stage for stage in manifest["stages"] if stage["file"] is not None}
        asked = set(self.precision or stages)
        for precision in asked - set(stages):
            raise UsageError(
                f"the artefact holds no {precision} graph",
                where=str(where),
                todo=f"choose from: {', '.join(stages)}; or export the checkpoint again",
            )
        return next(stage for precision, stage in reversed(stages.items()) if precision in asked)


def _check_name(name: str) -> None:
    if not is_model_name(name):
        raise UsageError(
            f"'{name}' cannot be the name of a Triton model",
            where="it is a folder, a part of the model's URL and a label of its metrics",
            todo="pass --model-name: letters, digits, '.', '_' and '-', the first a letter or digit",
        )


def _settings(target: str, threads: int | None) -> Settings:
    if target == "cuda" and threads is None:
        return Settings(1, "What is left to the CPU is little", gpu=True)
    plan = explain_threads(threads)
    reason = plan.reason if threads is not None else f"On the machine that wrote this: {plan.reason}"
    return Settings(plan.threads, reason[0].upper() + reason[1:], gpu=target == "cuda")


def _move_modules(folder: Path, home: Path, name: str) -> None:
    """Move the folders that ``modules.json`` names to ``home``, which is called ``name`` from ``folder``."""
    path = folder / _MODULES
    if not path.is_file():
        return
    modules = json.loads(path.read_text(encoding="utf-8"))
    for module in modules:
        if module.get("path"):
            home.mkdir(parents=True, exist_ok=True)
            last = PurePosixPath(module["path"]).name
            (folder / module["path"]).rename(home / last)
            module["path"] = f"{name}/{last}"
    path.write_text(json.dumps(modules, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
