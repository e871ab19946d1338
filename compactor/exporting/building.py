"""Build the graphs of an artefact: trace, compact, lower, write, check, verify.

A model with one graph goes this way, and an encoder-decoder, whose three graphs come of two parts (``graphs.py``).
Removal is decided once for each part: a decoder's two graphs are made of the same compact one, so that a layer has the
same heads and widths in both; that they agree on every cache is checked all the same, on the files.
"""

from __future__ import annotations

import dataclasses
import gc
import importlib.metadata
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir

from compactor.checkpoint import Checkpoint
from compactor.errors import ModelDirectoryError
from compactor.exporting.calibration import Calibration
from compactor.exporting.emission import check_emission
from compactor.exporting.graphs import STAGES, graphs_of
from compactor.exporting.layers import Sizes, measure_layers, pair_layers
from compactor.exporting.ledger import Ledger, choose_int8
from compactor.exporting.merging import merge_steps
from compactor.exporting.recipe import Recipe
from compactor.exporting.serialization import write_graph, write_graphs
from compactor.exporting.stages import count_executed, describe_masked, describe_stage, merge_described
from compactor.exporting.unrecognised import find_unrecognised
from compactor.exporting.verifying import (
    EXACT,
    HALF,
    Files,
    References,
    int8_tolerance,
    onnxruntime_failures,
    verify_files,
)
from compactor.importing.encoder import LoadedModel
from compactor.importing.parts import WHOLE, load_parts
from compactor.passes.caching.attach_caches import AttachCachesPass
from compactor.passes.graph.sizes import macs_per_token
from compactor.passes.lowering.pack_tokens import FILL_LOGITS
from compactor.passes.pipeline import (
    caching,
    canonicalisation,
    equalisation,
    finishing,
    lowering,
    precision_passes,
    structure,
)
from compactor.passes.runner import Record, run_passes
from compactor.runtime.decoding import FIRST, MERGED, NEXT, SUFFIXES
from compactor.runtime.verification import Tolerance
from compactor.tasks import TASKS, Task


@dataclasses.dataclass(frozen=True)
class Job:
    """What is to be built.

    Attributes:
        checkpoint: What was read. Its tensors move into the model.
        task: What the model is exported for.
        recipe: What was asked for.
        packs: Whether token-wise work shall run on real tokens only.
        root: The artefact's folder, under construction.
        folder: Where in it the graphs go.
        scratch: A folder for what is not kept.
        say: Called with a line at each step.
        calibration: The inputs by which int8 is chosen; None takes int8 everywhere.
        vectors: Puts what makes a text's vector behind the model; None leaves it as it is.
    """

    checkpoint: Checkpoint
    task: Task
    recipe: Recipe
    packs: bool
    root: Path
    folder: Path
    scratch: Path
    say: Callable[[str], None]
    calibration: Calibration | None = None
    vectors: Callable[[LoadedModel], LoadedModel] | None = None

    def tolerance(self, precision: str) -> Tolerance | None:
        """fp32 must agree; int8 within its budget, where one is stated; fp16 within its own rounding."""
        if precision == "int8":
            return int8_tolerance(self.recipe.int8_budget)
        return EXACT if precision == "fp32" else HALF


@dataclasses.dataclass(frozen=True)
class Built:
    """What the manifest says of it, by the manifest's names; ``weights`` are files that several graphs share.

    ``unrecognised`` are the sublayers that are not among ``layers``, because the passes could not work on them.

    ``ledger`` is what was chosen for int8, and by what; None where nothing was.

    ``max_tokens`` is how many tokens the model takes; None where nothing limits them, and for images.
    """

    layers: list[dict[str, Any]]
    unrecognised: list[dict[str, str]]
    stages: list[dict[str, Any]]
    record: Record
    verification: dict[str, Any]
    opset: int
    max_tokens: int | None
    weights: list[dict[str, Any]]
    ledger: dict[str, Any] | None


