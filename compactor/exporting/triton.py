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
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from compactor.checkpoint.config import read_json_object
from compactor.errors import UsageError, VerificationError
from compactor.exporting.artefact import ArtefactWriter
from compactor.manifest import artefact_file_problems, load_manifest
from compactor.runtime.artefacts import PRECISIONS
from compactor.runtime.threads import explain_threads
from compactor.runtime.triton import VERSION, Settings, is_model_name, write_model
from compactor.tasks import GENERATION

LAYOUT = "triton"

_MODULES = "modules.json"  # of sentence-transformers


@dataclasses.dataclass(frozen=True)
class Request:
    """What was asked for; None leaves the choice here.

    Attributes:
        name: The model's name, else that of the checkpoint's folder.
        threads: Of one operator, else one for each usable core of this machine.
        precision: The most compact of them is served, else that of the artefact.
    """

    name: str | None = None
    threads: int | None = None
    precision: Sequence[str] | None = None


def check_name(name: str) -> None:
    """Raise UsageError where ``name`` cannot be a model's."""
    if not is_model_name(name):
        raise UsageError(
            f"'{name}' cannot be the name of a Triton model",
            where="it is a folder, a part of the model's URL and a label of its metrics",
            todo="pass --model-name: letters, digits, '.', '_' and '-', the first a letter or digit",
        )


def refuse_generation(task: str, where: str | Path) -> None:
    """Raise UsageError for an encoder-decoder: a repository's model is one graph, which answers in one pass."""
    if task == GENERATION:
        raise UsageError(
            "an encoder-decoder has three graphs that take turns, and Triton's onnxruntime backend runs one",
            where=str(where),
            todo="export it with --layout hf, for 'compactor serve' or compactor.runtime.load",
        )


def copy_artefact(
    artefact: Path, writer: ArtefactWriter, request: Request, *, allow_pickle: bool = False
) -> dict[str, Any]:
    """Copy into the folder under construction what a repository needs of ``artefact``.

    Returns:
        The manifest of what was copied.

    Raises:
        ModelDirectoryError: The manifest or a companion is damaged.
        UsageError: It is an encoder-decoder, or has no such precision.
        VerificationError: A model file has changed since it was exported.
    """
    manifest = load_manifest(artefact)
    refuse_generation(manifest["task"], artefact)
    problems = artefact_file_problems(manifest, artefact)
    if problems:
        raise VerificationError(
            f"the artefact was changed: {problems[0]}",
            where=str(artefact),
            todo="export the model again, with --overwrite",
        )
    file = _choose(manifest, request, artefact)["file"]
    graph = writer.directory / file
    graph.parent.mkdir(parents=True, exist_ok=True)
    for name in (graph.name, f"{graph.name}_data"):
        source = (artefact / file).with_name(name)
        if source.is_file():
            shutil.copyfile(source, graph.with_name(name))
    writer.copy_companions(artefact, read_json_object(artefact / "config.json"), allow_pickle=allow_pickle)
    return manifest


def arrange(folder: Path, manifest: dict[str, Any], request: Request) -> dict[str, Any]:
    """Turn the artefact in ``folder``, which is under construction, into a repository.

    Returns:
        Its manifest: the graph's new place, and none for the graphs that were verified and not kept.

    Raises:
        ArtefactError: Triton could not run the graph.
        UsageError: The name is none for a model, or the artefact has no such precision.
    """
    name = _choose_name(folder, manifest, request)
    chosen = _choose(manifest, request, folder)
    served = folder / ".served"  # in whose place the folders that are left over cannot be
    graph = write_model(folder / chosen["file"], served, name, _settings(manifest["target"], request.threads))
    _move_modules(folder, served / VERSION / "modules", f"{name}/{VERSION}/modules")
    for rest in folder.iterdir():
        if rest.is_dir() and rest != served:
            shutil.rmtree(rest)
    served.rename(folder / name)

    graph = folder / name / graph.relative_to(served)
    data = graph.with_name(f"{graph.name}_data")
    size = graph.stat().st_size + (data.stat().st_size if data.is_file() else 0)
    kept = {**chosen, "file": graph.relative_to(folder).as_posix(), "bytes": size}
    return {
        **manifest,
        "recipe": {**manifest["recipe"], "layout": LAYOUT},
        "stages": [kept if stage is chosen else {**stage, "file": None} for stage in manifest["stages"]],
    }


def _choose_name(folder: Path, manifest: dict[str, Any], request: Request) -> str:
    name: str = manifest["source"]["path_name"] if request.name is None else request.name
    check_name(name)
    if (folder / name).is_file():
        raise UsageError(f"a file of the repository is called '{name}' already", todo="pass another --model-name")
    return name


def _choose(manifest: dict[str, Any], request: Request, where: Path) -> dict[str, Any]:
    """The stage to serve."""
    stages = {PRECISIONS[stage["name"]]: stage for stage in manifest["stages"] if stage["file"] is not None}
    asked = set(request.precision or stages)
    for precision in asked - set(stages):
        raise UsageError(
            f"the artefact holds no {precision} graph",
            where=str(where),
            todo=f"choose from: {', '.join(stages)}; or export the checkpoint again",
        )
    return next(stage for precision, stage in reversed(stages.items()) if precision in asked)


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
