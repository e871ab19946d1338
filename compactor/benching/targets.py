"""From the TARGETs of a command line to the variants that are measured, each checked before anything slow begins.

An artefact is all the graphs in it, an ``.onnx`` file is itself, a Hugging Face model directory runs in PyTorch: the
model with its zeros. Every graph is run by each provider that was asked for; a provider that is not here makes rows
that say so. The three graphs of an encoder-decoder are one row for each precision.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from compactor.benching.graphs import IMAGE, GraphFacts, read_graph
from compactor.benching.plan import Case, EngineName, ProviderName, Variant
from compactor.companions import max_tokens
from compactor.errors import ModelDirectoryError, UsageError
from compactor.manifest import MANIFEST_NAME, artefact_file_problems, load_manifest
from compactor.runtime.decoding import ENCODER
from compactor.tasks import GENERATION, find_task

PROVIDERS = ("cpu", "cuda", "tensorrt", "openvino", "torch")

_TITLES = {"cuda": "CUDA", "tensorrt": "TensorRT", "openvino": "OpenVINO"}
_TOKENIZERS = ("tokenizer.json", "vocab.txt", "vocab.json")
_SEARCH_SETTINGS = "generation_config.json"
_GENERATES_ON = ("cpu", "cuda", "torch")
_INSTALL = {
    "openvino": "pip install openvino",
    "tensorrt": "install NVIDIA TensorRT beside onnxruntime-gpu, or use the 'cuda' provider",
}


@dataclasses.dataclass(frozen=True)
class Targets:
    """All that is to be measured, and what its inputs must look like.

    Attributes:
        variants: The rows of the report, in order: those of the baseline first.
        baseline: Id of the variant that the others are compared with; None where there is no other.
        title: What it is about, in a few words.
        task: What the models are for; None where no target says.
        config: ``config.json`` of the first target that has one, with the smallest ``vocab_size`` of all; without one,
            what the graph tells of it.
        max_length: Tokens that fit into every target; None where none says.
        tokenizer: The folder that holds a tokenizer; None where there is none.
        image: Whether the models look at pixels instead of tokens.
        layers: The report's ``layers``.
        notes: What the reader should know.
        fixed: Batch size and length that a graph is made for, by variant id; None where any will do.
        search: How encoder-decoders search for text: the ``generation_config.json`` of the first that has one. All of
            them get it. None where there is none.
    """

    variants: Sequence[Variant]
    baseline: str | None
    title: str
    task: str | None
    config: Mapping[str, Any]
    max_length: int | None
    tokenizer: Path | None
    image: bool
    layers: list[dict[str, Any]] | None
    notes: Sequence[str]
    fixed: Mapping[str, tuple[int | None, int | None]]
    search: Mapping[str, Any] | None = None

    @property
    def generates(self) -> bool:
        """Whether the models are encoder-decoders."""
        return any(variant.generates for variant in self.variants)

    @property
    def own(self) -> list[Variant]:
        """The variants that are run here; the others are endpoints."""
        return [variant for variant in self.variants if not variant.is_endpoint]

    @property
    def endpoints(self) -> list[Variant]:
        """The variants that requests are sent to."""
        return [variant for variant in self.variants if variant.is_endpoint]

    def refuse_other_shapes(self, cases: Sequence[Case]) -> None:
        """Refuse cases that a variant cannot take.

        Raises:
            UsageError: A graph is made for another batch size or length, or a length is over the models' maximum.
        """
        for case in cases:
            if self.max_length is not None and case.seq is not None and case.seq > self.max_length:
                raise UsageError(
                    f"the models take at most {self.max_length} tokens, not {case.seq}",
                    todo=f"give lengths up to {self.max_length} to --seq",
                )
        for variant in self.variants:
            batch, seq = self.fixed.get(variant.id, (None, None))
            others = [case for case in cases if batch not in (None, case.batch) or seq not in (None, case.seq)]
            if variant.reason is None and others:
                wanted = {"--batch": batch, "--seq": seq}
                shape = _shape_text(batch, seq, image=self.image)
                raise UsageError(
                    f"the graph is fixed to {shape}, and cannot take {others[0].id}",
                    where=str(variant.path),
                    todo=f"give {' '.join(f'{option} {size}' for option, size in wanted.items() if size is not None)}",
                )


@dataclasses.dataclass(frozen=True)
class _Model:
    """One graph or model directory, before providers are chosen.

    Attributes:
        path: The file or folder.
        label: Its name in tables, without the provider.
        precision: As in ``Variant``.
        graph: What the graph says, of an encoder-decoder the encoder's; None for a model directory.
    """

    path: Path
    label: str
    precision: str
    graph: GraphFacts | None


@dataclasses.dataclass(frozen=True)
class _Target:
    """One TARGET, read.

    Attributes:
        given: As the user gave it.
        models: What is in it.
        task: What it is for; None where that is unknown.
        config: Its ``config.json``; None where there is none.
        home: Where config and tokenizer are looked for.
        manifest: Of an artefact.
    """

    given: Path
    models: Sequence[_Model]
    task: str | None
    config: Mapping[str, Any] | None
    home: Path
    manifest: Mapping[str, Any] | None = None

    @property
    def is_image(self) -> bool:
        graph = self.models[0].graph
        return graph.is_image if graph is not None else self.task == "image-classification"

    @property
    def generates(self) -> bool:
        return self.task == GENERATION and not self.given.is_file()


def resolve_targets(
    targets: Sequence[Path], *, baseline: Path | None = None, providers: Sequence[str] = ("cpu",)
) -> Targets:
    """The variants that ``targets`` stand for.

    Args:
        targets: Artefact folders, ``.onnx`` files and Hugging Face model directories.
        baseline: What the others are compared with: its first variant that can run. Where it is none of the targets,
            its first model is measured too, and no other of it. None takes the first variant that can run.
        providers: Where graphs run, in order, out of ``PROVIDERS``. Model directories run in PyTorch whatever is said,
            and on CUDA where that is among the providers.

    Raises:
        ModelDirectoryError: A target is missing, damaged, or nothing that can be measured.
        UsageError: Targets do not go together, or nothing can run here.
        ProviderUnavailableError: The only provider is not here.
    """
    providers = tuple(dict.fromkeys(providers))
    for name in providers:
        if name not in PROVIDERS:
            raise UsageError(f"there is no provider '{name}'", todo=f"choose from: {', '.join(PROVIDERS)}")
    if not targets:
        raise UsageError("nothing to measure", todo="give an artefact, an .onnx file or a model directory")
    _require_sole_provider(providers)
    labels = _labels([*targets, *([] if baseline is None else [baseline])])
    read = [_read_target(target, label) for target, label in zip(targets, labels, strict=False)]
    first = None if baseline is None else _read_target(baseline, labels[-1])
    everything = read if first is None else [first, *read]
    _require_like(everything)
    search = next((found for target in everything if (found := _search_settings(target))), None)
    options = {} if search is None else {"generation": search}

    names = Names()
    rows: list[tuple[Variant, _Model]] = []
    for target in read:
        rows.extend(_variants(target, target.models, providers, names, options))
    chosen: str | None = None
    if first is not None:
        paths = {model.path.resolve() for model in first.models}
        among = [variant for variant, model in rows if model.path.resolve() in paths]
        if not among:
            own = list(_variants(first, first.models[:1], providers, names, options))
            rows, among = [*own, *rows], [variant for variant, _ in own]
        chosen = next((variant.id for variant in among if variant.reason is None), among[0].id)
    able = [variant for variant, _ in rows if variant.reason is None]
    if not able:
        reasons = dict.fromkeys(f"{variant.name}: {variant.reason}" for variant, _ in rows)
        raise UsageError("nothing can be measured here", where="; ".join(reasons), todo="choose another --provider")
    if first is None and len(rows) > 1:
        chosen = able[0].id
    rows.sort(key=lambda row: row[0].id != chosen)
    return Targets(
        variants=[variant for variant, _ in rows],
        baseline=chosen,
        title=_title(read, labels),
        task=next((target.task for target in everything if target.task), None),
        config=_common_config(everything),
        max_length=min(filter(None, (max_tokens(dict(target.config or {})) for target in everything)), default=None),
        tokenizer=next((folder for target in everything if (folder := _tokenizer(target.home))), None),
        image=everything[0].is_image,
        layers=next((_layers(target.manifest["layers"]) for target in [*read, *everything] if target.manifest), None),
        notes=_notes(rows, chosen),
        fixed={variant.id: model.graph.fixed for variant, model in rows if model.graph and any(model.graph.fixed)},
        search=search,
    )


def _shape_text(batch: int | None, seq: int | None, *, image: bool) -> str:
    if image:
        return f"batch {batch}"
    return f"{'N' if batch is None else batch}x{'N' if seq is None else seq}"


# Reading a target


def _read_target(path: Path, label: str) -> _Target:
    if not path.exists():
        raise ModelDirectoryError(
            "no such file or folder",
            where=str(path),
            todo="give an artefact, an .onnx file or a model directory; nothing is downloaded",
        )
    if path.is_file():
        return _read_file(path, label)
    if not any(path.iterdir()):
        raise ModelDirectoryError("the folder is empty", where=str(path), todo="give an artefact or a model directory")
    if (path / MANIFEST_NAME).is_file():
        return _read_artefact(path, label)
    if (path / "config.json").is_file() or (path / "modules.json").is_file():
        return _read_model_directory(path, label)
    raise ModelDirectoryError(
        f"this is no artefact and no model directory: neither {MANIFEST_NAME} nor config.json is in it",
        where=str(path),
        todo=_name_a_graph(path),
    )


def _read_file(path: Path, label: str) -> _Target:
    if path.suffix != ".onnx":
        raise ModelDirectoryError(
            "this is not an .onnx file", where=str(path), todo="give an artefact, an .onnx file or a model directory"
        )
    graph = read_graph(path)
    home = next((folder for folder in (path.parent, path.parent.parent) if (folder / "config.json").is_file()), None)
    config = None if home is None else _read_config(home)
    return _Target(
        given=path,
        models=[_Model(path, label, graph.precision, graph)],
        task=_task_of_graph(graph, config),
        config=config,
        home=home or path.parent,
    )


def _read_artefact(path: Path, label: str) -> _Target:
    manifest = load_manifest(path)
    problems = artefact_file_problems(manifest, path)
    if problems:
        raise ModelDirectoryError(
            f"the artefact was changed: {problems[0]}",
            where=str(path),
            todo="export the model again; or give the .onnx file itself, to measure it as it is",
        )
    models = []
    for stage in manifest["stages"]:
        # Of an encoder-decoder the encoder stands for all three: the decoder's inputs are made while it runs.
        if stage["file"] is not None and stage.get("graph", ENCODER) == ENCODER:
            precision = "fp32" if stage["name"] in ("masked", "compact") else stage["name"]
            file = path / stage["file"]
            place = path if "graph" in stage else file
            models.append(_Model(place, f"{label} {precision}", precision, read_graph(file)))
    if not models:
        raise ModelDirectoryError("the artefact names no graph", where=str(path / MANIFEST_NAME))
    config = _read_config(path) if (path / "config.json").is_file() else None
    return _Target(path, models, manifest["task"], config, path, manifest)


def _read_model_directory(path: Path, label: str) -> _Target:
    """A Hugging Face model directory, by its config and the headers of its weights."""
    from compactor.checkpoint.config import check_config, read_json_object
    from compactor.checkpoint.folder import find_model_folder
    from compactor.checkpoint.weights import open_weights

    folder = find_model_folder(path)
    if not any(folder.glob("*.safetensors")):
        if any(folder.glob("pytorch_model*.bin")):
            raise ModelDirectoryError(
                "the weights are pickled, and a pickle can run code",
                where=str(folder),
                todo="save the model as safetensors",
            )
        if (todo := _name_a_graph(path)) is not None:  # as optimum exports it
            raise ModelDirectoryError("the folder holds graphs, and no weights for PyTorch", where=str(path), todo=todo)
    where = str(folder / "config.json")
    config = read_json_object(folder / "config.json")
    check_config(config, where)
    open_weights(folder)
    try:
        task = find_task(None, config, where=where, sentence_transformers=(path / "modules.json").is_file())
    except ModelDirectoryError as error:
        todo = "name the model's class in 'architectures', as save_pretrained does"
        raise ModelDirectoryError(error.what, where=where, todo=todo) from error
    return _Target(path, [_Model(path, f"{label}, PyTorch", "fp32", None)], task.name, config, folder)


def _search_settings(target: _Target) -> dict[str, Any] | None:
    """What ``generation_config.json`` of an encoder-decoder says; None where there is none."""
    if not target.generates or not (target.home / _SEARCH_SETTINGS).is_file():
        return None
    return _read_config(target.home, _SEARCH_SETTINGS)


def _name_a_graph(folder: Path) -> str | None:
    """What to do about a folder that is no target but holds graphs; None where it holds none."""
    graphs = sorted(folder.rglob("*.onnx"))
    return f"give one of its graphs, such as {graphs[0]}" if graphs else None


def _read_config(folder: Path, name: str = "config.json") -> dict[str, Any]:
    path = folder / name
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelDirectoryError(f"{name} is not JSON: {error}", where=str(path)) from error
    if not isinstance(config, dict):
        raise ModelDirectoryError(f"{name} holds no object", where=str(path))
    return config


def _task_of_graph(graph: GraphFacts, config: Mapping[str, Any] | None) -> str | None:
    """What a graph is for by its outputs; where those leave it open, by the config."""
    outputs = graph.outputs
    if {"start_logits", "end_logits"} <= outputs.keys():
        return "question-answering"
    if "logits" in outputs and graph.is_image:
        return "image-classification"
    if "logits" in outputs and len(outputs["logits"]) == 2:
        return "text-classification"
    if "last_hidden_state" in outputs:
        return "feature-extraction"
    try:
        return find_task(None, config or {}, where="").name
    except ModelDirectoryError:
        return None


# What targets have in common


def _require_like(targets: Sequence[_Target]) -> None:
    """Refuse targets whose times say nothing about each other."""
    first = next((target for target in targets if target.task is not None), targets[0])
    for target in targets:
        like = (target.is_image, target.generates) == (first.is_image, first.generates)
        if target.task not in (None, first.task) or not like:
            raise UsageError(
                f"the targets are for different tasks: {first.task} and {target.task or 'another'}",
                where=f"{first.given} and {target.given}",
                todo="compare models of one task",
            )


def _common_config(targets: Sequence[_Target]) -> dict[str, Any]:
    config = dict(next((target.config for target in targets if target.config), {}))
    sizes = [(target.config or {}).get("vocab_size") for target in targets]
    graphs = [model.graph for target in targets for model in target.models if model.graph is not None]
    known = [size for size in (*sizes, *(graph.vocabulary for graph in graphs)) if isinstance(size, int) and size > 0]
    if known:
        config["vocab_size"] = min(known)
    elif not targets[0].is_image:
        raise ModelDirectoryError(
            "the size of the vocabulary is unknown, so no inputs can be made",
            where=str(targets[0].given),
            todo="put the model's config.json beside the graph",
        )
    for graph in graphs:
        if graph.is_image:
            _, channels, height, width = graph.inputs[IMAGE]
            if channels is not None:
                config.setdefault("num_channels", channels)
            if height is not None and width is not None:
                config.setdefault("image_size", [height, width])
    return config


def _notes(rows: Sequence[tuple[Variant, _Model]], baseline: str | None) -> list[str]:
    lost = next((variant for variant, _ in rows if variant.id == baseline and variant.reason is not None), None)
    return [] if lost is None else [f"Nothing is compared: the baseline, {lost.name}, was {lost.reason}."]


def _tokenizer(folder: Path) -> Path | None:
    return folder if any((folder / name).is_file() for name in _TOKENIZERS) else None


def _title(targets: Sequence[_Target], labels: Sequence[str]) -> str:
    """The checkpoint that the first artefact was made from; without an artefact, the first target."""
    for target in targets:
        if target.manifest is not None:
            return str(target.manifest["source"]["path_name"])
    return labels[0]


def _layers(sublayers: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The report's ``layers`` from the manifest's, which hold an entry for each sublayer."""
    found: dict[str, dict[str, Any]] = {}
    for sublayer in sublayers:
        layer_name, _, own = sublayer["path"].rpartition(".")
        name = layer_name or own
        if own == "cross_attention":
            name = f"{layer_name}, cross-attention"
        empty = dict.fromkeys(("heads_before", "heads_after", "neurons_before", "neurons_after"))
        layer = found.setdefault(name, {"name": name, **empty})
        unit = "heads" if sublayer["kind"] == "attention" else "neurons"
        if layer[f"{unit}_before"] is None:
            before, after = sublayer["heads" if unit == "heads" else "width"]
            layer.update({f"{unit}_before": before, f"{unit}_after": after})
    return list(found.values())


