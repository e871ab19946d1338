"""Where the residual stream is found, and what least squares on what the smaller model sees makes good."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from compactor.speedup.repair import Repair, find_residual
from compactor.speedup.units import find_units
from tests.compactor import encoders
from tests.compactor.speedup import subjects


def quiet(text):
    return None


def repaired(one, sizes):
    """The blocks of a subject after repair with these sizes, and the surgeon."""
    units, linears, surgeon = subjects.surgery_on(one)
    Repair(one, units).run(surgeon, linears, sizes, quiet)
    return units, linears, surgeon


# The residual stream


def names(model, batch):
    """The module that is found for each block, by its name."""
    found = {module: name for name, module in model.named_modules()}
    streams = {unit.name: find_residual(model, unit, batch) for unit in find_units(model, batch)}
    return {name: stream and found[stream] for name, stream in streams.items()}


def test_norms_behind_the_sum():
    found = names(subjects.bert(), subjects.batches()[0])
    for layer in range(2):
        stem = f"bert.encoder.layer.{layer}"
        assert found[f"layers.{layer}.attention"].startswith(f"{stem}.attention.self.")
        assert found[f"layers.{layer}.feed_forward"] == f"{stem}.intermediate.dense"


def test_norms_before_the_projections_of_modernbert():
    found = names(encoders.build("modernbert").double(), subjects.batches()[0])
    assert found == {
        # The first layer has no norm: what the projections read is the stream itself.
        "layers.0.attention": "model.layers.0.attn.Wqkv",
        "layers.0.feed_forward": "model.layers.0.mlp_norm",
        "layers.1.attention": "model.layers.1.attn_norm",
        "layers.1.feed_forward": "model.layers.1.mlp_norm",
    }


def test_norms_before_the_projections_of_esm():
    found = names(encoders.build("esm").double(), subjects.batches()[0])
    for layer in range(2):
        stem = f"esm.encoder.layer.{layer}"
        assert found[f"layers.{layer}.attention"] == f"{stem}.attention.LayerNorm"
        assert found[f"layers.{layer}.feed_forward"] == f"{stem}.LayerNorm"


def test_norms_before_the_projections_of_vit():
    model = encoders.build("vit", "ForImageClassification").double()
    pixels = torch.randn(2, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = names(model, {"pixel_values": pixels})
    for layer in range(2):
        assert "before" in found[f"layers.{layer}.attention"]
        assert "after" in found[f"layers.{layer}.feed_forward"]


@pytest.mark.parametrize("family", ["gte", "nomic", "eurobert", "eurobert-grouped", "deberta"])
def test_other_families_have_one_too(family):
    assert all(names(encoders.build(family).double(), subjects.batches()[0]).values())


class Chain(nn.Module):
    """Attention and a feed-forward block, one after another, whose results are added to nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(16, 16) for _ in range(4))
        self.up, self.down = nn.Linear(16, 24), nn.Linear(24, 16)
        self.norm = nn.LayerNorm(16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        def split(y: torch.Tensor) -> torch.Tensor:
            return y.view(*y.shape[:2], 2, 8).transpose(1, 2)

        mixed = nn.functional.scaled_dot_product_attention(split(self.q(x)), split(self.k(x)), split(self.v(x)))
        x = self.norm(self.o(mixed.transpose(1, 2).reshape(x.shape)))
        return self.norm(self.down(nn.functional.gelu(self.up(x))))


def test_none_where_nothing_is_added():
    torch.manual_seed(0)
    model = Chain().eval()
    assert names(model, {"x": torch.randn(2, 5, 16)}) == {"layers.0.attention": None, "layers.0.feed_forward": None}


def test_looking_leaves_no_hook():
    model, batch = subjects.bert(), subjects.batches()[0]
    for unit in find_units(model, batch):
        find_residual(model, unit, batch)
    one = subjects.subject(model)
    repaired(one, [2, 20, 3, 10])
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_how_many_blocks_are_followed_is_told():
    one = subjects.subject(subjects.bert())
    units, *_ = subjects.surgery_on(one)
    assert Repair(one, units).follows == 4


# Repair


@pytest.mark.parametrize("family", ["bert", "modernbert", "modernbert-biases", "eurobert-grouped", "esm"])
@pytest.mark.parametrize("left", [False, True])
def test_whole_blocks_answer_as_before(family, left):
    model = subjects.bert() if family == "bert" else encoders.build(family).double().requires_grad_(False)
    one = subjects.subject(model, subjects.batches(left=left))
    before = one.answers(one.search)
    units = find_units(model, one.search[0])
    repaired(one, [unit.count for unit in units])
    for now, own in zip(one.answers(one.search), before, strict=True):
        torch.testing.assert_close(now, own, rtol=0, atol=1e-4)


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("kind", ["feed_forward", "attention"])
def test_what_a_twin_gives_is_restored(kind, layer):
    model = subjects.bert(seed=1)
    block = model.bert.encoder.layer[layer]
    if kind == "feed_forward":
        first = block.intermediate.dense
        first.weight[7], first.bias[7] = first.weight[20], first.bias[20]
    else:
        attention = block.attention.self
        for part in (attention.query, attention.key, attention.value):
            part.weight[0:8], part.bias[0:8] = part.weight[16:24], part.bias[16:24]
    one = subjects.subject(model, subjects.batches(((29, 32, 17, 28, 30, 21),) * 2))
    gone = 20 if kind == "feed_forward" else 2
    units, linears, surgeon = subjects.surgery_on(one)
    before = one.answers(one.search)
    number = next(place for place, unit in enumerate(units) if unit.name == f"layers.{layer}.{kind}")
    others = [group for group in range(units[number].count) if group != gone]
    surgeon.orders[number] = dataclasses.replace(surgeon.orders[number], groups=torch.tensor([gone, *others]))

    repair = Repair(one, units)
    sizes = [unit.count for unit in units]
    sizes[number] -= 1
    # Without anyone to take over, for comparison.
    unit, kept = units[number], surgeon.orders[number].kept(sizes[number])
    linears.write(unit, kept, unit.weight()[:, surgeon.inputs(number, sizes[number])])
    cut = one.loss(before, one.search)
    repair.run(surgeon, linears, sizes, quiet)
    assert cut > 1e-5
    assert one.loss(before, one.search) < 1e-3 * cut
    for now, own in zip(one.answers(one.search), before, strict=True):
        torch.testing.assert_close(now, own, rtol=0, atol=1e-2)  # as near as the damping lets it


@pytest.mark.parametrize("seed", range(4))
def test_repair_loses_less_than_surgery_alone(seed):
    one = subjects.subject(subjects.bert(seed=seed), subjects.batches(((12, 9, 10, 8, 7, 11),) * 12, seed=seed))
    units, linears, surgeon = subjects.surgery_on(one)
    before = one.answers(one.search)
    repair = Repair(one, units)
    sizes = [unit.count if unit.is_attention else unit.count // 2 for unit in units]
    alone = surgeon.loss(sizes)
    repair.run(surgeon, linears, sizes, quiet)
    now = one.loss(before, one.search)
    assert now == surgeon.loss_now()
    assert now <= alone
    # Once more gives the same: nothing is carried over.
    weights = {name: tensor.clone() for name, tensor in one.model.state_dict().items()}
    linears.restore()
    repair.run(surgeon, linears, sizes, quiet)
    assert all(torch.equal(weights[name], tensor) for name, tensor in one.model.state_dict().items())


@pytest.mark.parametrize("family", ["bert", "modernbert"])
@pytest.mark.parametrize("share", [0, 0.25, 0.5])
def test_what_went_has_zeros_in_every_matrix(family, share):
    model = subjects.bert() if family == "bert" else encoders.build(family).double().requires_grad_(False)
    one = subjects.subject(model)
    units = find_units(model, one.search[0])
    sizes = [int(share * unit.count) for unit in units]
    units, _, surgeon = repaired(one, sizes)
    modules = dict(model.named_modules())
    for unit, order, size in zip(units, surgeon.orders, sizes, strict=True):
        alive = set(order.kept(size).tolist())
        assert len(alive) == size
        read = unit.module.weight.reshape(len(unit.module.weight), unit.count, unit.width).abs().sum((0, 2)) > 0
        assert set(read.nonzero()[:, 0].tolist()) == alive
        for part in unit.block.inputs:
            rows = modules[part.module].weight[part.start : part.stop].reshape(unit.count, -1).abs().sum(1) > 0
            assert set(rows.nonzero()[:, 0].tolist()) == alive
    assert all(bool(answer.isfinite().all()) for answer in one.answers(one.search))


def test_each_block_is_the_least_squares_of_what_it_sees():
    """The last block against NumPy: its inputs are those of the repaired model, its target makes up for the stream."""
    one = subjects.subject(subjects.bert(seed=5), subjects.batches(((12, 9, 10, 8, 7, 11),) * 4))
    whole = copy.deepcopy(one.model)
    units, _, surgeon = repaired(one, [3, 24, 2, 24])

    def look(model):
        layer, seen = model.bert.encoder.layer[1], {}
        handles = [
            layer.intermediate.dense.register_forward_pre_hook(lambda module, args: seen.update(stream=args[0])),
            layer.output.dense.register_forward_hook(
                lambda module, args, output: seen.update(read=args[0], gave=output)
            ),
        ]
        rows = {"stream": [], "read": [], "gave": []}
        for batch in one.repair:
            model(**batch)
            for name, tensor in seen.items():
                rows[name].append(tensor[batch["attention_mask"].bool()])
        for handle in handles:
            handle.remove()
        return {name: torch.cat(found).numpy() for name, found in rows.items()}

    dense, now = look(whole), look(one.model)
    target = dense["gave"] + dense["stream"] - now["stream"]
    kept = surgeon.orders[3].kept(24).numpy()
    read = np.concatenate([now["read"][:, kept], np.ones((len(target), 1))], 1)
    surgical = surgeon.solved(3, 24).double().numpy()
    pull = np.sqrt(1e-2 * np.square(read[:, :-1]).sum(0).mean())
    pulled = np.concatenate([pull * np.eye(24), np.zeros((24, 1))], 1)
    expected = np.linalg.lstsq(
        np.concatenate([read, pulled]), np.concatenate([target, pulled @ surgical.T]), rcond=None
    )[0].T
    module = units[3].module
    np.testing.assert_allclose(module.weight[:, kept].numpy(), expected[:, :-1], rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(module.bias.numpy(), expected[:, -1], rtol=1e-6, atol=1e-8)


# The surgeon


def test_sizes_are_all_heads_and_a_ladder_of_neurons():
    one = subjects.subject(subjects.bert())
    units, _, surgeon = subjects.surgery_on(one)
    for number, unit in enumerate(units):
        sizes = surgeon.sizes(number)
        assert list(sizes) == sorted(set(sizes)) and (sizes[0], sizes[-1]) == (0, unit.count)
        errors = surgeon.errors(number, sizes)
        assert errors[-1] == 0 and bool((errors.diff() <= 0).all())
    assert surgeon.sizes(0) == (0, 1, 2, 3, 4)


def test_sensitivities_leave_the_model_as_it_was():
    one = subjects.subject(subjects.bert())
    before = {name: tensor.clone() for name, tensor in one.model.state_dict().items()}
    _, _, surgeon = subjects.surgery_on(one)
    found = surgeon.sensitivities(quiet)
    assert len(found) == 4 and all(value > 0 for value in found)
    assert all(torch.equal(before[name], tensor) for name, tensor in one.model.state_dict().items())
    assert surgeon.loss([4, 48, 4, 48]) == pytest.approx(0, abs=1e-12)


def test_solved_weights_are_kept_within_bounds(monkeypatch):
    one = subjects.subject(subjects.bert())
    _, _, surgeon = subjects.surgery_on(one)
    again = surgeon.solved(1, 20)
    assert surgeon.solved(1, 20) is again
    monkeypatch.setattr("compactor.speedup.surgeon._CACHE_BYTES", 1)
    surgeon.solved(1, 21)
    assert list(surgeon._solved) == [(1, 21)]
    torch.testing.assert_close(surgeon.solved(1, 20), again, rtol=0, atol=0)