def build(job: Job) -> Built:
    """Build, write and verify the graphs of a model.

    Raises:
        ModelDirectoryError: The model cannot be built or traced, or its decoder cannot keep caches.
        VerificationError: A graph's numbers differ, or ONNX Runtime runs other operators than were meant.
    """
    target = job.recipe.chosen_target.name
    parts = load_parts(job.checkpoint, job.task, job.vectors)
    max_tokens = next(iter(parts.values())).max_tokens
    job.say("running the masked model in PyTorch, for reference")
    references = {name: References(part.cases, part.run, job.scratch / name) for name, part in parts.items()}
    traced: dict[str, ir.Model] = {}
    for name, part in parts.items():
        job.say(f"tracing the {name}" if name else "tracing")
        traced[name] = part.trace(beside=list(traced.values()))
    del parts, part

    job.say("removing what cannot change the output")
    record = Record()
    unrecognised = []
    for name, half in traced.items():
        earlier = len(record.refused)
        run_passes(half, canonicalisation(name, max_tokens), record)
        own_first = [*record.refused[earlier:], *record.refused[:earlier]]  # halves name their nodes alike
        unrecognised += find_unrecognised(half, own_first)
    before = _measure(traced)
    stages = [describe_masked(graph, name) for name, graph in _graphs(traced, job).items()]
    if job.recipe.merges:
        stages = [stages[0], merge_described(*stages[1:], graph=MERGED)]
    for half in traced.values():
        run_passes(half, structure(), record)
    layers = pair_layers(before, _measure(traced))
    if "int8" in job.recipe.precisions:
        for half in traced.values():
            run_passes(half, equalisation(), record)
    graphs = _graphs(traced, job, record)
    del traced, half
    macs = {name: macs_per_token(graph) for name, graph in graphs.items()}
    attentions = {name: _count_attentions(graph) for name, graph in graphs.items()}
    if job.recipe.merges:
        macs[MERGED], attentions[MERGED] = macs[NEXT], attentions[FIRST] + attentions[NEXT]
    for name, graph in graphs.items():
        run_passes(graph, lowering(target, pack=_padding(name, job)), record)
    gc.collect()  # the masked weights

    ledger = _choose(graphs, job)
    opset = next(iter(graphs.values())).opset_imports[""]
    written = []
    for precision in job.recipe.precisions:
        job.say(f"writing {precision}")
        written.append(_write(graphs, precision, macs, job, record, ledger))
    del graphs, graph
    gc.collect()

    job.say("checking what ONNX Runtime makes of it")
    for each in written:
        for name, stage in each.stages.items():
            with onnxruntime_failures(each.files.stage):
                count_executed(stage, each.files.paths[name])
            check_emission(stage, target=target, attentions=attentions[name], quantized=each.quantized[name])
            stages.append(stage)

    job.say("verifying against the masked model")
    verification = verify_files(job.task, references, [each.files for each in written])
    weights = [each.weights for each in written if each.weights]
    chosen = None if ledger is None else ledger.record
    return Built(layers, unrecognised, stages, record, verification, opset, max_tokens, weights, chosen)


@dataclasses.dataclass(frozen=True)
class _Written:
    """The files of a precision: what the manifest says of each graph, how many int8 layers it has, shared weights."""

    files: Files
    stages: dict[str, dict[str, Any]]
    quantized: dict[str, int]
    weights: dict[str, Any] | None


def _choose(graphs: Mapping[str, ir.Model], job: Job) -> Ledger | None:
    """Which layers int8 takes, where that is asked for."""
    keep = job.recipe.kept_share
    if keep is None or job.calibration is None:
        return None
    scratch = job.scratch / "ledger"
    scratch.mkdir()
    (graph,) = graphs.values()
    target, scales = job.recipe.chosen_target.name, job.recipe.int8_scales
    return choose_int8(graph, job.calibration, target=target, scales=scales, keep=keep, scratch=scratch, say=job.say)


