"""Compare the sizes a config states with the shapes of the weights, before anything is allocated for the model."""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence

from compactor.checkpoint.config import Sizes
from compactor.checkpoint.naming import LayerNames, find_layers
from compactor.checkpoint.pruned_heads import PrunedHeads
from compactor.errors import ModelDirectoryError

Shapes = Mapping[str, tuple[int, ...]]

# Families whose every size means what its name says. Others narrow some matrices by rules of their own.
_PLAIN_FAMILIES = frozenset(
    {"bert", "roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "roberta-prelayernorm", "data2vec-text"}
    | {"electra", "distilbert", "mpnet", "layoutlm", "ernie", "megatron-bert", "vit", "deit", "beit", "vit_msn"}
)
_HARMLESS_TABLE = 1 << 16


def check_agreement(model_type: str, sizes: Sizes, shapes: Shapes, pruned: PrunedHeads, where: str) -> None:
    """Refuse a config that asks for a model of other sizes than the weights have.

    For BERT and the families built like it, embedding tables, the number of layers, and every attention and
    feed-forward matrix must have exactly the stated sizes. For any other no stated size may be far from what the
    weights hold; the rest is left to the model's own class, which refuses weights that do not fit.

    Args:
        model_type: The family.
        sizes: What the config states.
        shapes: Shapes of the stored tensors.
        pruned: Heads that are missing, by layer.
        where: Path of the config, for messages.

    Raises:
        ModelDirectoryError: Naming the first tensor that disagrees.
    """
    if model_type not in _PLAIN_FAMILIES:
        _check_bounds(sizes, shapes, where)
        if sizes.decoder_layers is not None:
            _check_layers(sizes, find_layers(shapes.keys()), where)
        return
    for name, expected in _tables(sizes, shapes):
        _check(name, shapes[name], expected, where)
    layers = find_layers(shapes.keys())
    _check_layers(sizes, layers, where)
    for layer in layers:
        if layer.attention:
            width = _attention_width(sizes, pruned, layer.index)
            for module in layer.attention.inputs:
                _check(f"{module}.weight", shapes[f"{module}.weight"], (width, sizes.hidden), where)
            output = f"{layer.attention.output}.weight"
            _check(output, shapes[output], (sizes.hidden, width), where)
        if layer.feed_forward:
            for module in layer.feed_forward.inputs:
                _check(f"{module}.weight", shapes[f"{module}.weight"], (sizes.intermediate, sizes.hidden), where)
            output = f"{layer.feed_forward.output}.weight"
            _check(output, shapes[output], (sizes.hidden, sizes.intermediate), where)


def _check_layers(sizes: Sizes, layers: Sequence[LayerNames], where: str) -> None:
    """Refuse a stack of another length than the config states: transformers would drop what is too much."""
    for stack, count in collections.Counter(layer.stack for layer in layers).items():
        stated = sizes.decoder_layers if "decoder" in stack.split(".") else sizes.layers
        if stated is not None and count != stated:
            raise ModelDirectoryError(
                f"the config states {stated} layers, but the weights hold {count} under '{stack}'", where=where
            )


def _check_bounds(sizes: Sizes, shapes: Shapes, where: str) -> None:
    """Refuse sizes above the largest dimension of the weights.

    A vocabulary or a length may have no table of its own (an image model, rotary positions), so a small one passes.
    """
    largest = max((dimension for shape in shapes.values() for dimension in shape), default=0)
    stated = {
        "hidden": sizes.hidden,
        "feed-forward": sizes.intermediate,
        "decoder's feed-forward": sizes.decoder_intermediate,
        "vocabulary": sizes.vocabulary,
        "position": sizes.positions,
        "embedding": sizes.embedding,
    }
    for what, size in stated.items():
        may_lack_table = what in ("vocabulary", "position")
        if size is not None and size > (max(largest, _HARMLESS_TABLE) if may_lack_table else largest):
            raise ModelDirectoryError(
                f"the config states {size} as its {what} size, but no weight has a dimension above {largest}",
                where=where,
                todo="config.json and the weights do not belong together",
            )
    layers = (sizes.layers or 0) + (sizes.decoder_layers or 0)
    if layers > len(shapes):
        raise ModelDirectoryError(
            f"the config states {layers} layers, but the weights hold {len(shapes)} tensors", where=where
        )


def _tables(sizes: Sizes, shapes: Shapes) -> list[tuple[str, tuple[int | None, ...]]]:
    """The embedding tables that are there, each with the shape the config asks for."""
    width = sizes.embedding or sizes.hidden
    tables = {
        ".word_embeddings.weight": (sizes.vocabulary, width),
        ".position_embeddings.weight": (sizes.positions, width),
        ".token_type_embeddings.weight": (sizes.types, width),
        ".patch_embeddings.projection.weight": (sizes.hidden, sizes.channels, sizes.patch, sizes.patch),
    }
    return [(name, shape) for suffix, shape in tables.items() for name in shapes if f".{name}".endswith(suffix)]


def _attention_width(sizes: Sizes, pruned: PrunedHeads, layer: int) -> int | None:
    """Width of the projections of a layer; None where the config leaves it open (a free head size)."""
    if sizes.hidden is None or sizes.heads is None or sizes.hidden % sizes.heads:
        return None
    return sizes.hidden // sizes.heads * (sizes.heads - len(pruned.get(layer, ())))


def _check(name: str, shape: tuple[int, ...], expected: tuple[int | None, ...], where: str) -> None:
    fits = len(shape) == len(expected) and all(
        want is None or have == want for have, want in zip(shape, expected, strict=True)
    )
    if not fits:
        wanted = " x ".join("?" if want is None else str(want) for want in expected)
        raise ModelDirectoryError(
            f"'{name}' is {' x '.join(map(str, shape)) or 'a scalar'}, but the config asks for {wanted}",
            where=where,
            todo="config.json and the weights do not belong together",
        )
