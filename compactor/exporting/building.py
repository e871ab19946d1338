"""Build what an artefact holds of a model with one graph: trace, compact, lower, write, verify."""

from __future__ import annotations

import dataclasses
import gc
import importlib.metadata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir

from compactor.checkpoint import Checkpoint
from compactor.exporting.artefact import ArtefactWriter
from compactor.exporting.emission import check_emission
from compactor.exporting.layers import measure_layers, pair_layers
from compactor.exporting.serialization import write_graph
from compactor.exporting.stages import count_operators, describe_masked, describe_stage, macs_per_token
from compactor.exporting.verifying import EXACT, HALF, Candidate, References, int8_tolerance, verify_candidates
from compactor.importing.encoder import LoadedModel, load_model, trace
from compactor.passes.pipeline import (
    Record,
    canonicalisation,
    finishing,
    lowering,
    precision_passes,
    run_passes,
    structure,
)
from compactor.runtime.decoding import SUFFIXES
from compactor.runtime.verification import Tolerance
from compactor.tasks import Task

STAGES = {"fp32": "compact", "int8": "int8", "fp16": "fp16"}


@dataclasses.dataclass(frozen=True)
class Job:
    """One export.

    Attributes:
        checkpoint: What was read. Its tensors move into the model.
        task: What the model is exported for.
        target: Where it shall run.
        precisions: fp32 first.
        packs: Whether token-wise work shall run on real tokens only.
        int8_budget: What int8 may differ by, as a share of the largest output.
        writer: Where graphs go.
        scratch: A folder for what is not kept.
        say: Called with a line at each step.
        vectors: Puts what makes a text's vector behind the model; None leaves it as it is.
    """

    checkpoint: Checkpoint
    task: Task
    target: str
    precisions: tuple[str, ...]
    packs: bool
    int8_budget: float | None
    writer: ArtefactWriter
    scratch: Path
    say: Callable[[str], None]
    vectors: Callable[[LoadedModel], LoadedModel] | None = None

    def tolerance(self, precision: str) -> Tolerance | None:
        """fp32 must agree; int8 within its budget, where one is stated; fp16 within its own rounding."""
        if precision == "int8":
            return int8_tolerance(self.int8_budget)
        return EXACT if precision == "fp32" else HALF


@dataclasses.dataclass(frozen=True)
class Built:
    """What the manifest says of it, by the manifest's names; ``weights`` are files that several graphs share.

    ``max_tokens`` is how many tokens the model takes; None where nothing limits them, and for images.
    """

    layers: list[dict[str, Any]]
    stages: list[dict[str, Any]]
    record: Record
    verification: dict[str, Any]
    opset: int
    max_tokens: int | None
    weights: list[dict[str, Any]] = dataclasses.field(default_factory=list)


def build_encoder(job: Job) -> Built:
    """A model with one graph.

    Raises:
        ModelDirectoryError: The model cannot be built or traced.
        VerificationError: A graph's numbers differ, or ONNX Runtime runs other operators than were meant.
    """
    loaded = load_model(job.checkpoint, job.task.name)
    job.checkpoint.tensors.clear()  # the model owns them now
    loaded = loaded if job.vectors is None else job.vectors(loaded)

    job.say("running the masked model in PyTorch, for reference")
    references = References(loaded.cases, loaded.run, job.scratch)
    job.say("tracing")
    graph = trace(loaded)
    max_tokens = loaded.max_tokens
    del loaded

    job.say("removing what cannot change the output")
    record = Record()
    run_passes(graph, canonicalisation(), record)
    stages, before = [describe_masked(graph)], measure_layers(graph)
    run_passes(graph, structure(), record)
    layers, macs = pair_layers(before, measure_layers(graph)), macs_per_token(graph)
    attentions = count_attentions(graph)
    run_passes(graph, lowering(job.target, job.task, pack=job.packs), record)
    gc.collect()  # the masked weights

    candidates, quantized = [], {}
    for name in job.precisions:
        job.say(f"writing {name}")
        model = graph.clone()
        emitted = Record()
        run_passes(model, [*precision_passes(name, job.target), *finishing()], emitted)
        path = job.writer.model_path(f"model{SUFFIXES[name]}.onnx")
        sign(model)
        write_graph(model, path)
        stages.append(describe_stage(STAGES[name], model, path, job.writer.directory, macs=macs))
        candidates.append(Candidate(STAGES[name], path, job.tolerance(name)))
        quantized[STAGES[name]] = emitted.count("int8-linear")
        record.add(emitted)
    opset = model.opset_imports[""]
    del graph, model
    gc.collect()

    job.say("checking what ONNX Runtime makes of it")
    for stage, candidate in zip(stages[1:], candidates, strict=True):
        count_operators(stage, candidate.path)
        check_emission(stage, target=job.target, attentions=attentions, quantized=quantized[candidate.stage])

    job.say("verifying against the masked model")
    return Built(layers, stages, record, verify_candidates(references, candidates), opset, max_tokens)


def count_attentions(graph: ir.Model) -> int:
    """Attention operators of the canonical graph."""
    return sum(node.op_type == "Attention" for node in graph.graph)


def sign(model: ir.Model) -> None:
    """Say in the file who made it."""
    model.producer_name, model.producer_version = "compactor", importlib.metadata.version("compactor")
