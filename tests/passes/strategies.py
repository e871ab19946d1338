"""Random architectures and random dead structure for the property tests of passes."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from tests.models import Architecture, Weights, random_weights
from tests.planting import columns, empty_feed_forward

PROPERTY = settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow])

# Spellings that leave every query a key, whatever the padding; "causal" does not: a padded first key empties row 0.
SAFE_MASKS = ("none", "plain", "additive", "scaled", "gathered", "bias", "bias_only", "given", "visible")


@st.composite
def architectures(draw: st.DrawFn, **fixed: object) -> Architecture:
    """Small ones; ``fixed`` fields are not drawn."""
    drawn = {
        "layers": draw(st.integers(1, 2)),
        "width": draw(st.integers(2, 6)),
        "heads": draw(st.integers(1, 4)),
        "qk": draw(st.integers(1, 4)),
        "v": draw(st.integers(1, 4)),
        "neurons": draw(st.integers(1, 8)),
        "activation": draw(st.sampled_from(["gelu", "tanh-gelu", "relu", "silu", "erf-gelu"])),
        "gated": draw(st.booleans()),
        "norm": draw(st.sampled_from(["post", "pre"])),
        "mask": draw(st.sampled_from(SAFE_MASKS)),
        "front": draw(st.sampled_from(["hidden", "ids"])),
        "head": draw(st.sampled_from(["hidden", "classifier", "span", "mean"])),
    }
    return Architecture(**{**drawn, **fixed})


@st.composite
def pruned(draw: st.DrawFn, **fixed: object) -> tuple[Architecture, Weights]:
    """An architecture and weights with dead structure of every kind planted; some layers share their arrays."""
    arch = draw(architectures(**fixed))
    weights = random_weights(arch, draw(st.integers(0, 9)))
    for layer in range(arch.layers):
        prune_layer(draw, arch, weights, layer, attentions=(f"{layer}",))
    if arch.layers == 2 and draw(st.booleans()):  # the exporter writes these once
        for name in [name for name in weights if name.startswith("0.")]:
            if draw(st.booleans()) and f"1.{name[2:]}" in weights:
                weights[f"1.{name[2:]}"] = weights[name].copy()
    return arch, weights


@st.composite
def grouped(draw: st.DrawFn, **fixed: object) -> tuple[Architecture, Weights]:
    """The same, of which 2 to 4 query heads share each key and value head."""
    groups, times = draw(st.integers(1, 3)), draw(st.integers(2, 4))
    return draw(pruned(**{"kv_heads": groups, "heads": groups * times, **fixed}))


@st.composite
def disentangled(draw: st.DrawFn, **fixed: object) -> tuple[Architecture, Weights]:
    """The same, with logits of distances."""
    drawn = {
        "relative": draw(st.sampled_from(["c2p", "p2c", "both"])),
        "qk": draw(st.sampled_from([1, 4])),  # whose scale is exact in the float32 that an attribute holds
        "mask": draw(st.sampled_from(["both_real", "none", "additive", "scaled"])),
    }
    return draw(pruned(**{**drawn, **fixed}))


def prune_layer(
    draw: st.DrawFn, arch: Architecture, weights: Weights, layer: int, *, attentions: Sequence[str]
) -> None:
    """Plant dead structure into a layer; ``attentions`` are what the names of its attentions' weights begin with."""
    for attention in attentions:
        _prune_attention(draw, arch, weights, attention)
    _prune_feed_forward(draw, arch, weights, layer)
    for name in ("query", "key", "value", "output"):
        for attention in attentions:
            if draw(st.integers(0, 7)) == 0:
                del weights[f"{attention}.{name}.bias"]
    for name in ("up", "down"):
        if draw(st.integers(0, 7)) == 0:
            del weights[f"{layer}.{name}.bias"]


def _prune_attention(draw: st.DrawFn, arch: Architecture, weights: Weights, layer: str) -> None:
    fates = (
        "alive",
        "no-value",
        "no-output",
        "no-key",
        "no-query",
        "half-qk",
        "half-v",
        "half-output",
        "constant-query",
    )
    every = draw(st.sampled_from((None, None, None, "no-value", "no-output", "no-key")))
    for head in range(arch.heads):
        fate = every or draw(st.sampled_from(fates))
        shared = head * arch.groups // arch.heads  # the number of its key and value head
        qk, v = columns(arch.qk, head), columns(arch.v, head)
        shared_qk, shared_v = columns(arch.qk, shared), columns(arch.v, shared)
        for side in ("c2p", "p2c"):
            if f"{layer}.{side}" in weights:
                silent = draw(st.sampled_from([[], qk, draw(st.lists(st.sampled_from(qk)))]))
                weights[f"{layer}.{side}"][:, silent] = 0
                weights[f"{layer}.{side}.bias"][silent] = 0
        if fate == "no-value":
            weights[f"{layer}.value"][:, shared_v] = 0
        elif fate == "no-output":
            weights[f"{layer}.output"][v] = 0
        elif fate == "no-key":
            weights[f"{layer}.key"][:, shared_qk] = 0
        elif fate == "no-query":
            weights[f"{layer}.query"][:, qk] = 0
            weights[f"{layer}.query.bias"][qk] = 0
        elif fate == "constant-query":  # its bias still meets the keys: alive
            weights[f"{layer}.query"][:, qk] = 0
        elif fate == "half-qk":
            weights[f"{layer}.key"][:, draw(st.lists(st.sampled_from(shared_qk)))] = 0
        elif fate == "half-v":
            weights[f"{layer}.value"][:, draw(st.lists(st.sampled_from(shared_v)))] = 0
        elif fate == "half-output":
            weights[f"{layer}.output"][draw(st.lists(st.sampled_from(v)))] = 0


def _prune_feed_forward(draw: st.DrawFn, arch: Architecture, weights: Weights, layer: int) -> None:
    neurons = st.lists(st.integers(0, arch.neurons - 1))
    weights[f"{layer}.down"][draw(neurons)] = 0
    weights[f"{layer}.up"][:, draw(neurons)] = 0
    weights[f"{layer}.up.bias"][draw(neurons)] = 0
    if arch.gated:
        weights[f"{layer}.gate"][:, draw(neurons)] = 0
    if draw(st.integers(0, 3)) == 0:
        empty_feed_forward(weights, layer)
    elif draw(st.integers(0, 5)) == 0:
        weights[f"{layer}.down"][:] = 0
