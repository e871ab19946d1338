"""A dry run and an export agree on encoders with rotary embeddings, fused projections, gates and windows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import compactor
from compactor.exporting.inspecting import Inspection, inspect
from compactor.trainer.following import Part
from compactor.trainer.structure import AttentionMatrices, Matrices, find_blocks
from tests.compactor import encoders
from tests.compactor.encoders import HEADS, IMAGE, LAYERS, NEURONS, SIZE, WIDTH
from tests.slow import slow_after_first

GATED = ("modernbert", "gte", "nomic", "eurobert")


def build(family: str, **changes: Any) -> tuple[nn.Module, list[Matrices]]:
    """A model and the matrices of its layers, found without their names."""
    tower = family == "vit" or "vision" in family
    head = "Model" if "vision" in family else "ForImageClassification" if tower else "ForSequenceClassification"
    model = encoders.build(family, head, **changes).requires_grad_(False)
    ids = torch.arange(5, 15).reshape(1, 10)
    text = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    inputs = {"pixel_values": torch.randn(1, 3, IMAGE, IMAGE)} if tower else text
    blocks = [block for block in find_blocks(model, inputs) if "head.mlp" not in block.output.name]
    return model, blocks


def save(folder: Path, model: Any) -> Path:
    model.save_pretrained(folder)
    return folder


class Zeros:
    """Puts zeros into the rows of a part of a linear layer (counted round where heads are shared), or into columns."""

    def __init__(self, model: nn.Module) -> None:
        self.modules = dict(model.named_modules())

    def rows(self, part: Part, *numbers: int, bias: bool = True) -> None:
        module, rows = self.modules[part.module], [part.start + number % part.rows for number in numbers]
        module.weight[rows] = 0
        if bias and module.bias is not None:
            module.bias[rows] = 0

    def columns(self, part: Part, *numbers: int) -> None:
        self.modules[part.module].weight[:, list(numbers)] = 0


def channels(*heads: int) -> list[int]:
    return [head * SIZE + channel for head in heads for channel in range(SIZE)]


def plant(model: nn.Module, blocks: list[Matrices]) -> None:
    """Every kind of dead structure in the first layer; in the second, no live head and no live neuron."""
    zeros = Zeros(model)
    attention, feed_forward, empty, emptied = blocks
    assert isinstance(attention, AttentionMatrices) and isinstance(empty, AttentionMatrices)
    zeros.columns(attention.output, *channels(0))  # never read
    zeros.rows(attention.value, *channels(1), bias=False)  # constant
    for head in range(HEADS):
        zeros.rows(attention.query, head * SIZE + 1, head * SIZE + 1 + SIZE // 2)  # a pair, in every head
        zeros.rows(attention.key, head * SIZE + 2)  # half a pair
        zeros.columns(attention.output, head * SIZE + 3)
    zeros.rows(attention.key, *channels(2), bias=False)  # uniform, unless a bias is turned
    zeros.columns(feed_forward.output, *range(5))
    first, *other = feed_forward.inputs
    zeros.rows(first, *range(5, 9), bias=False)
    zeros.rows(first, *range(9, 12))
    for part in other:
        zeros.rows(part, *range(7, 9), bias=False)
        zeros.rows(part, *range(12, 17))
    zeros.columns(empty.output, *channels(0, 1))
    zeros.rows(empty.value, *channels(2, 3), bias=False)
    zeros.columns(emptied.output, *range(NEURONS // 2))
    for part in emptied.inputs:
        zeros.rows(part, *range(NEURONS // 2, NEURONS), bias=False)


def told(found: Inspection) -> list[dict[str, Any]]:
    """As the manifest has it."""
    names = ("heads", "kv_heads", "qk_width", "v_width", "uniform_heads", "width")
    return [
        {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in vars(layer).items()
            if name in (*names, "path", "kind") and value is not None
        }
        for layer in found.layers
    ]


@pytest.mark.parametrize(
    "family",
    slow_after_first(["modernbert-biases", "gte", "nomic", "esm", "deberta", "deberta-unshared", "eurobert-grouped"]),
)
def test_it_tells_what_an_export_removes(family, tmp_path):
    model, blocks = build(family)
    plant(model, blocks)
    folder = save(tmp_path / "model", model)
    found = inspect(folder)
    if not encoders.is_exported(family):
        pytest.skip("this transformers writes its masks or lengths in a way that is refused")
    exported = compactor.export(folder, tmp_path / "out", precision=("fp32",))

    assert found.skipped == () and found.notes == ()
    assert told(found) == exported.manifest["layers"][: 2 * LAYERS]
    assert found.removed.heads >= 2 and found.removed.neurons > 5


@pytest.mark.parametrize("family", encoders.FAMILIES)
def test_every_family_is_known_by_its_names(family, tmp_path):
    model, blocks = build(family)
    zeros = Zeros(model)
    for block in blocks[2:]:
        if isinstance(block, AttentionMatrices):
            zeros.columns(block.output, *channels(0, 1))
        else:
            zeros.columns(block.output, *range(7))
    found = inspect(save(tmp_path, model))

    assert found.skipped == ()
    layers = {layer.path: layer for layer in found.layers}
    assert list(layers) == [f"layers.{i}.{kind}" for i in range(LAYERS) for kind in ("attention", "feed_forward")]
    heads = [layer.heads for layer in found.layers if layer.kind == "attention"]
    assert heads == [(HEADS, HEADS), (HEADS, HEADS - 2)]
    assert [layer.width for layer in found.layers if layer.kind == "feed_forward"] == [(NEURONS,) * 2, (NEURONS, 41)]
    shared = 2 if family == "eurobert-grouped" else HEADS
    attention, feed_forward = (2 + 2 * shared / HEADS) * WIDTH**2, (2 + family.startswith(GATED)) * WIDTH * NEURONS
    assert found.macs_per_token[0] == LAYERS * (attention + feed_forward)


def test_a_bias_of_values_stays_where_a_window_may_be_empty(tmp_path):
    """The mean of no values is no constant: in ModernBERT's local layers, queries of padding see nothing."""
    model, blocks = build("modernbert-biases")
    zeros = Zeros(model)
    for attention in blocks[::2]:  # a global layer and a local one
        zeros.rows(attention.value, *channels(0), bias=False)
        zeros.rows(attention.value, *channels(1))
        zeros.rows(attention.value, *[head * SIZE for head in range(HEADS)])
    found = inspect(save(tmp_path, model))
    widths = [(layer.heads, layer.v_width) for layer in found.layers if layer.kind == "attention"]
    assert widths == [((4, 2), (8, 7)), ((4, 3), (8, 8))]


