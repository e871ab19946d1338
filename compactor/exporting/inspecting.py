"""Say what an export would remove, from the weights alone: no tracing, no model is built.

The rules are those of the passes (``compactor.passes.graph.liveness``), applied to matrices found by the names that
families give them. Where the names are unknown nothing is claimed; the export finds its blocks in the graph instead.
Multiply-adds and parameters count the weights of linear layers; the attention scores themselves (Q.K and P.V), whose
cost grows with the length, are left out.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from compactor.checkpoint import Checkpoint, SourceFile, read_checkpoint
from compactor.checkpoint.config import Sizes, check_config
from compactor.checkpoint.naming import AttentionNames, LayerNames, find_layers
from compactor.exporting.matrices import config_of, judge_attention, judge_feed_forward, tower_of

Change = tuple[int, int]  # before, after
_FP32_BYTES = 4


@dataclasses.dataclass(frozen=True)
class AttentionSummary:
    """An attention block and what is alive in it.

    Attributes:
        path: Its name in the manifest, such as ``layers.0.attention`` or ``decoder.layers.0.cross_attention``.
        module: Its layer's name in the checkpoint.
        heads: Heads, before and after.
        uniform_heads: Heads that stay without a live Q.K channel: they average V, or follow a position bias alone.
        qk_width: Width of a head's queries and keys; the widest head decides.
        v_width: Width of a head's values, likewise.
        density: Part of the four matrices that is not zero, from 0 to 1.
        weights: Elements of the four matrices.
        kv_heads: Heads of keys and values, where query heads share them.
    """

    path: str
    module: str
    heads: Change
    uniform_heads: int
    qk_width: Change
    v_width: Change
    density: float
    weights: Change
    kv_heads: Change | None = None
    kind: str = "attention"


@dataclasses.dataclass(frozen=True)
class FeedForwardSummary:
    """A feed-forward block: its width before and after, density and elements as for attention."""

    path: str
    module: str
    width: Change
    density: float
    weights: Change
    kind: str = "feed_forward"


LayerSummary = AttentionSummary | FeedForwardSummary


@dataclasses.dataclass(frozen=True)
class Skipped:
    """A block whose names are known, but about which nothing can be said without its graph."""

    path: str
    module: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Removed:
    """What would go.

    Attributes:
        heads: Attention heads.
        channels: Q.K and V channels inside the heads that stay.
        neurons: Feed-forward neurons.
        sublayers: Attention and feed-forward blocks of which only a bias is left.
    """

    heads: int
    channels: int
    neurons: int
    sublayers: int


@dataclasses.dataclass(frozen=True)
class Inspection:
    """A checkpoint, summed up.

    Attributes:
        path: The model directory.
        format: ``"plain"``, ``"nn_pruning"`` or ``"head_pruned"``.
        model_type: The family, from the config.
        architectures: Class names from the config; the task follows from them.
        layers: Every recognised sublayer, in order.
        skipped: Blocks nothing is claimed about, each with its reason.
        removed: Totals of what would go.
        parameters: Elements of all weights, before and after.
        fp32_bytes: Their size in float32.
        macs_per_token: Multiply-adds of the recognised layers' matrices for one token.
        files: The files that were read.
        notes: Plain sentences for the user.
    """

    path: str
    format: str
    model_type: str
    architectures: tuple[str, ...]
    layers: tuple[LayerSummary, ...]
    skipped: tuple[Skipped, ...]
    removed: Removed
    parameters: Change
    fp32_bytes: Change
    macs_per_token: Change
    files: tuple[SourceFile, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The same as plain JSON values; a pair is a list of before and after."""
        return {name: _plain(value) for name, value in dataclasses.asdict(self).items()}


def inspect(model_dir: str | Path, *, allow_pickle: bool = False) -> Inspection:
    """Read a model directory and say what an export would remove.

    Args:
        model_dir: The model directory: plain, raw nn_pruning, or head-pruned.
        allow_pickle: Also accept ``pytorch_model.bin`` (opened with ``weights_only``).

    Raises:
        ModelDirectoryError: The directory is incomplete, damaged, unsafe or not supported.
    """
    checkpoint = read_checkpoint(model_dir, allow_pickle=allow_pickle)
    sizes = check_config(checkpoint.config, str(checkpoint.model_path / "config.json"))
    layers, skipped = _summarise_layers(checkpoint.tensors, checkpoint.config, sizes)
    before, after = (sum(layer.weights[at] for layer in layers) for at in (0, 1))
    parameters = sum(tensor.numel() for tensor in checkpoint.tensors.values() if tensor.is_floating_point())
    left = parameters - before + after
    return Inspection(
        path=str(model_dir),
        format=checkpoint.format,
        model_type=checkpoint.config["model_type"],
        architectures=tuple(checkpoint.config.get("architectures") or ()),
        layers=layers,
        skipped=skipped,
        removed=_count_removed(layers),
        parameters=(parameters, left),
        fp32_bytes=(parameters * _FP32_BYTES, left * _FP32_BYTES),
        macs_per_token=(before, after),
        files=checkpoint.files,
        notes=(*checkpoint.notes, *_remarks(checkpoint, layers, skipped)),
    )


