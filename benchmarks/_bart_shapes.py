"""Sizes of pruned BARTs, and random models that have them.

What is published of the pruned BARTs of the paper's table 4 are sums: how much the decoder's linear weights are
compressed, and from the cards of two checkpoints of BART-base how much is left of all linear weights (23 % and 35 %)
and how many of the 216 heads (155 and 178). Sizes of the layers are not published. They are made up by these rules:

    decoder     its linear weights are those of the dense one over the factor
    encoder     what remains of the published sum; where there is none, the same factor as the decoder
    attention   its weights are kept three times as often as neurons, as in the paper's filled BERTs (2 to 5 times)
    layers      uneven: each draws its share of heads and of neurons between half and one and a half of the mean

A plan removes whole heads and neurons, so that its structure is compressed by the factor. The plan ``base-3.4-hybrid``
keeps the published number of heads instead, half-empty, with as many weights left: what a checkpoint is before filling.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import plant

HEADS_OVER_NEURONS = 3.0
HYBRID_HEADS_OVER_NEURONS = 3.8  # weights in heads, of the paper's hybrid BERT whose share of heads is nearest
_SPREAD = 0.02  # standard deviation of biases
_SEED = 0
_BLOCK = (32, 32)  # of the zeros inside half-empty heads

_ATTENTION = {  # what the modules of BERT are called here
    "attention.self.query": "q_proj",
    "attention.self.key": "k_proj",
    "attention.self.value": "v_proj",
    "attention.output.dense": "out_proj",
}
_INNER = {"intermediate.dense": "fc1", "output.dense": "fc2"}


@dataclasses.dataclass(frozen=True)
class Size:
    """A dense BART.

    Attributes:
        name: ``base`` or ``large``.
        width: Of the model.
        layers: Of the encoder, and again of the decoder.
        heads: Of each attention.
        inner: Neurons of each feed-forward layer.
        vocabulary: Tokens that it knows.
        positions: Longest input and output.
    """

    name: str
    width: int
    layers: int
    heads: int
    inner: int
    vocabulary: int = 50265
    positions: int = 1024

    @property
    def head_weights(self) -> int:
        """Weights of one head in Q, K, V and O."""
        return 4 * self.width * (self.width // self.heads)

    @property
    def encoder_weights(self) -> int:
        """Linear weights of the encoder."""
        return self.layers * (self.heads * self.head_weights + 2 * self.width * self.inner)

    @property
    def decoder_weights(self) -> int:
        """Linear weights of the decoder, without its head."""
        return self.layers * (2 * self.heads * self.head_weights + 2 * self.width * self.inner)


@dataclasses.dataclass(frozen=True)
class Plan:
    """A BART to plant.

    Attributes:
        size: The dense model.
        factor: How many times fewer linear weights the decoder has; 1 is the dense model.
        density: Share of all linear weights that is left, where that is published.
        half_empty: Share of heads that live, in a model whose heads are half-empty; None keeps whole heads.
    """

    size: Size
    factor: float = 1.0
    density: float | None = None
    half_empty: float | None = None

    @property
    def name(self) -> str:
        """For folders and options: ``base-3.4``."""
        if self.factor == 1:
            return f"{self.size.name}-dense"
        return f"{self.size.name}-{self.factor}{'-hybrid' if self.half_empty is not None else ''}"

    @functools.cached_property
    def stacks(self) -> dict[str, plant.Entry]:
        """What is left of ``encoder``, ``decoder`` and ``cross`` attention; the last has no neurons."""
        size, random = self.size, np.random.default_rng(_SEED)
        decoder, encoder = size.decoder_weights / self.factor, size.encoder_weights / self.factor
        if self.density is not None:
            encoder = self.density * (size.encoder_weights + size.decoder_weights) - decoder
        (of_encoder,) = _half(self, 1, encoder, size.encoder_weights, random)
        own, cross = _half(self, 2, decoder, size.decoder_weights, random)
        return {"encoder": of_encoder, "decoder": own, "cross": cross}

    @property
    def decoder_weights(self) -> int:
        """Linear weights left in the decoder."""
        return self.stacks["decoder"].linear_weights + self.stacks["cross"].linear_weights

    @property
    def linear_weights(self) -> int:
        """Linear weights left in the whole model."""
        return self.decoder_weights + self.stacks["encoder"].linear_weights

    def to_json(self) -> dict[str, Any]:
        """Everything that was planted."""
        return {
            "id": self.name,
            "size": dataclasses.asdict(self.size),
            "decoder_compression": self.size.decoder_weights / self.decoder_weights,
            "decoder_weights": self.decoder_weights,
            "linear_weights": self.linear_weights,
            "published_density": self.density,
            "half_empty_heads": self.half_empty is not None,
            "layers": {
                kind: {
                    "heads": stack.kept_heads,
                    "weights": stack.attention_nnz,
                    "neurons": () if kind == "cross" else stack.kept_ffn,
                }
                for kind, stack in self.stacks.items()
            },
        }


BASE, LARGE = Size("base", 768, 6, 12, 3072), Size("large", 1024, 12, 16, 4096)
PLANS = (
    Plan(BASE),
    Plan(BASE, 2.6, 0.35),
    Plan(BASE, 3.4, 0.23),
    Plan(BASE, 3.4, 0.23, half_empty=155 / 216),
    Plan(LARGE),
    Plan(LARGE, 2.0),
    Plan(LARGE, 3.5, 82 / 353),
)


def _half(plan: Plan, kinds: int, budget: float, dense: int, random: np.random.Generator) -> list[plant.Entry]:
    """What is left of an encoder (one kind of attention) or a decoder (two kinds): ``budget`` weights in all.

    The neurons are those of the first kind.
    """
    size, count = plan.size, kinds * plan.size.layers
    if plan.factor == 1:
        heads, weights = [size.heads] * count, [size.heads * size.head_weights] * count
        neurons = [size.inner] * size.layers
    else:
        every = count * size.heads
        attention = every * size.head_weights
        ratio = HEADS_OVER_NEURONS if plan.half_empty is None else HYBRID_HEADS_OVER_NEURONS
        share = budget / (attention + (dense - attention) / ratio)  # of attention's weights
        kept = round(every * (share if plan.half_empty is None else plan.half_empty))
        heads = spread(kept, size.heads, count, random)
        full = 1.0 if plan.half_empty is None else share * every / kept
        weights = [round(number * size.head_weights * full) for number in heads]
        neurons = spread(round((budget - sum(weights)) / (2 * size.width)), size.inner, size.layers, random)
    return [
        plant.Entry(
            task="summarization",
            method="hybrid",
            teacher="none",
            hidden=size.width,
            heads=size.heads,
            head_size=size.width // size.heads,
            intermediate=size.inner,
            kept_heads=tuple(heads[kind::kinds]),
            kept_ffn=(0,) * size.layers if kind else tuple(neurons),
            attention_nnz=tuple(weights[kind::kinds]),
            attention_block=(1, 1) if plan.half_empty is None else _BLOCK,
        )
        for kind in range(kinds)
    ]


def spread(total: int, most: int, count: int, random: np.random.Generator) -> list[int]:
    """``count`` numbers from 1 to ``most`` with the sum ``total``, as uneven as pruning leaves layers.

    Raises:
        ValueError: There are no such numbers.
    """
    if not count <= total <= count * most:
        raise ValueError(f"expected a sum from {count} to {count * most}, got {total}")
    wanted = random.uniform(0.5, 1.5, count)
    found = np.ones(count, dtype=np.int64)
    for _ in range(total - count):
        found[np.argmin(np.where(found < most, (found + 1) / wanted, np.inf))] += 1
    return [int(number) for number in found]


def plant_bart(folder: Path, plan: Plan) -> None:
    """Write a Hugging Face folder with a random BART that has the zeros of ``plan``. No bias is zero."""
    import torch
    import transformers

    size = plan.size
    config = transformers.BartConfig(
        vocab_size=size.vocabulary,
        d_model=size.width,
        encoder_layers=size.layers,
        decoder_layers=size.layers,
        encoder_attention_heads=size.heads,
        decoder_attention_heads=size.heads,
        encoder_ffn_dim=size.inner,
        decoder_ffn_dim=size.inner,
        max_position_embeddings=size.positions,
    )
    torch.manual_seed(_SEED)
    model = transformers.BartForConditionalGeneration(config).eval().requires_grad_(False)
    for name, tensor in model.state_dict().items():
        if name.endswith("bias"):  # final_logits_bias too
            tensor.normal_(std=_SPREAD)
    random = np.random.default_rng(_SEED)
    for kind, stack in plan.stacks.items():
        layers = model.model.encoder.layers if kind == "encoder" else model.model.decoder.layers
        for index, layer in enumerate(layers):
            attention = layer.encoder_attn if kind == "cross" else layer.self_attn
            masks = plant.layer_masks(stack, index, random)
            for owner, names in ((attention, _ATTENTION), (layer, {} if kind == "cross" else _INNER)):
                for theirs, ours in names.items():
                    getattr(owner, ours).weight.mul_(torch.from_numpy(masks[theirs]))
    model.save_pretrained(folder)


def check_sizes(plan: Plan, layers: Sequence[dict[str, Any]]) -> None:
    """Assert the workload: an artefact's layers (``compactor.json``) have the sizes of ``plan``."""
    expected: dict[str, int] = {}
    for kind, stack in plan.stacks.items():
        half, attention = ("decoder", "cross_attention") if kind == "cross" else (kind, "attention")
        expected |= {f"{half}.layers.{i}.{attention}": heads for i, heads in enumerate(stack.kept_heads)}
        if kind != "cross":
            expected |= {f"{half}.layers.{i}.feed_forward": width for i, width in enumerate(stack.kept_ffn)}
    found = {layer["path"]: layer["heads" if layer["kind"] == "attention" else "width"][1] for layer in layers}
    if found != expected:
        wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        raise AssertionError(f"expected {[(name, expected.get(name)) for name in wrong]}, got others: {found}")
