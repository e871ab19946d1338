"""What a variant weighs and how much it computes: parameters, bytes, multiply-adds, and where the time goes.

Multiply-adds are those that are executed: of a padded batch with its padding, of a packed one without, of a pruned
graph what is left of it. ONNX Runtime's are read from its profile (``compactor.runtime.profiling``), PyTorch's are half
of what its own counter of floating-point operations finds. OpenVINO and CTranslate2 do not tell what they execute.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import math
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from compactor.benching.engines.feeding import read_feeds
from compactor.benching.plan import Part, Variant
from compactor.errors import CompactorError
from compactor.runtime.profiling import Profile, ProfiledSession, profile_session, select_runs

# Batches of one case that are profiled and counted: those of a large data set would fill ONNX Runtime's limit of a
# million events. Evenly spaced, they stand for the others.
MAX_BATCHES = 128
# Tokens of a generated text: each is a run of a graph. Longer ones are neither profiled nor counted, for that reason.
MAX_STEPS = 128

_NOT_WEIGHTS = ("i64", "i32", "boolean", "string")  # as passes.graph.sizes counts: indexes and flags are none


def profile(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The worker's mode ``profile``: where the time of each case goes in ONNX Runtime.

    Args:
        spec: What the worker was given; its ``profile`` holds ``runs``, counted ones of every batch, and ``layers``,
            whether to add them up by layer too. With ``"sample": "pass"`` one run is all batches of a case, else it is
            the mean one of them.

    Returns:
        ``profile``: by case, the report's ``profile`` block with ``macs``, None where they are unknown. ``notes``:
        sentences for the reader.
    """
    variant = Variant.from_json(spec["variant"])
    chosen = {case["id"]: spread(case["files"], MAX_BATCHES) for case in spec["cases"]}
    profiles = (_profile_parts if variant.generates else _profile_graph)(variant, spec, chosen)
    blocks, notes = {}, []
    for case in spec["cases"]:
        name, files = case["id"], case["files"]
        if name not in profiles:
            continue
        found = profiles[name]
        if spec["sample"] == "pass":
            found = dataclasses.replace(found, runs=found.runs / len(files))
        blocks[name] = {
            "case": name,
            "runs": max(1, round(found.runs)),
            "total_ms": found.total_ms,
            "operators": found.by_operator(),
            "layers": found.by_layer() if spec["profile"]["layers"] else None,
            "placement": {"cpu": 0, variant.provider: 0} | found.placement(),
            "misplaced": found.misplaced(variant.provider),
            "macs": found.macs,
        }
        if len(chosen[name]) < len(files):
            notes.append(
                f"Profiles and multiply-adds of {name} are from {len(chosen[name])} of its {len(files)} batches, "
                "evenly spaced."
            )
        if unknown := found.uncounted():
            kinds = collections.Counter(entry[entry.rindex("(") + 1 : -1] for entry in unknown)
            listed = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
            notes.append(f"Multiply-adds are not known, because there is no formula for: {listed}.")
        if found.launch_times_only():
            notes.append("The profile has no times of GPU kernels: those of GPU nodes are what it took to start them.")
    return {"profile": blocks, "notes": list(dict.fromkeys(notes))}