def _summarise_layers(
    tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any], sizes: Sizes
) -> tuple[tuple[LayerSummary, ...], tuple[Skipped, ...]]:
    layers: list[LayerSummary] = []
    skipped: list[Skipped] = []

    def attend(path: str, layer: LayerNames, names: AttentionNames, heads: int | None) -> None:
        own = config_of(layer, config)
        stated = heads if own is config else own.get("num_attention_heads")
        found = judge_attention(names, layer.index, tensors, own, stated)
        if isinstance(found, str):
            skipped.append(Skipped(path, layer.module, found))
        else:
            layers.append(
                AttentionSummary(
                    path=path,
                    module=layer.module,
                    heads=found.heads,
                    uniform_heads=found.uniform,
                    qk_width=found.qk_width,
                    v_width=found.v_width,
                    density=found.density,
                    weights=found.weights,
                    kv_heads=found.kv_heads,
                )
            )

    for prefix, stack, heads in _stacks(find_layers(tensors.keys()), sizes):
        modules = tuple(f"{layer.module}." for layer in stack)
        index = -1  # as in the graph: an attention block opens a layer, a feed-forward block belongs to the last one
        for layer in stack:
            nested = layer.module.startswith(modules)
            index += layer.attention is not None or not nested
            path = f"{prefix}layers.{index}"
            if layer.attention is not None:
                attend(f"{path}.attention", layer, layer.attention, heads)
            elif not nested:
                reason = "it has no attention with names known here"
                skipped.append(Skipped(f"{path}.attention", layer.module, reason))
            if layer.cross_attention is not None:
                attend(f"{path}.cross_attention", layer, layer.cross_attention, heads)
            path = f"{path}.feed_forward"
            if layer.feed_forward is None:
                reason = "it has no feed-forward block with names known here"
                skipped.append(Skipped(path, layer.module, reason))
                continue
            block = judge_feed_forward(layer.feed_forward, tensors, config_of(layer, config))
            if isinstance(block, str):
                skipped.append(Skipped(path, layer.module, block))
            else:
                layers.append(FeedForwardSummary(path, layer.module, block.width, block.density, block.weights))
    return _number_repeats(layers), tuple(skipped)


def _stacks(layers: tuple[LayerNames, ...], sizes: Sizes) -> list[tuple[str, tuple[LayerNames, ...], int | None]]:
    """What the graph's labels begin with, the layers, and their number of heads: of a model with one stack, or of two.

    A stack whose layers look at other states is a decoder, and what is beside it its encoder. The halves of a model
    that compares texts with images have a name each: an export takes one of them.
    """
    towers = {tower_of(layer): None for layer in layers}
    if len(towers) > 1:
        halves = ((tower, tuple(layer for layer in layers if tower_of(layer) == tower)) for tower in towers)
        return [(f"{tower}." if tower else "", half, sizes.heads) for tower, half in halves]
    decoders = {layer.stack for layer in layers if layer.cross_attention is not None}
    if not decoders:
        return [("", layers, sizes.heads)]
    encoder = tuple(layer for layer in layers if layer.stack not in decoders)
    decoder = tuple(layer for layer in layers if layer.stack in decoders)
    return [("encoder.", encoder, sizes.heads), ("decoder.", decoder, sizes.decoder_heads)]


def _number_repeats(layers: list[LayerSummary]) -> tuple[LayerSummary, ...]:
    """Tell the feed-forward blocks of one layer apart, as the graph's labels do."""
    taken: collections.Counter[str] = collections.Counter()
    numbered = []
    for layer in layers:
        taken[layer.path] += 1
        count = taken[layer.path]
        numbered.append(layer if count == 1 else dataclasses.replace(layer, path=f"{layer.path}_{count}"))
    return tuple(numbered)


def _count_removed(layers: tuple[LayerSummary, ...]) -> Removed:
    heads = channels = neurons = sublayers = 0
    for layer in layers:
        sublayers += layer.weights[1] == 0
        if isinstance(layer, AttentionSummary):
            heads += layer.heads[0] - layer.heads[1]
            channels += layer.heads[1] * (layer.qk_width[0] - layer.qk_width[1] + layer.v_width[0] - layer.v_width[1])
        else:
            neurons += layer.width[0] - layer.width[1]
    return Removed(heads, channels, neurons, sublayers)


def _remarks(checkpoint: Checkpoint, layers: tuple[LayerSummary, ...], skipped: tuple[Skipped, ...]) -> list[str]:
    if not layers and not skipped:
        family = checkpoint.config["model_type"]
        return [f"no layer of '{family}' has names known here; the export finds its blocks in the graph"]
    if skipped or any(layer.weights[0] != layer.weights[1] for layer in layers):
        return []
    if all(layer.density == 1 for layer in layers):
        return ["the model is dense: nothing to remove"]
    return ["the zeros fill no whole head, channel or neuron: nothing to remove"]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
