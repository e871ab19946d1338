"""``compactor export``: from a masked checkpoint to a verified artefact. Reads top to bottom as the design."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import importlib.metadata
import platform
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from compactor.artefact import ArtefactWriter, Layout
from compactor.checkpoint import Checkpoint, read_checkpoint
from compactor.emission import check_emission
from compactor.errors import UsageError
from compactor.importer import load_model, trace
from compactor.layers import measure_layers, pair_layers
from compactor.manifest import MANIFEST_NAME, SCHEMA_VERSION
from compactor.pipeline import Record, canonicalisation, finishing, lowering, precision_passes, run_passes, structure
from compactor.runtime.verification import Tolerance
from compactor.serialization import write_graph
from compactor.stages import count_operators, describe_masked, describe_stage, macs_per_token
from compactor.targets import choose_precisions, find_target
from compactor.verifying import EXACT, HALF, Candidate, References, int8_tolerance, verify_candidates

_FILES = {"fp32": "model.onnx", "int8": "model_quantized.onnx", "fp16": "model_fp16.onnx"}
_STAGES = {"fp32": "compact", "int8": "int8", "fp16": "fp16"}
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
    target: str = "cpu",
    precision: Sequence[str] | None = None,
    layout: Layout = "hf",
    overwrite: bool = False,
    allow_pickle: bool = False,
    pack: bool | None = None,
    int8_budget: float | None = None,
    progress: Callable[[str], None] | None = None,
) -> ExportResult:
    """Export a masked checkpoint as compact, verified ONNX.

    Args:
        model_dir: A Hugging Face folder with zeros in its weights, a raw nn_pruning folder, or a head-pruned folder.
        out_dir: The artefact's folder; appears complete or not at all.
        task: For example ``text-classification``; None infers it from ``architectures``.
        target: ``cpu``, ``cuda`` or ``portable``.
        precision: Of ``fp32``, ``int8``, ``fp16``; None takes the target's default. fp32 is always written.
        layout: ``hf`` puts graphs into ``onnx/``, ``flat`` beside ``config.json``.
        overwrite: Replace an earlier artefact at ``out_dir``.
        allow_pickle: Also read ``pytorch_model.bin``, with ``weights_only``.
        pack: Token packing; None takes the target's default.
        int8_budget: Fail when int8 differs from the masked model by more than this share of the largest output.
        progress: Called with a line at each step.

    Raises:
        UsageError: The arguments contradict each other.
        ModelDirectoryError: The checkpoint is damaged, unsafe or not supported.
        VerificationError: The compact graph's numbers differ; nothing was published.
        OutputError: ``out_dir`` exists, or the disk refused.
    """
    say = progress or (lambda _: None)
    chosen = find_target(target)
    precisions = choose_precisions(chosen, precision)
    packs = chosen.packs if pack is None else pack
    if int8_budget is not None and not 0 <= int8_budget < 1:
        raise UsageError(
            f"the int8 budget is {int8_budget}", todo="give a share of the largest output, from 0 to below 1"
        )
    with (
        ArtefactWriter(out_dir, overwrite=overwrite, layout=layout, source=model_dir) as writer,
        tempfile.TemporaryDirectory(prefix="compactor-") as scratch,
    ):
        say("reading the checkpoint")
        checkpoint = read_checkpoint(model_dir, allow_pickle=allow_pickle)
        loaded = load_model(checkpoint, task)
        checkpoint.tensors.clear()  # the model owns them now

        say("running the masked model in PyTorch, for reference")
        references = References(loaded.cases, loaded.run, Path(scratch))
        say("tracing")
        graph = trace(loaded)
        job = loaded.task
        del loaded

        say("removing what cannot change the output")
        record = Record()
        run_passes(graph, canonicalisation(), record)
        stages, before = [describe_masked(graph)], measure_layers(graph)
        run_passes(graph, structure(), record)
        layers, macs = pair_layers(before, measure_layers(graph)), macs_per_token(graph)
        attentions = sum(node.op_type == "Attention" for node in graph.graph)
        run_passes(graph, lowering(target, job, pack=packs), record)
        gc.collect()  # the masked weights

        candidates, quantized = [], {}
        for name in precisions:
            say(f"writing {name}")
            model = graph.clone()
            emitted = Record()
            run_passes(model, [*precision_passes(name, target), *finishing()], emitted)
            path = writer.model_path(_FILES[name])
            model.producer_name, model.producer_version = "compactor", importlib.metadata.version("compactor")
            write_graph(model, path)
            stages.append(describe_stage(_STAGES[name], model, path, writer.directory, macs=macs))
            candidates.append(Candidate(_STAGES[name], path, _tolerance(name, int8_budget)))
            quantized[_STAGES[name]] = emitted.count("int8-linear")
            record.add(emitted)
        opset = model.opset_imports[""]
        del graph, model
        gc.collect()

        say("checking what ONNX Runtime makes of it")
        for stage, candidate in zip(stages[1:], candidates, strict=True):
            count_operators(stage, candidate.path)
            check_emission(stage, target=target, attentions=attentions, quantized=quantized[candidate.stage])

        say("verifying against the masked model")
        verification = verify_candidates(references, candidates)
        manifest = {
            "schema": SCHEMA_VERSION,
            "source": _source(checkpoint),
            "versions": _versions(),
            "task": job.name,
            "target": target,
            "recipe": {
                "precision": list(precisions),
                "layout": layout,
                "pack": record.count("packed-operator") > 0,
                "passes": record.passes,
                "opset": opset,
            },
            "layers": layers,
            "stages": stages,
            "rules": record.rules,
            "refused": record.refused,
            "verification": verification,
        }
        writer.copy_companions(
            checkpoint.path,
            _config(checkpoint, target),
            model_folder=checkpoint.model_path,
            allow_pickle=allow_pickle,
        )
        writer.write_manifest(manifest)
        return ExportResult(writer.publish(), manifest)


def _tolerance(precision: str, int8_budget: float | None) -> Tolerance | None:
    """fp32 must agree; int8 within its budget, where one is stated; fp16 within its own rounding."""
    if precision == "int8":
        return int8_tolerance(int8_budget)
    return EXACT if precision == "fp32" else HALF


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