def _profile_graph(
    variant: Variant, spec: Mapping[str, Any], chosen: Mapping[str, Sequence[str]]
) -> dict[str, Profile]:
    """The profile of each case of a model with one graph."""
    longest = max(len(files) for files in chosen.values())
    return profile_session(
        variant.path,
        {case: [read_feeds(file) for file in files] for case, files in chosen.items()},
        runs=max(1, min(spec["profile"]["runs"], MAX_BATCHES // longest)),
        **_session_options(variant, spec),
    )


def _profile_parts(
    variant: Variant, spec: Mapping[str, Any], chosen: Mapping[str, Sequence[str]]
) -> dict[str, Profile]:
    """The profile of each case of an encoder-decoder, whatever graphs it runs; none of texts that are too long."""
    from compactor.benching.engines.ort_generation import OrtGenerator

    with tempfile.TemporaryDirectory(prefix="compactor-") as temporary:

        def open_with(path: Path) -> ProfiledSession:
            folder = Path(temporary, path.stem)
            folder.mkdir()
            return ProfiledSession(path, folder, graph=path.stem, **_session_options(variant, spec))

        engine = OrtGenerator(variant, threads=spec["threads"], spinning=spec["spinning"], open_with=open_with)
        sessions: dict[str, ProfiledSession] = engine.sessions
        counted: dict[str, tuple[float, dict[str, range]]] = {}  # runs of the case, and those of each graph in them
        for case in spec["cases"]:
            part = Part(**case["part"])
            files = chosen[case["id"]]
            runs = max(1, min(spec["profile"]["runs"], MAX_BATCHES // len(files)))
            if part.kind == "generate":
                files, runs = files[:1], 1
                if (part.new_tokens or 0) > MAX_STEPS:
                    continue
            runner = engine.part(part)
            batches = [runner.prepare(read_feeds(file)) for file in files]
            for batch in batches[:2]:
                runner.run(batch)
            start = {graph: session.runs for graph, session in sessions.items()}
            for batch in batches * runs:
                runner.run(batch)
            ranges = {graph: range(start[graph], session.runs) for graph, session in sessions.items()}
            counted[case["id"]] = len(batches) * runs, ranges
        events = {graph: session.end() for graph, session in sessions.items()}
    return {
        case: Profile(
            tuple(event for graph, numbers in ranges.items() for event in select_runs(events[graph], numbers)), runs
        )
        for case, (runs, ranges) in counted.items()
    }


def _session_options(variant: Variant, spec: Mapping[str, Any]) -> dict[str, Any]:
    from compactor.benching.engines.ort import provider_options
    from compactor.runtime.providers import Provider

    return {
        "threads": spec["threads"],
        "allow_spinning": spec["spinning"],
        "provider": variant.provider,
        "provider_options": provider_options(Provider(variant.provider), variant),
    }


def torch_macs(engine: Any, spec: Mapping[str, Any]) -> dict[str, Any]:
    """The worker's mode ``macs``: multiply-adds of each case in PyTorch.

    Counts the model itself, also where ``torch.compile`` runs it: the same products in other kernels.

    Args:
        engine: An open ``TorchEngine``, or ``TorchGenerator``.
        spec: What the worker was given; ``sample`` says as for ``profile`` what one run is.

    Returns:
        ``macs``: by case; the mean of its batches, or their sum for ``"sample": "pass"``.
    """
    counted = {}
    for case in spec["cases"]:
        if case.get("part") is None:
            prepare, run = engine.prepare, engine.run_uncompiled
        else:
            part = engine.part(Part(**case["part"]))
            prepare, run = part.prepare, part.run
        files = spread(case["files"], MAX_BATCHES)
        total = sum(count_macs(functools.partial(run, prepare(read_feeds(file)))) for file in files)
        batches = len(case["files"]) if spec["sample"] == "pass" else 1
        counted[case["id"]] = round(total * batches / len(files))
    return {"macs": counted}


def count_macs(call: Callable[[], object]) -> int:
    """Multiply-adds of what PyTorch runs in ``call``.

    PyTorch counts matrix products, convolutions and attention. It has no formula for the attention kernel of CPUs, the
    one that runs here, so it is given the one of the GPU kernels: both compute Q K^T and P V.
    """
    import torch
    from torch.utils import flop_counter

    count: Callable[..., int] = flop_counter.sdpa_flop_count

    def attention_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        return count(query, key, value)

    cpu_attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    counter = flop_counter.FlopCounterMode(display=False, custom_mapping={cpu_attention: attention_flops})
    with torch.no_grad(), counter:
        call()
    return int(counter.get_total_flops()) // 2


def parameters(variant: Variant) -> int | None:
    """Elements of the weights; None where the files do not tell.

    Of an artefact's graph it is the number in ``compactor.json``. Of a model directory it is what is stored, without
    nn_pruning's scores: the model as PyTorch runs it, zeros included. What several graphs share counts once.
    """
    try:
        if _has_several_graphs(variant):
            return _shared_parameters(variant)
        if variant.path.suffix == ".onnx":
            return _read_onnx(variant.path)[0]
        if variant.path.suffix == ".xml":
            return _openvino_parameters(variant.path)
        if variant.engine == "torch":
            return _checkpoint_parameters(variant.path)
    except Exception:  # a damaged file is a variant that fails, and the engine says why: no reason to stop the others
        return None
    return None


def file_bytes(variant: Variant) -> int | None:
    """Bytes of the model's files, those of external weights included; None where there are none to be read."""
    files = _model_files(variant)
    return sum(file.stat().st_size for file in files) if files else None


def model_hash(variant: Variant) -> str | None:
    """SHA-256 of the model's file; of several, that of ``cat``, in the order of their names.

    None where there are none to be read.
    """
    files = _model_files(variant)
    if not files:
        return None
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            hashlib.file_digest(stream, lambda: digest)  # goes on with the same one
    return digest.hexdigest()


def spread(files: Sequence[str], most: int) -> list[str]:
    """At most ``most`` of ``files``, evenly spaced."""
    if len(files) <= most:
        return list(files)
    return [files[index * len(files) // most] for index in range(most)]


# Files


def _read_onnx(path: Path) -> tuple[int, list[Path]]:
    """Parameters, and the files beside the graph that hold weights; reads no external weights."""
    status = path.stat()
    return _read_onnx_as_it_is(path, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=64)
def _read_onnx_as_it_is(path: Path, modified: int, size: int) -> tuple[int, list[Path]]:
    import onnx_ir as ir

    from compactor.passes.graph.sizes import count_parameters

    model = ir.load(path)
    values = [value.const_value for graph in model.graphs() for value in graph.initializers.values()]
    folder = path.parent.resolve()
    external = {Path(tensor.path).resolve() for tensor in values if isinstance(tensor, ir.ExternalTensor)}
    inside = [file for file in external if file.is_relative_to(folder) and file.is_file()]
    return count_parameters(model), sorted(inside)


def _openvino_parameters(path: Path) -> int:
    """Elements of the constants of an OpenVINO graph, whose ``.xml`` names the type and shape of each."""
    constants = [layer.find("data") for layer in ElementTree.parse(path).iter("layer") if layer.get("type") == "Const"]
    return sum(
        math.prod(int(width) for width in data.get("shape", "").replace(",", " ").split())
        for data in constants
        if data is not None and data.get("element_type") not in _NOT_WEIGHTS
    )


def _has_several_graphs(variant: Variant) -> bool:
    return variant.generates and variant.engine == "onnxruntime"


def _shared_parameters(variant: Variant) -> int:
    """Elements of the weights of an encoder-decoder's graphs.

    The same bytes of a file are one weight. Of those that are in the graphs themselves, so are the decoder's two of one
    name; the encoder has names of its own.
    """
    import onnx_ir as ir

    from compactor.benching.engines.ort_generation import graph_files
    from compactor.runtime.decoding import ENCODER

    indices = (ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL)  # as passes.graph.sizes counts
    found: dict[tuple[object, ...], int] = {}
    for graph, path in graph_files(variant).items():
        model = ir.load(path)
        for value in (value for each in model.graphs() for value in each.initializers.values()):
            tensor = value.const_value
            if tensor is None or tensor.dtype in indices:
                continue
            if isinstance(tensor, ir.ExternalTensor):
                place: tuple[object, ...] = (tensor.location, tensor.offset)
            else:
                place = (graph == ENCODER, value.name)
            found[place] = math.prod(tensor.shape.numpy())
    return sum(found.values())


def _checkpoint_parameters(path: Path) -> int:
    """Elements of the stored tensors of floating-point type, by the headers of the files alone."""
    from compactor.checkpoint.folder import find_model_folder
    from compactor.checkpoint.masks import is_mask_tensor
    from compactor.checkpoint.weights import open_weights

    weights = open_weights(find_model_folder(path))
    return sum(
        math.prod(shape)
        for name, shape in weights.shapes.items()
        if weights.dtypes[name] != "integer" and not is_mask_tensor(name)
    )


def _model_files(variant: Variant) -> list[Path]:
    """The files that hold the graph and its weights, by name; empty where they cannot be told."""
    path = variant.path
    try:
        if _has_several_graphs(variant):
            from compactor.benching.engines.ort_generation import graph_files

            graphs = graph_files(variant).values()
            files = [*graphs, *{file for graph in graphs for file in _read_onnx(graph)[1]}]
        elif path.suffix == ".onnx":
            files = [path, *_read_onnx(path)[1]]
        elif path.suffix == ".xml":
            files = [path, path.with_suffix(".bin")]
        elif variant.engine == "torch":
            files = _checkpoint_files(path)
        else:
            files = [path / "model.bin"]  # CTranslate2
        return sorted((file for file in files if file.is_file()), key=lambda file: file.name)
    except Exception:  # as in ``parameters``
        return []


def _checkpoint_files(path: Path) -> list[Path]:
    from compactor.checkpoint.folder import find_model_folder
    from compactor.checkpoint.weights import open_weights

    folder = find_model_folder(path)
    try:
        return [file for file in open_weights(folder).paths if file.suffix != ".json"]
    except CompactorError:  # pickled weights are opened by nobody here, but they are files
        return [*folder.glob("pytorch_model*.bin")]