# From models to variants


def _require_sole_provider(providers: Sequence[str]) -> None:
    """Where one provider was asked for and is not here, say what to install instead of measuring nothing."""
    from compactor.runtime.providers import resolve_provider

    if len(providers) != 1 or providers[0] == "torch":
        return
    name = providers[0]
    if name == "cuda":
        resolve_provider(name)
    reason = _reason("openvino" if name == "openvino" else "onnxruntime", name)
    if reason is not None:
        raise UsageError(
            f"the '{name}' provider cannot run here: {reason.removeprefix('not run: ')}", todo=_INSTALL.get(name)
        )


def _reason(engine: str, provider: str) -> str | None:
    from compactor.benching.engines import not_run_reason

    return not_run_reason(engine, provider)


def _variants(
    target: _Target,
    models: Sequence[_Model],
    providers: Sequence[str],
    names: Names,
    options: Mapping[str, Any],
) -> Iterator[tuple[Variant, _Model]]:
    """Each model on each provider that may run it."""
    for model in models:
        for engine, provider in _places(target, model, providers):
            title = _TITLES.get(provider)
            name = f"{model.label}, {title}" if title and engine != "torch" else model.label
            name, identity = names.new(f"{name} on {title}" if title and engine == "torch" else name)
            variant = Variant(
                id=identity,
                name=name,
                target=str(target.given),
                engine=cast(EngineName, engine),
                provider=cast(ProviderName, provider),
                precision=model.precision,
                path=model.path,
                options=options,
                reason=_reason(engine, provider),
                generates=target.generates,
            )
            yield variant, model


