"""From a checkpoint to an artefact: read, refuse what is not built, build, add what goes with the graphs, try it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.metadata
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

from compactor.checkpoint import Checkpoint, read_checkpoint
from compactor.companions.copying import copy_companions
from compactor.companions.generation_settings import check_generation_settings
from compactor.companions.image_processor import read_image_processor
from compactor.companions.routes import take_route
from compactor.companions.sentence_modules import read_sentences
from compactor.companions.tokenizer import read_tokenizer
from compactor.errors import UsageError
from compactor.evaluation.inputs import InputSpec
from compactor.exporting.building import Built, Job, build
from compactor.exporting.calibration import Calibration, read_calibration
from compactor.exporting.layouts import Layout
from compactor.exporting.recipe import Recipe
from compactor.exporting.trying import try_answers
from compactor.importing.sentence_vectors import require_vectors, with_vectors
from compactor.manifest import MANIFEST_NAME, SCHEMA_VERSION, write_manifest
from compactor.runtime.sentences import Roles, SentenceSettings
from compactor.tasks import Task, find_task

_PACKAGES = ("compactor", "numpy", "onnx", "onnx-ir", "onnxruntime", "onnxruntime-gpu", "torch", "transformers")


def compile_checkpoint(
    model_dir: Path, recipe: Recipe, layout: Layout, directory: Path, scratch: Path, say: Callable[[str], None]
) -> dict[str, Any]:
    """Compile the checkpoint in ``model_dir``.

    Args:
        model_dir: The model directory.
        recipe: What is asked for.
        layout: Where graphs go, and which models it takes.
        directory: The artefact's folder, under construction.
        scratch: A folder for what is not kept.
        say: Called with a line at each step.

    Returns:
        The manifest, which lies in the folder as well.

    Raises:
        ModelDirectoryError: The checkpoint is damaged, unsafe or not supported.
        UsageError: The recipe asks for what this checkpoint has not.
        VerificationError: The compact graph's numbers differ.
    """
    say("reading the checkpoint")
    checkpoint = read_checkpoint(take_route(model_dir, recipe.route, scratch), allow_pickle=recipe.allow_pickle)
    home = checkpoint.model_path
    modules = scratch / ".modules"
    sentences = read_sentences(checkpoint, modules, task=recipe.task, allow_pickle=recipe.allow_pickle)
    asked = recipe.task if sentences is None else sentences.task
    task = find_task(asked, checkpoint.config, where=str(checkpoint.path))
    packs = recipe.packs and not _looks_at_masked_tokens(home, sentences, recipe.pack)

    # What is not built is refused before the work.
    layout.accept(task, checkpoint.path)
    tokenizer = read_tokenizer(home, task, root=checkpoint.path)
    images = read_image_processor(home) if task.image else None
    if task.generates:
        check_generation_settings(checkpoint)
    elif recipe.decoder is not None:
        raise UsageError(f"a model for {task.name} has no decoder", where=str(checkpoint.path), todo="leave --decoder")
    vectors = None
    if recipe.embed:
        settings = require_vectors(sentences, checkpoint.path)
        vectors = functools.partial(with_vectors, folder=modules, settings=settings)

    calibration = _calibration(checkpoint, task, recipe)

    job = Job(checkpoint, task, recipe, packs, directory, layout.graphs(directory), scratch, say, calibration, vectors)
    built = build(job)
    copy_companions(
        checkpoint.path,
        directory,
        _config(checkpoint, recipe.chosen_target.name),
        model_folder=home,
        tokenizer=tokenizer,
        images=images,
        max_tokens=built.max_tokens,
        allow_pickle=recipe.allow_pickle,
    )
    manifest = _manifest(checkpoint, task.name, recipe, layout, built)
    write_manifest(directory, manifest)
    say("answering texts with it")
    try_answers(directory, tokenizer, task, where=str(home))
    return manifest


def _calibration(checkpoint: Checkpoint, task: Task, recipe: Recipe) -> Calibration | None:
    """What int8 is chosen by, where that is asked for. Raises UsageError where it cannot be."""
    if recipe.kept_share is None:
        return None
    if task.generates:
        raise UsageError(
            "int8 is chosen layer by layer for encoders alone",
            where=str(checkpoint.path),
            todo="leave --calibrate and --keep",
        )
    if task.image and recipe.calibrate is not None:
        raise UsageError(
            "this model takes images, and no texts", where=str(checkpoint.path), todo="leave --calibrate, not --keep"
        )
    spec = InputSpec.from_config(
        checkpoint.config, task=task.name, folder=checkpoint.model_path, image=bool(task.image)
    )
    return read_calibration(recipe.calibrate, spec)


def _looks_at_masked_tokens(folder: Path, sentences: SentenceSettings | None, pack: bool | None) -> bool:
    """Whether answers need the states of tokens that the model itself does not look at, which packing leaves out.

    Raises:
        UsageError: They do, and packing is asked for.
    """
    expansion = Roles.read(folder, sentences).expansion
    needed = expansion is not None and not expansion.attend
    if needed and pack:
        raise UsageError(
            "--pack leaves out the tokens that 'query_expansion' adds, and they have vectors of their own",
            where=str(folder),
            todo="leave --pack",
        )
    return needed


def _manifest(checkpoint: Checkpoint, task: str, recipe: Recipe, layout: Layout, built: Built) -> dict[str, Any]:
    return {
        "schema": SCHEMA_VERSION,
        "source": {
            "path_name": checkpoint.path.resolve().name,
            "format": checkpoint.format,
            "files": [dataclasses.asdict(file) for file in checkpoint.files],
            "notes": list(checkpoint.notes),
        },
        "versions": _versions(),
        "task": task,
        "target": recipe.chosen_target.name,
        "recipe": {
            "precision": list(recipe.precisions),
            "layout": layout.name,
            "pack": built.record.count("packed-operator") > 0,
            "passes": built.record.passes,
            "opset": built.opset,
            **({"embed": True} if recipe.embed else {}),
            **({"decoder": recipe.decoder} if recipe.merges else {}),
        },
        "layers": built.layers,
        "unrecognised": built.unrecognised,
        "stages": built.stages,
        **({"weights": built.weights} if built.weights else {}),
        **({"ledger": built.ledger} if built.ledger else {}),
        "rules": built.record.rules,
        "refused": built.record.refused,
        "verification": built.verification,
    }


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def _config(checkpoint: Checkpoint, target: str) -> dict[str, Any]:
    """The original config plus a note of what the graphs are; consumers ignore keys they do not know."""
    note = {"version": importlib.metadata.version("compactor"), "target": target, "manifest": MANIFEST_NAME}
    return {**checkpoint.config, "compactor": note}
