"""From the TARGETs of a command line to the variants that are measured, each checked before anything slow begins.

An artefact is all the graphs in it, an ``.onnx`` file is itself, a Hugging Face model directory runs in PyTorch: the
model with its zeros. Every graph is run by each provider that was asked for; a provider that is not here makes rows
that say so. The three graphs of an encoder-decoder are one row for each precision.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from compactor.benching.graphs import IMAGE
from compactor.benching.names import Names, short_labels
from compactor.benching.plan import Case, EngineName, ProviderName, Variant
from compactor.benching.sources import Model, Target, read_target, search_settings
from compactor.errors import ModelDirectoryError, UsageError
from compactor.positions import max_tokens

PROVIDERS = ("cpu", "cuda", "tensorrt", "openvino", "torch")

_TITLES = {"cuda": "CUDA", "tensorrt": "TensorRT", "openvino": "OpenVINO"}
_TOKENIZERS = ("tokenizer.json", "vocab.txt", "vocab.json")
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
    labels = short_labels([*targets, *([] if baseline is None else [baseline])])
    read = [read_target(target, label) for target, label in zip(targets, labels, strict=False)]
    first = None if baseline is None else read_target(baseline, labels[-1])
    everything = read if first is None else [first, *read]
    _require_like(everything)
    search = next((found for target in everything if (found := search_settings(target))), None)
    options = {} if search is None else {"generation": search}

    names = Names()
    rows: list[tuple[Variant, Model]] = []
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


# What targets have in common


def _require_like(targets: Sequence[Target]) -> None:
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


def _common_config(targets: Sequence[Target]) -> dict[str, Any]:
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


def _notes(rows: Sequence[tuple[Variant, Model]], baseline: str | None) -> list[str]:
    lost = next((variant for variant, _ in rows if variant.id == baseline and variant.reason is not None), None)
    return [] if lost is None else [f"Nothing is compared: the baseline, {lost.name}, was {lost.reason}."]


def _tokenizer(folder: Path) -> Path | None:
    return folder if any((folder / name).is_file() for name in _TOKENIZERS) else None


def _title(targets: Sequence[Target], labels: Sequence[str]) -> str:
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
    target: Target,
    models: Sequence[Model],
    providers: Sequence[str],
    names: Names,
    options: Mapping[str, Any],
) -> Iterator[tuple[Variant, Model]]:
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


def _places(target: Target, model: Model, providers: Sequence[str]) -> list[tuple[str, str]]:
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
