"""Small pruned models of every family, saved by transformers itself, and what an export should leave of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from compactor.runtime.verification import Case, text_cases
from tests.compactor.checkpoints import FAMILIES, HEAD_DIM, HEADS, NEURONS, VOCABULARY, WIDTH

LAYERS, POSITIONS, LABELS, IMAGE = 3, 40, 3, 8

# The start of the class names in transformers.
CLASSES = {
    "bert": "Bert",
    "roberta": "Roberta",
    "xlm-roberta": "XLMRoberta",
    "distilbert": "DistilBert",
    "electra": "Electra",
    "mpnet": "MPNet",
    "vit": "ViT",
}
OUTPUTS = {
    "ForSequenceClassification": ("logits",),
    "ForTokenClassification": ("logits",),
    "ForQuestionAnswering": ("start_logits", "end_logits"),
    "ForMaskedLM": ("logits",),
    "ForImageClassification": ("logits",),
    "Model": ("last_hidden_state", "pooler_output"),
}

Layer = dict[str, Any]
Plant = Callable[[list[list[torch.nn.Linear]]], None]

# What `plant` leaves, as the manifest's `layers`.
PLANTED: list[Layer] = [
    {
        "path": "layers.0.attention",
        "kind": "attention",
        "heads": [4, 2],
        "qk_width": [4, 3],
        "v_width": [4, 3],
        "uniform_heads": 1,
    },
    {"path": "layers.0.feed_forward", "kind": "feed_forward", "width": [24, 14]},
    {
        "path": "layers.1.attention",
        "kind": "attention",
        "heads": [4, 0],
        "qk_width": [4, 0],
        "v_width": [4, 0],
        "uniform_heads": 0,
    },
    {"path": "layers.1.feed_forward", "kind": "feed_forward", "width": [24, 24]},
    {
        "path": "layers.2.attention",
        "kind": "attention",
        "heads": [4, 4],
        "qk_width": [4, 4],
        "v_width": [4, 4],
        "uniform_heads": 0,
    },
    {"path": "layers.2.feed_forward", "kind": "feed_forward", "width": [24, 0]},
]


def plant(layers: list[list[torch.nn.Linear]]) -> None:
    """A layer with every kind of dead structure, one without a live head, one without a live neuron."""
    plant_every_kind(*layers[0])

    _, _, value, output, _, _ = layers[1]
    empty_attention(value, output)

    *_, first, second = layers[2]
    empty_feed_forward(first, second)


def plant_every_kind(
    query: torch.nn.Linear,
    key: torch.nn.Linear,
    value: torch.nn.Linear,
    output: torch.nn.Linear,
    first: torch.nn.Linear,
    second: torch.nn.Linear,
) -> None:
    """Two dead heads, a uniform one, one with fewer channels; ten dead neurons."""
    output.weight[:, channels(0)] = 0  # dead: not read
    value.weight[channels(1)] = 0  # dead: constant, by its bias
    key.weight[channels(2)] = 0  # uniform, and one value channel less
    value.weight[channels(2)[3]] = 0
    query.weight[channels(3)[3]] = 0  # three of four logit channels, two of four value channels
    query.bias[channels(3)[3]] = 0
    output.weight[:, channels(3)[:2]] = 0
    first.weight[:5] = 0  # the constant of their biases
    second.weight[:, 5:10] = 0  # not read


def empty_attention(value: torch.nn.Linear, output: torch.nn.Linear) -> None:
    """Half of the heads are constant, half are not read."""
    value.weight[: 2 * HEAD_DIM] = 0
    output.weight[:, 2 * HEAD_DIM :] = 0


def empty_feed_forward(first: torch.nn.Linear, second: torch.nn.Linear) -> None:
    """Half of the neurons are constant, half are not read."""
    first.weight[:12] = 0
    second.weight[:, 12:] = 0


def empty_middle(layers: list[list[torch.nn.Linear]]) -> None:
    """A layer of which nothing is left but its biases."""
    _, _, value, _, _, second = layers[1]
    value.weight.zero_()
    second.weight.zero_()


def channels(head: int) -> list[int]:
    """The channels of a head."""
    return list(range(head * HEAD_DIM, (head + 1) * HEAD_DIM))


def make_config(family: str, **changes: Any) -> Any:
    """A small config of a family."""
    sizes: dict[str, Any] = {
        "hidden_size": WIDTH,
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "intermediate_size": NEURONS,
        "num_labels": LABELS,
    }
    if family == "vit":
        sizes |= {"image_size": IMAGE, "patch_size": 4}
    else:
        sizes |= {"vocab_size": VOCABULARY, "max_position_embeddings": POSITIONS}
    if family in ("roberta", "xlm-roberta"):
        sizes["type_vocab_size"] = 1  # as the published ones have; their config's default is BERT's
    if family == "electra":
        sizes["embedding_size"] = WIDTH // 2
    if family == "distilbert":
        sizes |= {"dim": WIDTH, "n_heads": HEADS, "n_layers": LAYERS, "hidden_dim": NEURONS}
        for name in ("hidden_size", "num_attention_heads", "num_hidden_layers", "intermediate_size"):
            del sizes[name]
    return getattr(transformers, f"{CLASSES[family]}Config")(**(sizes | changes))


@torch.no_grad()
def build(family: str, head: str = "ForSequenceClassification", *, planted: Plant | None = plant, seed: int = 0) -> Any:
    """A random model whose biases are not zero, with planted zeros."""
    torch.manual_seed(seed)
    labels = 2 if head == "ForQuestionAnswering" else LABELS
    model = getattr(transformers, f"{CLASSES[family]}{head}")(make_config(family, num_labels=labels)).eval()
    for name, parameter in model.named_parameters():
        if "norm" not in name.lower():
            parameter.normal_(std=0.35)
        elif name.endswith("bias"):
            parameter.normal_(std=0.2)
    if planted:
        planted(linear_layers(model))
    return model


def linear_layers(model: torch.nn.Module) -> list[list[torch.nn.Linear]]:
    """The linear modules of each layer: query, key, value, attention output, first and second feed-forward."""
    modules = dict(model.named_modules())
    found = []
    for index in range(LAYERS):
        for _, *local in FAMILIES.values():
            ends = [f".{index}.{name}" for name in local]
            layer = [module for end in ends for name, module in modules.items() if f".{name}".endswith(end)]
            if len(layer) == len(local):
                found.append(layer)
                break
    assert len(found) == LAYERS, list(modules)
    return found


def save(folder: Path, family: str, head: str = "ForSequenceClassification", **options: Any) -> Path:
    """Save what ``build`` makes, as transformers does."""
    build(family, head, **options).save_pretrained(folder)
    return folder


def odd_cases(family: str, input_names: list[str]) -> Iterator[Case]:
    """Batches of one and three, at lengths that are not round, padded on every side."""
    padding = make_config(family).pad_token_id
    options: dict[str, Any] = {"vocab_size": VOCABULARY, "max_length": 17, "pad_token_id": padding, "batch": 3}
    for case in text_cases(input_names, lengths=(1, 5, 17), type_vocab_size=2, seed=7, **options):
        yield case
        assert case.valid is not None
        last = {name: array[-1:] for name, array in case.feeds.items()}
        yield Case(f"{case.name}, last row", last, case.valid[-1:])


def image_batches() -> Iterator[Case]:
    """Batches of one and three images."""
    random = np.random.default_rng(7)
    for batch in (1, 3):
        yield Case(str(batch), {"pixel_values": random.standard_normal((batch, 3, IMAGE, IMAGE), np.float32)}, None)


@torch.no_grad()
def run_masked(model: Any, head: str, case: Case) -> dict[str, Any]:
    """The model's own outputs, in PyTorch."""
    result = model(**{name: torch.from_numpy(array) for name, array in case.feeds.items()})
    return {name: result[name].numpy() for name in OUTPUTS[head]}


