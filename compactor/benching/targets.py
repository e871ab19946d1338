"""From the TARGETs of a command line to the variants that are measured, each checked before anything slow begins.

An artefact is all the graphs in it, an ``.onnx`` file is itself, a Hugging Face model directory runs in PyTorch: the
model with its zeros. Every graph is run by each provider that was asked for; a provider that is not here makes rows
that say so. The three graphs of an encoder-decoder are one row for each precision, and an endpoint is one row.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from compactor.benching import engines
from compactor.benching.graphs import IMAGE
from compactor.benching.plan import Case, EngineName, ProviderName, Variant
from compactor.benching.server.urls import Url
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
        variants: The rows of the report, in order: those of the baseline first, endpoints last.
        baseline: Id of the variant that the others are compared with; None where there is no other.
        title: What it is about, in a few words.
        task: What the models are for; None where no target says.
        config: ``config.json`` of the first target that has one, with the smallest ``vocab_size`` of all; without one,
            what the graph tells of it.
        max_length: Tokens that fit into every target; None where none says.
        tokenizer: The folder that holds a tokenizer; None where there is none.
        image: Whether the models look at pixels instead of tokens.
        layers: The report's ``layers``.
        ledgers: The report's ``ledgers``.
        notes: What the reader should know.
        fixed: Batch size and length that a graph is made for, by variant id; None where any will do.
        search: How encoder-decoders search for text: the ``generation_config.json`` of the first that has one. All of
            them get it. None where there is none.
    """

    variants: Sequence[Variant]
    baseline: str | None
    title: str
    task: str | None = None
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    max_length: int | None = None
    tokenizer: Path | None = None
    image: bool = False
    layers: list[dict[str, Any]] | None = None
    ledgers: Sequence[Mapping[str, Any]] = ()
    notes: Sequence[str] = ()
    fixed: Mapping[str, tuple[int | None, int | None]] = dataclasses.field(default_factory=dict)
    search: Mapping[str, Any] | None = None

    @property
    def generates(self) -> bool:
        """Whether the models are encoder-decoders."""
        return any(variant.generates for variant in self.variants)

    @property
    def own(self) -> list[Variant]:
        """The variants that are run here; the others are endpoints."""
        return [variant for variant in self.variants if not variant.is_endpoint]

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
                shape = f"batch {batch}" if self.image else "x".join("N" if n is None else str(n) for n in (batch, seq))
                raise UsageError(
                    f"the graph is fixed to {shape}, and cannot take {others[0].id}",
                    where=str(variant.path),
                    todo=f"give {' '.join(f'{option} {size}' for option, size in wanted.items() if size is not None)}",
                )


def resolve_targets(
    targets: Sequence[Path],
    *,
    urls: Sequence[Url] = (),
    baseline: Path | None = None,
    providers: Sequence[str] = ("cpu",),
) -> Targets:
    """The variants that ``targets`` and ``urls`` stand for.

    Args:
        targets: Artefact folders, ``.onnx`` files and Hugging Face model directories.
        urls: Endpoints, which run already; nothing of theirs is known.
        baseline: What the others are compared with: its first variant that can run. Where it is none of the targets,
            its first model is measured too, and no other of it. None takes the first variant that can run.
        providers: Where graphs run, in order, out of ``PROVIDERS``. Model directories run in PyTorch whatever is said,
            and on CUDA where that is among the providers.

    Raises:
        ModelDirectoryError: A target is missing, damaged, or nothing that can be measured.
        UsageError: Targets do not go together, or nothing can run here.
        ProviderUnavailableError: The only provider is not here.
    """
    names = _Names()
    if urls and not targets:
        if baseline is None:
            endpoints = _endpoints(urls, names)
            return Targets(endpoints, baseline=None, title=endpoints[0].name)
        targets = [baseline]
    providers = tuple(dict.fromkeys(providers))
    for name in providers:
        if name not in PROVIDERS:
            raise UsageError(f"there is no provider '{name}'", todo=f"choose from: {', '.join(PROVIDERS)}")
    if not targets:
        raise UsageError("nothing to measure", todo="give an artefact, an .onnx file or a model directory")
    _require_sole_provider(providers)
    labels = _short_labels([*targets, *([] if baseline is None else [baseline])])
    read = [read_target(target, label) for target, label in zip(targets, labels, strict=False)]
    first = None if baseline is None else read_target(baseline, labels[-1])
    everything = read if first is None else [first, *read]
    _require_like(everything)
    search = next((found for target in everything if (found := search_settings(target))), None)
    options = {} if search is None else {"generation": search}

    rows = [row for target in read for row in _variants(target, target.models, providers, names, options)]
    chosen: Variant | None = None
    if first is not None:
        paths = {model.path.resolve() for model in first.models}
        among = [variant for variant, model in rows if model.path.resolve() in paths]
        if not among:
            own = list(_variants(first, first.models[:1], providers, names, options))
            rows, among = [*own, *rows], [variant for variant, _ in own]
        chosen = next((variant for variant in among if variant.reason is None), among[0])
    able = [variant for variant, _ in rows if variant.reason is None]
    if not able:
        reasons = dict.fromkeys(f"{variant.name}: {variant.reason}" for variant, _ in rows)
        raise UsageError("nothing can be measured here", where="; ".join(reasons), todo="choose another --provider")
    if first is None and len(rows) > 1:
        chosen = able[0]
    rows.sort(key=lambda row: row[0] is not chosen)
    notes = []
    if chosen is not None and chosen.reason is not None:
        notes.append(f"Nothing is compared: the baseline, {chosen.name}, was {chosen.reason}.")
    homes = [target.home for target in everything]
    manifests = [target.manifest for target in [*read, *everything] if target.manifest is not None]
    own_manifest = next((target.manifest for target in read if target.manifest is not None), None)
    return Targets(
        variants=[*(variant for variant, _ in rows), *_endpoints(urls, names)],
        baseline=None if chosen is None else chosen.id,
        title=labels[0] if own_manifest is None else str(own_manifest["source"]["path_name"]),
        task=next((target.task for target in everything if target.task), None),
        config=_common_config(everything),
        max_length=min(filter(None, (max_tokens(dict(target.config or {})) for target in everything)), default=None),
        tokenizer=next((home for home in homes if any((home / name).is_file() for name in _TOKENIZERS)), None),
        image=everything[0].is_image,
        layers=_layers(manifests[0]["layers"]) if manifests else None,
        ledgers=_ledgers(everything),
        notes=notes,
        fixed={variant.id: model.graph.fixed for variant, model in rows if model.graph and any(model.graph.fixed)},
        search=search,
    )


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
                config["image_size"] = [height, width]  # the config's may be that of the training
    return config


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


