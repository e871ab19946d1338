"""``compactor export``: from a masked checkpoint to a verified artefact. Reads top to bottom as the design.

Of an artefact it makes a Triton repository without compiling anything again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.metadata
import platform
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from compactor.checkpoint import Checkpoint, read_checkpoint
from compactor.companions.image_processor import write_image_processor
from compactor.companions.routes import take_route
from compactor.companions.sentence_modules import read_sentences
from compactor.companions.tokenizer import read_tokenizer
from compactor.errors import UsageError
from compactor.exporting import triton
from compactor.exporting.artefact import ArtefactWriter, Layout, is_artefact
from compactor.exporting.building import Job, build_encoder
from compactor.exporting.building_decoders import build_encoder_decoder
from compactor.exporting.targets import choose_precisions, find_target
from compactor.exporting.trying import try_answers
from compactor.importing.sentence_vectors import refuse_embedding, with_vectors
from compactor.manifest import MANIFEST_NAME, SCHEMA_VERSION
from compactor.runtime.sentences import Roles, SentenceSettings
from compactor.tasks import find_task

_PACKAGES = ("compactor", "numpy", "onnx", "onnx-ir", "onnxruntime", "onnxruntime-gpu", "torch", "transformers")


@dataclasses.dataclass(frozen=True)
class ExportResult:
    """Where the artefact is, and its manifest (``compactor.json``)."""

    path: Path
    manifest: dict[str, Any]


def export(
    model_dir: str | Path,
    out_dir: str | Path,
    *,
    task: str | None = None,
    target: str | None = None,
    precision: Sequence[str] | None = None,
    layout: Layout = "hf",
    overwrite: bool = False,
    allow_pickle: bool = False,
    pack: bool | None = None,
    int8_budget: float | None = None,
    model_name: str | None = None,
    threads: int | None = None,
    route: str | None = None,
    embed: bool = False,
    progress: Callable[[str], None] | None = None,
) -> ExportResult:
    """Export a masked checkpoint as compact, verified ONNX.

    Args:
        model_dir: A Hugging Face folder with zeros in its weights, a raw nn_pruning folder, or a head-pruned folder.
            With the layout ``triton`` also an earlier artefact, which is not compiled again.
        out_dir: The artefact's folder; appears complete or not at all.
        task: For example ``text-classification``; None infers it from ``architectures``.
        target: ``cpu`` (None), ``cuda`` or ``portable``.
        precision: Of ``fp32``, ``int8``, ``fp16``; None takes the target's default. fp32 is always written.
        layout: ``hf`` puts graphs into ``onnx/``, ``flat`` beside ``config.json``; ``triton`` makes a model repository
            that holds the most compact of the precisions.
        overwrite: Replace an earlier artefact at ``out_dir``.
        allow_pickle: Also read ``pytorch_model.bin``, with ``weights_only``.
        pack: Token packing; None takes the target's default.
        int8_budget: Fail when int8 differs from the masked model by more than this share of the largest output.
        model_name: In a Triton repository; None takes the name of the checkpoint's folder.
        threads: Of one operator, in a Triton repository; None takes this machine's usable cores.
        route: Of a Router of sentence-transformers, which of its chains of modules.
        embed: Put pooling and the other modules of a sentence-transformers folder into the graph, whose second output
            is then ``sentence_embedding``.
        progress: Called with a line at each step.

    Raises:
        UsageError: The arguments contradict each other.
        ModelDirectoryError: The checkpoint is damaged, unsafe or not supported.
        VerificationError: The compact graph's numbers differ; nothing was published.
        OutputError: ``out_dir`` exists, or the disk refused.
    """
    say = progress or (lambda _: None)
    if layout != triton.LAYOUT and (model_name is not None or threads is not None):
        raise UsageError("a model name and threads are told to Triton only", todo="pass --layout triton, or leave them")
    if threads is not None and threads < 1:
        raise UsageError(f"{threads} threads run nothing", todo="give at least one")
    if is_artefact(model_dir):
        compiled = {"task": task, "target": target, "pack": pack, "int8_budget": int8_budget, "route": route}
        compiled["embed"] = embed or None
        _refuse_compiling_again(model_dir, layout, [name for name, value in compiled.items() if value is not None])
        request = triton.Request(model_name, threads, precision)
        with ArtefactWriter(out_dir, overwrite=overwrite, layout=layout, source=model_dir) as writer:
            say("copying the artefact")
            manifest = triton.copy_artefact(Path(model_dir), writer, request, allow_pickle=allow_pickle)
            manifest = triton.arrange(writer.directory, manifest, request)
            writer.write_manifest(manifest)
            return ExportResult(writer.publish(), manifest)

    chosen = find_target(target or "cpu")
    precisions = choose_precisions(chosen, precision)
    packs = chosen.packs if pack is None else pack
    if int8_budget is not None and not 0 <= int8_budget < 1:
        raise UsageError(
            f"the int8 budget is {int8_budget}", todo="give a share of the largest output, from 0 to below 1"
        )
    if layout == triton.LAYOUT:
        triton.check_name(model_name or Path(model_dir).resolve().name)  # before an hour's work, not after it
    with (
        ArtefactWriter(out_dir, overwrite=overwrite, layout=layout, source=model_dir) as writer,
        tempfile.TemporaryDirectory(prefix="compactor-") as scratch,
    ):
        say("reading the checkpoint")
        checkpoint = read_checkpoint(take_route(Path(model_dir), route, Path(scratch)), allow_pickle=allow_pickle)
        modules = Path(scratch, ".modules")
        sentences = read_sentences(checkpoint, modules, task=task, allow_pickle=allow_pickle)
        task = sentences.task if sentences is not None else task
        found = find_task(task, checkpoint.config, where=str(checkpoint.path))
        packs = packs and not _looks_at_masked_tokens(checkpoint.model_path, sentences, pack)
        if layout == triton.LAYOUT:
            triton.refuse_generation(found.name, checkpoint.path)
        tokenizer = read_tokenizer(checkpoint.model_path, found, root=checkpoint.path)
        if found.image:
            write_image_processor(checkpoint.model_path, Path(scratch))  # what is not built is refused before the work
        vectors = None
        if embed:
            refuse_embedding(sentences, checkpoint.path)
            assert sentences is not None
            vectors = functools.partial(with_vectors, folder=modules, settings=sentences)
        job = Job(checkpoint, found, chosen.name, precisions, packs, int8_budget, writer, Path(scratch), say, vectors)
        built = build_encoder_decoder(job) if found.generates else build_encoder(job)
        manifest = {
            "schema": SCHEMA_VERSION,
            "source": _source(checkpoint),
            "versions": _versions(),
            "task": found.name,
            "target": chosen.name,
            "recipe": {
                "precision": list(precisions),
                "layout": layout,
                "pack": built.record.count("packed-operator") > 0,
                "passes": built.record.passes,
                "opset": built.opset,
                **({"embed": True} if embed else {}),
            },
            "layers": built.layers,
            "stages": built.stages,
            **({"weights": built.weights} if built.weights else {}),
            "rules": built.record.rules,
            "refused": built.record.refused,
            "verification": built.verification,
        }
        writer.copy_companions(
            checkpoint.path,
            _config(checkpoint, chosen.name),
            model_folder=checkpoint.model_path,
            tokenizer=tokenizer,
            max_tokens=built.max_tokens,
            allow_pickle=allow_pickle,
        )
        writer.write_manifest(manifest)
        say("answering texts with it")
        try_answers(writer.directory, tokenizer, found, where=str(checkpoint.model_path))
        if layout == triton.LAYOUT:
            manifest = triton.arrange(writer.directory, manifest, triton.Request(model_name, threads))
        writer.write_manifest(manifest)
        return ExportResult(writer.publish(), manifest)


def _refuse_compiling_again(artefact: str | Path, layout: Layout, options: Sequence[str]) -> None:
    if layout != triton.LAYOUT:
        raise UsageError(
            "this folder was exported already",
            where=str(artefact),
            todo="pass --layout triton to make a Triton repository of it, or give the checkpoint",
        )
    if options:
        raise UsageError(
            f"--{options[0].replace('_', '-')} is for a checkpoint, and this folder was exported already",
            where=str(artefact),
            todo="leave the option, or give the checkpoint",
        )


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


def _source(checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "path_name": checkpoint.path.resolve().name,
        "format": checkpoint.format,
        "files": [dataclasses.asdict(file) for file in checkpoint.files],
        "notes": list(checkpoint.notes),
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