# Encoder-decoders

# The start of the class names in transformers, the end of the class that generates, and what else the config says.
ENCODER_DECODERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bart": ("Bart", "ForConditionalGeneration", {}),
    "mbart": ("MBart", "ForConditionalGeneration", {"scale_embedding": True}),
    "marian": ("Marian", "MTModel", {"scale_embedding": True, "activation_function": "swish"}),
    "pegasus": ("Pegasus", "ForConditionalGeneration", {"scale_embedding": True, "activation_function": "relu"}),
}


def _attention(path: str, heads: int, qk: int, v: int, uniform: int = 0) -> Layer:
    sizes = {"heads": [HEADS, heads], "qk_width": [HEAD_DIM, qk], "v_width": [HEAD_DIM, v]}
    return {"path": path, "kind": "attention", **sizes, "uniform_heads": uniform}


def _feed_forward(path: str, width: int) -> Layer:
    return {"path": path, "kind": "feed_forward", "width": [NEURONS, width]}


# What `plant_halves` leaves, as the manifest's `layers`.
PLANTED_HALVES: list[Layer] = [
    _attention("encoder.layers.0.attention", 2, 3, 3, 1),
    _feed_forward("encoder.layers.0.feed_forward", 14),
    _attention("encoder.layers.1.attention", 0, 0, 0),
    _feed_forward("encoder.layers.1.feed_forward", 24),
    _attention("decoder.layers.0.attention", 2, 3, 3, 1),
    _attention("decoder.layers.0.cross_attention", 1, 3, 4),
    _feed_forward("decoder.layers.0.feed_forward", 14),
    _attention("decoder.layers.1.attention", 4, 4, 4),
    _attention("decoder.layers.1.cross_attention", 0, 0, 0),
    _feed_forward("decoder.layers.1.feed_forward", 0),
]