def _places(target: _Target, model: _Model, providers: Sequence[str]) -> list[tuple[str, str]]:
    """Engine and provider of each row of ``model``."""
    if model.graph is None:
        places = [("torch", "cuda")] if "cuda" in providers else []
        return places if providers == ("cuda",) else [("torch", "torch"), *places]
    if target.generates and (others := [name for name in providers if name not in _GENERATES_ON]):
        raise UsageError(
            f"encoder-decoders are not measured on '{others[0]}'",
            where=str(target.given),
            todo=f"choose from: {', '.join(_GENERATES_ON)}",
        )
    places = [
        ("openvino" if provider == "openvino" else "onnxruntime", provider)
        for provider in providers
        if provider != "torch"
    ]
    if not places:
        raise UsageError(
            "PyTorch runs model directories, not ONNX graphs",
            where=str(target.given),
            todo="add a provider: --provider cpu (model directories run in PyTorch anyway)",
        )
    # TensorRT beside CUDA wherever it is there; quantized as we do it, it would leave nearly all to the CPU.
    takes = model.precision in ("fp32", "fp16") and not target.generates
    if "cuda" in providers and "tensorrt" not in providers and takes:
        if _reason("onnxruntime", "tensorrt") is None:
            places.append(("onnxruntime", "tensorrt"))
    return places


class Names:
    """Makes names and ids unique: the second ``compact int8`` is ``compact int8 (2)``."""

    def __init__(self) -> None:
        self._names: set[str] = set()
        self._ids: set[str] = set()

    def new(self, name: str) -> tuple[str, str]:
        """The name and the id of one more variant."""
        name = _first_free(name, "{} ({})", self._names)
        return name, _first_free(re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-.") or "variant", "{}-{}", self._ids)


def _first_free(name: str, numbered: str, taken: set[str]) -> str:
    candidates = itertools.chain([name], (numbered.format(name, number) for number in itertools.count(2)))
    free = next(candidate for candidate in candidates if candidate not in taken)
    taken.add(free)
    return free


def _labels(paths: Sequence[Path]) -> list[str]:
    """A short name for each path: its last part, with as many folders before it as tell different paths apart."""
    parts = [path.resolve().parts for path in paths]
    labels = []
    for own in parts:
        others = {other for other in parts if other != own}
        length = next((n for n in range(1, len(own)) if all(own[-n:] != other[-n:] for other in others)), len(own))
        labels.append("/".join(own[-length:]) or str(Path(*own)))
    return labels
