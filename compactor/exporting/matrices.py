"""The matrices of a checkpoint's blocks, taken by their names, and what is alive in them by the rules of the passes.

What the passes read in the graph, a config has to tell here: how many heads share keys, what a rotary embedding turns,
whether a mask may hide every key from a query, and which function gates a neuron. Where it does not tell, the block has
a reason instead, and nothing is claimed about it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from compactor.checkpoint.naming import AttentionNames, FeedForwardNames, LayerNames
from compactor.passes.graph.liveness import HeadLiveness, arrange_heads, head_liveness, neuron_liveness, repeat_heads
from compactor.positions import stated_positions

Tensors = Mapping[str, torch.Tensor]
Config = Mapping[str, Any]
Live = NDArray[np.bool_]

# Families with BERT's names whose attention is something else.
_OTHER_ATTENTION = frozenset({"nystromformer", "yoso", "roformer", "reformer", "fnet"})
# Families whose rotary embedding turns channel i of a head together with channel i + d/2.
_HALF_SPLIT = frozenset({"modernbert", "gte", "new", "nomic_bert", "jina_embeddings_v3", "eurobert"})
_PART_TURNED = ("partial_rotary_factor", "rotary_emb_fraction", "rotary_pct")
_DISENTANGLED = frozenset({"deberta-v2"})
_ZERO_AT_ZERO = frozenset(
    {"gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "gelu_python", "quick_gelu", "silu", "swish", "relu", "tanh"}
)
_TOWERS = {"text_model": "text_config", "vision_model": "vision_config"}


@dataclasses.dataclass(frozen=True)
class Attention:
    """What is alive in one attention block, and what an export would leave of it.

    Attributes:
        heads: Before and after.
        kv_heads: The same of keys and values, where query heads share them.
        uniform: Of those left, the ones without a live Q.K channel.
        qk_width: Of a head, before and after.
        v_width: The same of values.
        density: Part of the four matrices that is not zero, from 0 to 1.
        weights: Their elements, before and after.
    """

    heads: tuple[int, int]
    kv_heads: tuple[int, int] | None
    uniform: int
    qk_width: tuple[int, int]
    v_width: tuple[int, int]
    density: float
    weights: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class FeedForward:
    """The same of a feed-forward block: its width before and after, density and elements as for attention."""

    width: tuple[int, int]
    density: float
    weights: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class _Projection:
    """One matrix ``(in, out)`` of a block: where it and its bias are not zero."""

    weight: Live
    bias: Live | None

    @property
    def driven(self) -> Live:
        """``(out,)``: columns that an input moves."""
        return np.asarray(self.weight.any(axis=0))

    @property
    def something(self) -> Live:
        """``(out,)``: columns that are not zero for every input."""
        return self.driven if self.bias is None else self.driven | self.bias


def tower_of(layer: LayerNames) -> str | None:
    """The half of a model of texts and images that a layer is in; None in any other."""
    return next((part for part in layer.module.split(".") if part in _TOWERS), None)


def config_of(layer: LayerNames, config: Config) -> Config:
    """The part of ``config`` that describes a layer: that of its tower, in a model of two."""
    name = tower_of(layer)
    tower = None if name is None else config.get(_TOWERS[name])
    return {"model_type": f"{config['model_type']}_{name}", **tower} if isinstance(tower, dict) else config


def judge_attention(
    names: AttentionNames, index: int, tensors: Tensors, config: Config, heads: int | None
) -> Attention | str:
    """What an export would leave of an attention block, or why nothing can be said about it.

    Args:
        names: Its modules.
        index: The number of its layer.
        tensors: The checkpoint's.
        config: That of its tower.
        heads: Query heads, as the config states them.
    """
    reason = _why_not(names, config, heads)
    if reason is not None:
        return reason
    assert heads
    query, key, value = _projections(names, tensors)
    output = _nonzero(tensors[f"{names.output}.weight"])
    rows = tuple(each.weight.shape[1] for each in (query, key, value))
    size, left = divmod(rows[0], heads)
    kv_heads, broken = (0, 1) if left or not size else divmod(rows[1], size)
    stated = config.get("num_key_value_heads") or heads
    if broken or kv_heads != stated or heads % kv_heads or rows[2] % kv_heads or output.shape[0] % heads:
        return f"Q, K and V are {rows[0]}, {rows[1]} and {rows[2]} wide, which {heads} heads do not share evenly"
    live = _liveness(names, tensors, output, config, heads, kv_heads)
    folds = value.bias is None or not _may_hide_all(config, index)  # the value bias moves behind the attention
    alive = live.heads
    if not folds:
        assert value.bias is not None
        bias = repeat_heads(value.bias, kv_heads, heads).astype(bool)
        alive = alive | (bias & np.asarray(output.any(axis=1))).reshape(heads, -1).any(axis=1)
    kept = kept_groups = 0
    if alive.any():
        kept, kept_groups = map(len, arrange_heads(alive, kv_heads, width=size, inner=output.shape[1]))
    qk_width, v_width = _widths(live.by_group(kv_heads), config, folds=folds) if kept else (0, 0)
    matrices = (query.weight, key.weight, value.weight, output)
    return Attention(
        heads=(heads, kept),
        kv_heads=None if kv_heads == heads else (kv_heads, kept_groups),
        uniform=int((alive & ~live.qk.any(axis=1)).sum()),
        qk_width=(size, qk_width),
        v_width=(live.v.shape[1], v_width),
        density=_density(*matrices),
        weights=(sum(each.size for each in matrices), (kept + kept_groups) * (qk_width + v_width) * output.shape[1]),
    )


def judge_feed_forward(names: FeedForwardNames, tensors: Tensors, config: Config) -> FeedForward | str:
    """What an export would leave of a feed-forward block, or why nothing can be said about it."""
    if names.unknown:
        return f"'{names.unknown[0]}' is not part of a plain feed-forward block"
    inputs = [part for name in names.inputs for part in _read(tensors, name, 2 if names.fused else 1)]
    output = _nonzero(tensors[f"{names.output}.weight"])
    width, model_width = output.shape
    if any(each.weight.shape[1] != width for each in inputs):
        return f"'{names.inputs[0]}' and '{names.output}' have other numbers of neurons"
    live = neuron_liveness([each.weight for each in inputs], output)
    if len(inputs) == 2 and (config.get("hidden_act") or config.get("hidden_activation")) in _ZERO_AT_ZERO:
        for each in inputs:  # zero on either side of the gate is zero behind it
            live = live & each.something
    kept, matrices = int(live.sum()), len(inputs) + 1
    return FeedForward(
        width=(width, kept),
        density=_density(*(each.weight for each in inputs), output),
        weights=(matrices * width * model_width, matrices * kept * model_width),
    )


def _why_not(names: AttentionNames, config: Config, heads: int | None) -> str | None:
    """Why nothing can be said about an attention block; None where something can."""
    family = config["model_type"]
    if names.unknown:
        return f"'{names.unknown[0]}' is not part of plain attention"
    if family in _OTHER_ATTENTION:
        return f"'{family}' replaces softmax attention or rotates Q and K"
    if not heads:
        return "the config states no number of heads"
    if _is_rotary(config):
        known = family in _HALF_SPLIT or family == "esm"
        rope = config.get("rope_parameters")
        stated = (*config.items(), *(rope.items() if isinstance(rope, dict) else ()))
        if not known or any(name in _PART_TURNED and value not in (None, 1) for name, value in stated):
            return "its positions enter Q and K (rotary, in a way that is not known here)"
    elif config.get("position_embedding_type") not in (None, "absolute"):
        return "its positions enter Q and K (relative to the key)"
    if family in _DISENTANGLED and not (config.get("relative_attention") and config.get("pos_att_type")):
        return "it has DeBERTa's attention without relative positions"
    return None


def _is_rotary(config: Config) -> bool:
    if config["model_type"] in _HALF_SPLIT or config.get("position_embedding_type") == "rotary":
        return True
    if config["model_type"] == "esm":
        return False  # its configs state a theta also where positions are a table
    return any(key.startswith(("rope_", "rotary_")) for key in config)


def _may_hide_all(config: Config, index: int) -> bool:
    """Whether a layer's mask may leave a query without a key.

    A window around a padded token holds padding alone; so does what lies before one, where a token sees none behind it.
    """
    if config["model_type"].endswith("_text_model") and not config["model_type"].startswith("siglip"):
        return True  # CLIP's, and those that are made of it
    kinds = config.get("layer_types")
    if isinstance(kinds, list) and index < len(kinds):
        return bool(kinds[index] != "full_attention")
    every = config.get("global_attn_every_n_layers")
    if isinstance(every, int) and every > 0:
        return index % every != 0
    return any(config.get(name) for name in ("local_attention", "sliding_window"))


def _liveness(
    names: AttentionNames, tensors: Tensors, output: Live, config: Config, heads: int, kv_heads: int
) -> HeadLiveness:
    query, key, value = _projections(names, tensors)
    size = query.weight.shape[1] // heads
    query_table, key_table = _distances(names, tensors, config)
    return head_liveness(
        query.weight,
        query.bias,
        key.weight,
        value.weight,
        output,
        heads=heads,
        kv_heads=kv_heads,
        key_bias=key.bias,
        partners=(np.arange(size) + size // 2) % size if _is_rotary(config) else None,
        query_table=query_table,
        key_table=key_table,
    )


def _distances(names: AttentionNames, tensors: Tensors, config: Config) -> tuple[Live | None, Live | None]:
    """``(1, H*d)`` each: what is not zero in that which queries and keys are multiplied by for a distance."""
    if config["model_type"] not in _DISENTANGLED:
        return None, None
    if config.get("share_att_key"):
        modules = {"c2p": names.key, "p2c": names.query}
    else:
        block = names.query.rpartition(".")[0]
        modules = {"c2p": f"{block}.pos_key_proj", "p2c": f"{block}.pos_query_proj"}
    terms = config.get("pos_att_type") or ()
    of_query, of_key = (
        _read(tensors, modules[term], 1)[0].something[None] if term in terms else None for term in ("c2p", "p2c")
    )
    return of_query, of_key


def _widths(live: HeadLiveness, config: Config, *, folds: bool) -> tuple[int, int]:
    """Of a head's queries and keys, and of its values, where heads are left."""
    if not live.heads.any():  # of which a bias alone is left
        return live.qk.shape[1], live.v.shape[1]
    qk_width = live.qk_width
    if _is_rotary(config):  # turned alike in all heads: a pair stays for any of them, and all where tables are computed
        qk_width = int(live.qk.any(axis=0).sum())
        qk_width = live.qk.shape[1] if qk_width and stated_positions(config) is None else qk_width
    return max(qk_width, 1), live.v_width if folds else live.v.shape[1]


def _projections(names: AttentionNames, tensors: Tensors) -> list[_Projection]:
    """Query, key and value."""
    if names.fused:
        return _read(tensors, names.query, 3)
    return [part for name in names.inputs for part in _read(tensors, name, 1)]


def _read(tensors: Tensors, module: str, parts: int) -> list[_Projection]:
    """The matrices in the weight of a linear layer, stored as ``(out, in)``, one below the other."""
    weights = np.array_split(_nonzero(tensors[f"{module}.weight"]), parts, axis=1)
    bias = tensors.get(f"{module}.bias")
    biases = [None] * parts if bias is None else np.array_split((bias != 0).numpy(), parts)
    return [_Projection(weight, own) for weight, own in zip(weights, biases, strict=True)]


def _nonzero(weight: torch.Tensor) -> Live:
    """``(in, out)`` bool."""
    mask: Live = (weight != 0).numpy()
    return mask.T


def _density(*matrices: Live) -> float:
    return sum(int(matrix.sum()) for matrix in matrices) / sum(matrix.size for matrix in matrices)