def plant_halves(encoder: Any, decoder: Any) -> None:
    """Other heads and widths in each layer, and in both attentions of a decoder's layer."""
    for stack in (encoder, decoder):
        layer = stack.layers[0]
        plant_every_kind(*projections(layer.self_attn), layer.fc1, layer.fc2)
    _, _, value, output = projections(encoder.layers[1].self_attn)
    empty_attention(value, output)
    _, key, value, _ = projections(decoder.layers[0].encoder_attn)
    value.weight[HEAD_DIM:] = 0
    key.weight[2] = 0
    _, _, value, output = projections(decoder.layers[1].encoder_attn)
    empty_attention(value, output)
    empty_feed_forward(decoder.layers[1].fc1, decoder.layers[1].fc2)


def prune_evenly(encoder: Any, decoder: Any) -> None:
    """Half of the heads and neurons, the same number everywhere."""
    attentions = [layer.self_attn for stack in (encoder, decoder) for layer in stack.layers]
    for attention in attentions + [layer.encoder_attn for layer in decoder.layers]:
        attention.out_proj.weight[:, : 2 * HEAD_DIM] = 0
    for layer in (*encoder.layers, *decoder.layers):
        layer.fc2.weight[:, : NEURONS // 2] = 0


def projections(attention: Any) -> list[torch.nn.Linear]:
    """Query, key, value and output."""
    return [attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj]


@torch.no_grad()
def build_encoder_decoder(
    family: str = "bart",
    head: str | None = None,
    *,
    planted: Callable[[Any, Any], None] | None = plant_halves,
    seed: int = 0,
    **changes: Any,
) -> Any:
    """A random model of two layers in each half, whose biases are not zero, with planted zeros."""
    torch.manual_seed(seed)
    name, generates, options = ENCODER_DECODERS[family]
    sizes: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "d_model": WIDTH,
        "max_position_embeddings": POSITIONS,
        "decoder_start_token_id": 2,
        "forced_eos_token_id": 2,
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "max_length": 20,
    }
    for half in ("encoder", "decoder"):
        sizes |= {f"{half}_layers": 2, f"{half}_attention_heads": HEADS, f"{half}_ffn_dim": NEURONS}
    config = getattr(transformers, f"{name}Config")(**{**sizes, **options, **changes})
    model = getattr(transformers, f"{name}{head or generates}")(config).eval()
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.endswith("bias"):
            parameter.normal_(std=0.1)
        elif "embed_positions" in parameter_name:
            parameter.normal_()  # what is written depends on the place, and so is not one word again and again
        elif "norm" not in parameter_name.lower():
            parameter.normal_(std=0.35)
    if hasattr(model, "final_logits_bias"):
        model.final_logits_bias.normal_(std=0.2)
    body = getattr(model, "model", model)
    if planted:
        planted(body.encoder, body.decoder)
    return model


def save_encoder_decoder(folder: Path, family: str = "bart", head: str | None = None, **options: Any) -> Path:
    """Save what ``build_encoder_decoder`` makes, as transformers does."""
    build_encoder_decoder(family, head, **options).save_pretrained(folder)
    return folder
