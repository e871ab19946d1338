"""Blocks whose heads and neurons go in place: the answers are those of a model that only does not read them."""

from __future__ import annotations

import copy

import pytest
import torch

from compactor.errors import ModelDirectoryError
from compactor.speedup.units import Linears, find_units
from tests.compactor import encoders
from tests.compactor.speedup import subjects

FAMILIES = ["bert", "modernbert", "modernbert-biases", "gte", "eurobert-grouped", "deberta", "deberta-unshared", "esm"]


def build(family):
    if family == "bert":
        return subjects.bert()
    return encoders.build(family).double().requires_grad_(False)


def texts():
    return subjects.batches(((9, 6, 4),))[0]


def keep(unit, seed):
    """Some of a block, at random: none and all of some blocks."""
    random = torch.Generator().manual_seed(seed)
    count = (0, unit.count, unit.count // 2, max(1, unit.count // 4))[seed % 4]
    return torch.randperm(unit.count, generator=random)[:count].sort().values


def columns(unit, kept):
    """The columns of the last layer's weight and bias, of these alone."""
    weight = unit.weight()
    return torch.cat([weight[:, unit.inputs_of(kept)], weight[:, unit.module.in_features :]], 1)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shift", range(4))
def test_answers_are_those_of_a_model_that_does_not_read_what_went(family, shift):
    model = build(family)
    cut = copy.deepcopy(model)
    units, others = find_units(model, texts()), find_units(cut, texts())
    assert [unit.name for unit in units] == [
        f"layers.{layer}.{kind}" for layer in range(2) for kind in ("attention", "feed_forward")
    ]
    linears = Linears(model, units)
    whole = model(**texts()).logits
    for number, (unit, other) in enumerate(zip(units, others, strict=True)):
        kept = keep(unit, number + shift)
        gone = torch.tensor([place for place in range(unit.count) if place not in kept.tolist()], dtype=torch.long)
        other.module.weight[:, other.inputs_of(gone)] = 0
        linears.write(unit, kept, columns(unit, kept))
    written = model(**texts()).logits
    for number, unit in enumerate(units):
        linears.clear(unit, keep(unit, number + shift))
    expected = cut(**texts()).logits

    assert (whole - expected).abs().max() > 1e-3
    torch.testing.assert_close(written, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(model(**texts()).logits, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("family", FAMILIES)
def test_restore_gives_the_bits_back(family):
    model = build(family)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    units = find_units(model, texts())
    linears = Linears(model, units)
    for number, unit in enumerate(units):
        kept = keep(unit, number + 1)
        linears.write(unit, kept, columns(unit, kept) * 3)
        linears.clear(unit, kept)
    assert any(not torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    linears.restore()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("family", FAMILIES)
def test_only_the_rows_of_what_went_are_cleared(family):
    model = build(family)
    units = find_units(model, texts())
    linears = Linears(model, units)
    modules = dict(model.named_modules())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for unit in units:
        kept = torch.arange(1, unit.count // 2)
        linears.clear(unit, kept)
        for part in unit.block.inputs:
            of = unit.block.heads_of(part) if unit.is_attention else unit.count
            alive = {int(head) * of // unit.count for head in kept}
            rows = part.rows // of
            for group in range(of):
                own = slice(part.start + group * rows, part.start + (group + 1) * rows)
                for name in ("weight", "bias"):
                    if getattr(modules[part.module], name) is None:
                        continue
                    found, old = getattr(modules[part.module], name)[own], before[f"{part.module}.{name}"][own]
                    assert torch.equal(found, old if group in alive else torch.zeros_like(old))


@pytest.mark.parametrize("kept", [[0], [1], [0, 1], [2], [1, 2], [3]])
def test_keys_and_values_live_as_long_as_one_query_reads_them(kept):
    model = build("eurobert-grouped")
    unit = find_units(model, texts())[0]
    assert (unit.count, unit.block.kv_heads) == (4, 2)
    Linears(model, [unit]).clear(unit, torch.tensor(kept))
    modules = dict(model.named_modules())
    for part in (unit.block.key, unit.block.value):
        alive = modules[part.module].weight.reshape(2, -1).abs().sum(1) > 0
        assert alive.tolist() == [bool({0, 1} & set(kept)), bool({2, 3} & set(kept))]
    alive = modules[unit.block.query.module].weight.reshape(4, -1).abs().sum(1) > 0
    assert alive.nonzero()[:, 0].tolist() == kept


def test_blocks_are_told_by_what_they_take():
    attention, feed_forward, *_ = find_units(build("bert"), texts())
    assert (attention.count, attention.width, attention.shape) == (4, 8, "attention 32 4x8")
    assert (feed_forward.count, feed_forward.width, feed_forward.shape) == (48, 1, "feed_forward 32 48x1")
    assert attention.inputs_of(torch.tensor([0, 2])).tolist() == [*range(8), *range(16, 24)]
    assert feed_forward.inputs_of(torch.tensor([], dtype=torch.long)).tolist() == []
    assert attention.weight().shape == (32, 33) and torch.equal(attention.weight()[:, 32], attention.module.bias)

    fused, gated, *_ = find_units(build("modernbert"), texts())
    assert (fused.shape, gated.shape) == ("attention 32 4x8", "feed_forward 32 48x2")
    assert {part.module for part in fused.block.inputs} == {fused.block.query.module}  # one matrix for all three
    assert fused.weight().shape == (32, 32)  # no bias


def test_a_model_without_blocks_is_refused():
    with pytest.raises(ModelDirectoryError):
        find_units(torch.nn.Linear(4, 4), {"input": torch.ones(1, 4)})


def small(family):
    import transformers

    sizes = {
        "vocab_size": 60,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "embedding_size": 16,
    }
    extra = {"intra_bottleneck_size": 16} if family == "MobileBert" else {}
    config = getattr(transformers, f"{family}Config")(**sizes, **extra)
    return getattr(transformers, f"{family}ForSequenceClassification")(config).eval()


def test_a_layer_that_is_used_twice_is_refused():
    with pytest.raises(ModelDirectoryError, match="more than once"):
        find_units(small("Albert"), texts())


def test_several_feed_forward_blocks_of_a_layer_are_refused():
    with pytest.raises(ModelDirectoryError, match=r"layers\.0\.feed_forward"):
        find_units(small("MobileBert"), texts())