@pytest.mark.parametrize(("family", "left"), [("CLIP", 4), ("Siglip", 2)])
def test_so_does_one_of_texts_that_look_back(family, left, tmp_path):
    """Behind padding on the left, a token of CLIP's texts sees nothing; those of SigLIP see all tokens."""
    text = {**encoders.TEXT, "bos_token_id": 2, "eos_token_id": 3, "projection_dim": 8}
    model = getattr(transformers, f"{family}TextModel")(getattr(transformers, f"{family}TextConfig")(**text))
    for name, parameter in model.requires_grad_(False).named_parameters():
        if "norm" not in name:
            parameter.normal_(0, 0.2)
        if "v_proj.weight" in name:
            parameter[: 2 * SIZE] = 0
    folder = save(tmp_path / "model", model)
    found = inspect(folder)
    assert [layer.heads for layer in found.layers if layer.kind == "attention"] == [(HEADS, left)] * LAYERS
    if encoders.is_exported(family):
        exported = compactor.export(folder, tmp_path / "out", precision=("fp32",))
        assert told(found) == exported.manifest["layers"]


def test_the_halves_of_a_model_of_texts_and_images_have_names_and_heads_of_their_own(tmp_path):
    vision = {**encoders.TOWER, "num_attention_heads": 2}
    model = transformers.SiglipModel(transformers.SiglipConfig(text_config=encoders.TEXT, vision_config=vision))
    found = inspect(save(tmp_path, model))
    heads = {layer.path: layer.heads for layer in found.layers if layer.kind == "attention"}
    assert heads == {
        **{f"text_model.layers.{number}.attention": (HEADS, HEADS) for number in range(LAYERS)},
        **{f"vision_model.layers.{number}.attention": (2, 2) for number in range(LAYERS)},
    }