def _ledgers(targets: Sequence[Target]) -> list[dict[str, Any]]:
    """The report's ``ledgers``; a baseline that is a target as well has one."""
    found = {
        str(target.given): target.manifest["ledger"]
        for target in targets
        if target.manifest is not None and "ledger" in target.manifest
    }
    return [{"target": name, "ledger": ledger} for name, ledger in found.items()]


# From models to variants


def _require_sole_provider(providers: Sequence[str]) -> None:
    """Where one provider was asked for and is not here, say what to install instead of measuring nothing."""
    from compactor.runtime.providers import resolve_provider

    if len(providers) != 1 or providers[0] == "torch":
        return
    name = providers[0]
    if name == "cuda":
        resolve_provider(name)
    reason = engines.not_run_reason("openvino" if name == "openvino" else "onnxruntime", name)
    if reason is not None:
        raise UsageError(
            f"the '{name}' provider cannot run here: {reason.removeprefix('not run: ')}", todo=_INSTALL.get(name)
        )


def _endpoints(urls: Sequence[Url], names: _Names) -> list[Variant]:
    named = [(url, *names.new(url.label)) for url in urls]
    return [Variant(id, name, url.text, "http", "remote", "unknown", Path()) for url, name, id in named]


def _variants(
    target: Target,
    models: Sequence[Model],
    providers: Sequence[str],
    names: _Names,
    options: Mapping[str, Any],
) -> Iterator[tuple[Variant, Model]]:
    """Each model on each provider that may run it."""
    for model in models:
        for engine, provider in _places(target, model, providers):
            place = f"{' on' if engine == 'torch' else ','} {_TITLES[provider]}" if provider in _TITLES else ""
            name, identity = names.new(model.label + place)
            variant = Variant(
                id=identity,
                name=name,
                target=str(target.given),
                engine=cast(EngineName, engine),
                provider=cast(ProviderName, provider),
                precision=model.precision,
                path=model.path,
                options=options,
                reason=engines.not_run_reason(engine, provider),
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
        if engines.not_run_reason("onnxruntime", "tensorrt") is None:
            places.append(("onnxruntime", "tensorrt"))
    return places


# Names: short, and unique within a report


class _Names:
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


def _short_labels(paths: Sequence[Path]) -> list[str]:
    """A short name for each path: its last part, with as many folders before it as tell different paths apart."""
    parts = [path.resolve().parts for path in paths]
    labels = []
    for own in parts:
        others = {other for other in parts if other != own}
        length = next((n for n in range(1, len(own)) if all(own[-n:] != other[-n:] for other in others)), len(own))
        labels.append("/".join(own[-length:]) or str(Path(*own)))
    return labels
