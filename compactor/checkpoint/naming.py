"""Where each model family keeps the matrices of a layer, as names of tensors.

A layer is ``<stem>.<index>``; inside it a family calls its four attention projections and its feed-forward matrices
by fixed names. Only the reader and ``compactor inspect`` need names: the export finds its blocks in the graph.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterator

_ATTENTION_NAMES: tuple[tuple[str, str, str, str], ...] = (
    # BERT, RoBERTa, XLM-RoBERTa, ELECTRA, CamemBERT
    ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"),
    # ViT, DeiT, BEiT as saved by transformers 4 (and by 5, which converts on load and save)
    ("attention.attention.query", "attention.attention.key", "attention.attention.value", "attention.output.dense"),
    # ViT inside transformers 5
    ("attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.o_proj"),
    # DistilBERT, as saved, and inside transformers 5
    ("attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin"),
    # MPNet
    ("attention.attn.q", "attention.attn.k", "attention.attn.v", "attention.attn.o"),
    # CLIP, Wav2Vec2 and most newer encoders
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj"),
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
    ("attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.out_proj"),
    # DeBERTa-v2
    ("attention.self.query_proj", "attention.self.key_proj", "attention.self.value_proj", "attention.output.dense"),
)
# Queries, keys and values as thirds of one matrix, in this order, and the output: ModernBERT, NomicBERT, Jina v3, GTE.
_FUSED_ATTENTION_NAMES: tuple[tuple[str, str], ...] = (
    ("attn.Wqkv", "attn.Wo"),
    ("attn.Wqkv", "attn.out_proj"),
    ("mixer.Wqkv", "mixer.out_proj"),
    ("attention.qkv_proj", "attention.o_proj"),
)
# What a decoder's layer has beside them to look at the encoder's states: BART, mBART, Marian, Pegasus.
_CROSS_ATTENTION_NAMES = (
    ("encoder_attn.q_proj", "encoder_attn.k_proj", "encoder_attn.v_proj", "encoder_attn.out_proj"),
)
_FEED_FORWARD_NAMES: tuple[tuple[tuple[str, ...], str], ...] = (
    (("intermediate.dense",), "output.dense"),
    (("ffn.lin1",), "ffn.lin2"),
    (("mlp.fc1",), "mlp.fc2"),
    (("fc1",), "fc2"),
    (("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj"),
    (("mlp.fc11", "mlp.fc12"), "mlp.fc2"),  # NomicBERT
)
# A gated pair as halves of one matrix, in whatever order: ModernBERT, GTE.
_FUSED_FEED_FORWARD_NAMES = (("mlp.Wi", "mlp.Wo"), ("mlp.up_gate_proj", "mlp.down_proj"))
# Beside its projections, what an attention block may hold without changing which channels are alive: something
# added to the logits, or applied after the output. Anything else (a norm of Q, a relative key) voids the algebra.
_HARMLESS = re.compile(
    r"(\.output)?\.LayerNorm\.(weight|bias|gamma|beta)$|relative_(attention_bias|position_(bias|index))"
    r"|\.self\.pos_(key|query)_proj\.(weight|bias)$"  # DeBERTa-v2: of what queries and keys meet the distances
    r"|\.rotary_embeddings\.inv_freq$"  # ESM-2, as saved by transformers 4
)
_INDEX = re.compile(r"\d+")


@dataclasses.dataclass(frozen=True)
class AttentionNames:
    """The modules of one attention block.

    Attributes:
        query: Module name of the query projection, without ``.weight``; the other three likewise.
        key: The key projection.
        value: The value projection.
        output: The output projection.
        unknown: Tensors of the block that the algebra does not know; if any, nothing is claimed about it.
        fused: Whether query, key and value are the thirds of one matrix, in this order, whose name all three have.
    """

    query: str
    key: str
    value: str
    output: str
    unknown: tuple[str, ...] = ()
    fused: bool = False

    @property
    def inputs(self) -> tuple[str, str, str]:
        """Query, key and value."""
        return self.query, self.key, self.value


@dataclasses.dataclass(frozen=True)
class FeedForwardNames:
    """The modules of one feed-forward block.

    Attributes:
        inputs: The input projection, or two where it is gated.
        output: The output projection.
        unknown: Tensors between them that the algebra does not know, as for attention.
        fused: Whether the two of a gated block are the halves of one matrix, whose name stands alone in ``inputs``.
    """

    inputs: tuple[str, ...]
    output: str
    unknown: tuple[str, ...] = ()
    fused: bool = False


@dataclasses.dataclass(frozen=True)
class LayerNames:
    """One layer: its name in the checkpoint, its stack and number, and the blocks that were recognised.

    ``cross_attention`` is what a decoder's layer has beside ``attention``: it looks at the encoder's states.
    """

    module: str
    stack: str
    index: int
    attention: AttentionNames | None
    feed_forward: FeedForwardNames | None
    cross_attention: AttentionNames | None = None

    @property
    def attentions(self) -> tuple[AttentionNames, ...]:
        """Those that it has, over its own states and over the encoder's."""
        return tuple(names for names in (self.attention, self.cross_attention) if names is not None)