def test_turned_channels_go_in_pairs_that_no_head_needs(tmp_path):
    model, blocks = build("esm")
    zeros = Zeros(model)
    first, second = blocks[0], blocks[2]
    for head in range(HEADS):  # one half of a pair, and a pair that the last head needs
        zeros.rows(first.query, head * SIZE + 1)
        if head < HEADS - 1:
            zeros.rows(first.key, head * SIZE + 2, head * SIZE + 2 + SIZE // 2)
        zeros.rows(second.key, head * SIZE + 3, head * SIZE + 3 + SIZE // 2, bias=head > 0)
    found = inspect(save(tmp_path, model))
    assert [layer.qk_width for layer in found.layers if layer.kind == "attention"] == [
        (8, 8),
        (8, 8),
    ]  # a bias is turned
    zeros.rows(first.key, (HEADS - 1) * SIZE + 2, (HEADS - 1) * SIZE + 2 + SIZE // 2)
    zeros.rows(second.key, 3, 3 + SIZE // 2)
    found = inspect(save(tmp_path, model))
    assert [layer.qk_width for layer in found.layers if layer.kind == "attention"] == [(8, 6), (8, 6)]


@pytest.mark.parametrize("activation", ["gelu", "sigmoid"])
def test_a_gate_at_zero_closes_only_what_is_zero_at_zero(activation, tmp_path):
    model, blocks = build("eurobert", hidden_act=activation, mlp_bias=True)
    zeros = Zeros(model)
    gate, value = sorted(blocks[1].inputs, key=lambda part: part.module)  # gate_proj, up_proj
    zeros.rows(gate, *range(4))
    zeros.rows(value, *range(4, 10))
    zeros.rows(gate, *range(10, 15), bias=False)  # a constant that is not zero: the neuron is linear
    found = inspect(save(tmp_path, model))
    assert found.layers[1].width == (NEURONS, NEURONS - 10 if activation == "gelu" else NEURONS)


@pytest.mark.parametrize(
    ("live", "expected"),
    [([0, 1, 2, 3], (4, 2)), ([2, 3], (2, 1)), ([0, 2], (2, 2)), ([], (0, 0)), ([0, 2, 3], (3, 3))],
    ids=["all", "a-group", "one-each", "none", "uneven"],
)
def test_heads_that_share_keys(live, expected, tmp_path):
    model, blocks = build("eurobert-grouped")
    zeros = Zeros(model)
    zeros.columns(blocks[0].output, *channels(*[head for head in range(HEADS) if head not in live]))
    found = inspect(save(tmp_path, model))
    attention = found.layers[0]
    assert (attention.heads, attention.kv_heads) == ((4, expected[0]), (2, expected[1]))
    assert attention.qk_width == (8, 8 if live else 0)
    assert attention.weights == ((4 + 2) * 2 * SIZE * WIDTH, sum(expected) * 2 * SIZE * WIDTH)


def test_a_part_that_is_turned_in_a_way_that_is_not_known_is_skipped(tmp_path):
    model, _ = build("nomic")
    model.config.rotary_emb_fraction = 0.5
    found = inspect(save(tmp_path, model))
    assert {skip.path for skip in found.skipped} == {"layers.0.attention", "layers.1.attention"}
    assert all("rotary, in a way that is not known here" in skip.reason for skip in found.skipped)