def _write(
    graphs: Mapping[str, ir.Model],
    precision: str,
    macs: Mapping[str, int],
    job: Job,
    record: Record,
    ledger: Ledger | None,
) -> _Written:
    """Write the lowered ``graphs`` in a number format; several keep their weights in one file."""
    target, stage, suffix = job.recipe.chosen_target.name, STAGES[precision], SUFFIXES[precision]
    models, quantized = {}, {}
    for name, graph in graphs.items():
        models[name], emitted = graph.clone(), Record()
        keep = () if ledger is None else ledger.keep
        format_ = precision_passes(precision, target, scales=job.recipe.int8_scales, keep=keep)
        run_passes(models[name], [*format_, *finishing()], emitted)
        quantized[name] = emitted.count("int8-linear")
        record.add(emitted)
    if job.recipe.merges:
        models[MERGED] = merge_steps(models.pop(FIRST), models.pop(NEXT))
        quantized[MERGED] = quantized.pop(FIRST) + quantized.pop(NEXT)
    for model in models.values():
        model.producer_name, model.producer_version = "compactor", importlib.metadata.version("compactor")
    paths = {name: job.folder / f"{name or 'model'}{suffix}.onnx" for name in models}
    shared, weights = dict.fromkeys(models, 0), None
    if len(models) == 1 or job.recipe.merges:
        for name, model in models.items():
            write_graph(model, paths[name])
    else:
        data = job.folder / f"model{suffix}.onnx_data"
        referred = write_graphs({paths[name]: model for name, model in models.items()}, data)
        shared = {name: referred[path.name] for name, path in paths.items()}
        file = data.relative_to(job.root).as_posix()
        weights = {"file": file, "bytes": data.stat().st_size, "precision": precision}
    stages = {
        name: describe_stage(stage, model, paths[name], job.root, macs=macs[name], graph=name, shared=shared[name])
        for name, model in models.items()
    }
    if precision == "int8":
        for described in stages.values():
            described["int8"] = {"scales": job.recipe.int8_scales, "saturates": False}
    return _Written(Files(stage, paths, job.tolerance(precision)), stages, quantized, weights)


def _graphs(traced: Mapping[str, ir.Model], job: Job, record: Record | None = None) -> dict[str, ir.Model]:
    """The artefact's graphs, by name. Raises ModelDirectoryError where a decoder cannot keep caches."""
    origins = graphs_of(job.task)
    if len(origins) == 1:
        return {name: traced[origin.part] for name, origin in origins.items()}
    graphs = {name: traced[origin.part].clone() for name, origin in origins.items()}
    for name, origin in origins.items():
        if origin.step is None:
            continue
        said = Record()
        run_passes(graphs[name], caching(origin.step, job.recipe.chosen_target.name), said)
        refused = [entry for entry in said.refused if entry["pass"] == AttachCachesPass.name]
        if refused:
            raise ModelDirectoryError(
                f"the decoder cannot generate with caches: {refused[0]['reason']}",
                where=f"{job.checkpoint.path}, {refused[0]['layer']}",
                todo="compactor generates with decoders like BART's, whose attention masks are causal and padding",
            )
        if record is not None:
            record.add(said)
    return graphs


def _measure(traced: Mapping[str, ir.Model]) -> Sizes:
    return {layer: sizes for half in traced.values() for layer, sizes in measure_layers(half).items()}


def _count_attentions(graph: ir.Model) -> int:
    """Attention operators of the canonical graph."""
    return sum(node.op_type == "Attention" for node in graph.graph)


def _padding(name: str, job: Job) -> dict[str, float] | None:
    """What packing puts at padded places of each output; None for a graph whose tokens are not packed."""
    origin = graphs_of(job.task)[name]
    if not job.packs or origin.step is not None:
        return None
    return padding_values(job.task if origin.part == WHOLE else TASKS["feature-extraction"])


def padding_values(task: Task) -> dict[str, float]:
    """What stands at padded places of each output: below every logit, and 0 among hidden states."""
    return dict.fromkeys(task.outputs, FILL_LOGITS if task.logits else 0.0)