def find_layers(names: Collection[str]) -> tuple[LayerNames, ...]:
    """The layers whose attention or feed-forward block has known names, stack by stack and in order.

    Args:
        names: Names of all tensors of the checkpoint.
    """
    modules = {name.removesuffix(".weight") for name in names if name.endswith(".weight")}
    layers = []
    for module in sorted(_layer_prefixes(modules), key=_natural):
        attention = _find_attention(module, _ATTENTION_NAMES, modules, names)
        attention = attention or _find_fused_attention(module, modules, names)
        cross_attention = _find_attention(module, _CROSS_ATTENTION_NAMES, modules, names)
        feed_forward = _find_feed_forward(module, modules, names)
        if attention or cross_attention or feed_forward:
            stack, _, index = module.rpartition(".")
            layers.append(LayerNames(module, stack, int(index), attention, feed_forward, cross_attention))
    return tuple(layers)


def _layer_prefixes(modules: Collection[str]) -> set[str]:
    """Every ``<stem>.<index>`` that a module lies in, the innermost index."""
    prefixes = set()
    for module in modules:
        parts = module.split(".")
        indexes = [at for at, part in enumerate(parts[:-1]) if _INDEX.fullmatch(part)]
        if indexes and indexes[-1] > 0:
            prefixes.add(".".join(parts[: indexes[-1] + 1]))
    return prefixes


def _find_attention(
    layer: str, known: Collection[tuple[str, str, str, str]], modules: Collection[str], names: Collection[str]
) -> AttentionNames | None:
    for local in known:
        query, key, value, output = (f"{layer}.{name}" for name in local)
        if query in modules and key in modules and value in modules and output in modules:
            unknown = _find_unknown(layer, local[0], (query, key, value, output), names)
            return AttentionNames(query, key, value, output, unknown)
    return None


def _find_fused_attention(layer: str, modules: Collection[str], names: Collection[str]) -> AttentionNames | None:
    for local in _FUSED_ATTENTION_NAMES:
        fused, output = (f"{layer}.{name}" for name in local)
        if fused in modules and output in modules:
            unknown = _find_unknown(layer, local[0], (fused, output), names)
            return AttentionNames(fused, fused, fused, output, unknown, fused=True)
    return None


def _find_feed_forward(layer: str, modules: Collection[str], names: Collection[str]) -> FeedForwardNames | None:
    for local_inputs, local_output in _FEED_FORWARD_NAMES:
        inputs = tuple(f"{layer}.{name}" for name in local_inputs)
        output = f"{layer}.{local_output}"
        if output in modules and all(name in modules for name in inputs):
            return FeedForwardNames(inputs, output, _find_unknown(layer, local_inputs[0], (*inputs, output), names))
    for local_input, local_output in _FUSED_FEED_FORWARD_NAMES:
        fused, output = f"{layer}.{local_input}", f"{layer}.{local_output}"
        if fused in modules and output in modules:
            return FeedForwardNames((fused,), output, _find_unknown(layer, local_input, (fused, output), names), True)
    return None


def _find_unknown(layer: str, first: str, known: tuple[str, ...], names: Collection[str]) -> tuple[str, ...]:
    """Tensors in the block of the local module ``first`` that neither belong to ``known`` modules nor are harmless."""
    block, dot, _ = first.partition(".")
    if not dot:  # the matrices lie in the layer itself, beside everything else
        return ()
    inside = (name for name in names if name.startswith(f"{layer}.{block}."))
    mine = tuple(f"{module}." for module in known)
    return tuple(sorted(name for name in inside if not name.startswith(mine) and not _HARMLESS.search(name)))


def _natural(name: str) -> tuple[tuple[int, int | str], ...]:
    """Sort key under which ``layer.10`` follows ``layer.9``."""
    return tuple(_natural_parts(name))


def _natural_parts(name: str) -> Iterator[tuple[int, int | str]]:
    for part in name.split("."):
        yield (0, int(part)) if part.isdigit() else (1, part)
