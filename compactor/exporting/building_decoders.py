"""Build what an artefact holds of an encoder-decoder: an encoder, and a decoder's first and every next step.

Removal is decided once for each half. The decoder's two graphs are made of the same compact one, so that a layer has
the same heads and widths in both; that they agree on every cache is checked all the same, on the files.
"""

from __future__ import annotations

import gc
from pathlib import Path

import onnx_ir as ir

from compactor.companions.generation_settings import check_generation_settings
from compactor.errors import ModelDirectoryError
from compactor.exporting.building import STAGES, Built, Job, count_attentions, sign
from compactor.exporting.emission import check_emission
from compactor.exporting.layers import measure_layers, pair_layers
from compactor.exporting.serialization import write_graphs
from compactor.exporting.stages import count_operators, describe_masked, describe_stage, macs_per_token
from compactor.exporting.verifying import EncoderDecoderFiles, References, verify_encoder_decoder
from compactor.importing.encoder_decoder import load_encoder_decoder, trace_decoder, trace_encoder
from compactor.passes.caching.attach_caches import AttachCachesPass, Step
from compactor.passes.pipeline import (
    Record,
    caching,
    canonicalisation,
    finishing,
    lowering,
    precision_passes,
    run_passes,
    structure,
)
from compactor.runtime.decoding import ENCODER, FIRST, NEXT, SUFFIXES
from compactor.tasks import TASKS

_STEPS: dict[str, Step] = {FIRST: "first", NEXT: "next"}


def build_encoder_decoder(job: Job) -> Built:
    """A model with three graphs, whose weights are in one file for each precision.

    Raises:
        ModelDirectoryError: The model cannot be built or traced, its decoder cannot keep caches, or its generation
            settings cannot be honoured.
        VerificationError: A graph's numbers differ, or ONNX Runtime runs other operators than were meant.
    """
    check_generation_settings(job.checkpoint)
    loaded = load_encoder_decoder(job.checkpoint, job.task)
    job.checkpoint.tensors.clear()  # the model owns them now

    job.say("running the masked model in PyTorch, for reference")
    encoder_references = References(loaded.encoder.cases, loaded.encoder.run, job.scratch / "encoder")
    decoder_references = References(loaded.cases, loaded.run, job.scratch / "decoder")
    job.say("tracing the encoder")
    encoder = trace_encoder(loaded)
    job.say("tracing the decoder")
    decoder = trace_decoder(loaded, encoder)
    where, max_tokens = loaded.where, loaded.encoder.max_tokens
    del loaded

    job.say("removing what cannot change the output")
    record = Record()
    run_passes(encoder, canonicalisation("encoder"), record)
    run_passes(decoder, canonicalisation("decoder"), record)
    before = measure_layers(encoder) | measure_layers(decoder)
    stages = [
        {**describe_masked(graph), "graph": name} for name, graph in _graphs(encoder, decoder, job, where).items()
    ]
    for half in (encoder, decoder):
        run_passes(half, structure(), record)
    layers = pair_layers(before, measure_layers(encoder) | measure_layers(decoder))
    graphs = _graphs(encoder, decoder, job, where, record)
    del encoder, decoder
    macs = {name: macs_per_token(graph) for name, graph in graphs.items()}
    attentions = {name: count_attentions(graph) for name, graph in graphs.items()}
    for name, graph in graphs.items():
        task = TASKS["feature-extraction"] if name == ENCODER else job.task
        run_passes(graph, lowering(job.target, task, pack=job.packs and name == ENCODER), record)
    gc.collect()  # the masked weights

    files: list[tuple[str, str, Path, int]] = []  # precision, graph, file, int8 layers
    weights = []
    for precision in job.precisions:
        job.say(f"writing {precision}")
        models = {}
        for name, graph in graphs.items():
            model, emitted = graph.clone(), Record()
            run_passes(model, [*precision_passes(precision, job.target), *finishing()], emitted)
            sign(model)
            path = job.writer.model_path(f"{name}{SUFFIXES[precision]}.onnx")
            models[path] = model
            files.append((precision, name, path, emitted.count("int8-linear")))
            record.add(emitted)
        data = job.writer.model_path(f"model{SUFFIXES[precision]}.onnx_data")
        referred = write_graphs(models, data)
        weights.append({"file": _inside(job, data), "bytes": data.stat().st_size, "precision": precision})
        for name, (path, model) in zip(graphs, models.items(), strict=True):
            stage = describe_stage(STAGES[precision], model, path, job.writer.directory, macs=macs[name])
            shared = referred[path.name]
            stages.append({**stage, "bytes": stage["bytes"] + shared, "shared_bytes": shared, "graph": name})
        opset = model.opset_imports[""]
        del models, model
    del graphs, graph
    gc.collect()

    job.say("checking what ONNX Runtime makes of it")
    for stage, (_, name, path, quantized) in zip(stages[len(attentions) :], files, strict=True):
        count_operators(stage, path)
        check_emission(stage, target=job.target, attentions=attentions[name], quantized=quantized)

    job.say("verifying against the masked model")
    paths = {(precision, name): path for precision, name, path, _ in files}
    candidates = [
        EncoderDecoderFiles(
            STAGES[precision], {name: paths[precision, name] for name in attentions}, job.tolerance(precision)
        )
        for precision in job.precisions
    ]
    verification = verify_encoder_decoder(encoder_references, decoder_references, candidates)
    return Built(layers, stages, record, verification, opset, max_tokens, weights)


def _graphs(
    encoder: ir.Model, decoder: ir.Model, job: Job, where: str, record: Record | None = None
) -> dict[str, ir.Model]:
    """The three graphs, by name. Raises ModelDirectoryError where the decoder cannot keep caches."""
    graphs = {ENCODER: encoder.clone()}
    for name, step in _STEPS.items():
        graphs[name] = decoder.clone()
        said = Record()
        run_passes(graphs[name], caching(step, job.target), said)
        refused = [entry for entry in said.refused if entry["pass"] == AttachCachesPass.name]
        if refused:
            raise ModelDirectoryError(
                f"the decoder cannot generate with caches: {refused[0]['reason']}",
                where=f"{where}, {refused[0]['layer']}",
                todo="compactor generates with decoders like BART's, whose attention masks are causal and padding",
            )
        if record is not None:
            record.add(said)
    return graphs


def _inside(job: Job, path: Path) -> str:
    return path.relative_to(job.writer.directory).as_posix()
