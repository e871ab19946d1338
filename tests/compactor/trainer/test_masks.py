"""Masks: the straight-through gradient, blocks that do not divide, the least that stays, the backward pass."""

from __future__ import annotations

import contextlib

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrize

from compactor.trainer import masks
from compactor.trainer.masks import (
    Group,
    MaskedBias,
    MaskedWeight,
    Member,
    highest,
    keep_at_least,
    live_elements,
    live_rows,
    recomputed_weights,
)


def masked_linear(out: int, inside: int, rows: int, cols: int, *, transposed: bool = False, seed: int = 0):
    """A linear layer in float64 with a group of random scores, half of whose blocks live."""
    torch.manual_seed(seed)
    linear = nn.Linear(inside, out).double()
    grid = (-(-out // rows), -(-inside // cols))
    shape = grid[::-1] if transposed else grid
    member = Member(linear, "linear", "linear", rows, cols, transposed)
    group = Group("linear", "attention", "encoder", shape, member.block_sums(torch.ones(out, inside)))
    group.double()
    group.members = [member]
    with torch.no_grad():
        group.scores.normal_()
        group.set_live(torch.rand(shape) < 0.5)
    parametrize.register_parametrization(linear, "weight", MaskedWeight((group, member)))
    parametrize.register_parametrization(linear, "bias", MaskedBias((group, member)))
    return linear, group, member


def element_mask(group: Group, out: int, inside: int, rows: int, cols: int, transposed: bool) -> torch.Tensor:
    """The mask, element by element: written without the code under test."""
    live = group.live.T if transposed else group.live
    return torch.tensor([[bool(live[i // rows, j // cols]) for j in range(inside)] for i in range(out)])


SIZES = [
    pytest.param(6, 8, 2, 4, False, id="blocks"),
    pytest.param(5, 7, 2, 3, False, id="blocks-that-do-not-divide"),
    pytest.param(6, 8, 1, 8, False, id="rows"),
    pytest.param(6, 8, 6, 1, False, id="columns"),
    pytest.param(8, 6, 8, 1, True, id="columns-by-rows-of-scores"),
    pytest.param(4, 4, 1, 1, False, id="elements"),
]


@pytest.mark.parametrize(("out", "inside", "rows", "cols", "transposed"), SIZES)
def test_the_product_is_that_of_the_masked_weight_and_bias(out, inside, rows, cols, transposed):
    linear, group, member = masked_linear(out, inside, rows, cols, transposed=transposed)
    mask = element_mask(group, out, inside, rows, cols, transposed)
    x = torch.randn(3, inside, dtype=torch.float64)
    bias = torch.where(mask.any(1), member.bias, 0)

    torch.testing.assert_close(linear(x), x @ (member.weight * mask).T + bias)


@pytest.mark.parametrize(("out", "inside", "rows", "cols", "transposed"), SIZES)
def test_gradients_are_straight_through(out, inside, rows, cols, transposed):
    """dL/dS of a block is the sum of dL/dW' * W over it, whether it lives or not; W's gradient is masked."""
    linear, group, member = masked_linear(out, inside, rows, cols, transposed=transposed)
    mask = element_mask(group, out, inside, rows, cols, transposed)
    x = torch.randn(3, inside, dtype=torch.float64)
    upstream = torch.randn(3, out, dtype=torch.float64)

    (linear(x) * upstream).sum().backward()

    of_masked = upstream.T @ x  # dL/dW'
    by_hand = torch.zeros_like(group.scores)
    for i in range(out):
        for j in range(inside):
            at = (j // cols, i // rows) if transposed else (i // rows, j // cols)
            by_hand[at] += of_masked[i, j] * member.weight[i, j]
    torch.testing.assert_close(group.scores.grad, by_hand)
    torch.testing.assert_close(member.weight.grad, of_masked * mask)
    torch.testing.assert_close(member.bias.grad, upstream.sum(0) * mask.any(1))


@contextlib.contextmanager
def noting_what_is_kept(packed: list[object]):
    """``recomputed_weights``, with what autograd keeps noted in ``packed``."""
    original = masks._pack
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(masks, "_pack", lambda tensor: packed.append(original(tensor)) or packed[-1])
        with recomputed_weights():
            yield


@pytest.mark.parametrize(("out", "inside", "rows", "cols", "transposed"), SIZES)
def test_recomputed_weights_change_no_gradient_and_are_not_kept(out, inside, rows, cols, transposed):
    grads, kept = [], []
    for recompute in (False, True):
        linear, group, member = masked_linear(out, inside, rows, cols, transposed=transposed)
        x = torch.linspace(-1, 1, 4 * inside, dtype=torch.float64).reshape(2, 2, inside).requires_grad_()
        packed: list[object] = []
        with noting_what_is_kept(packed) if recompute else contextlib.nullcontext():
            linear(x).square().sum().backward()
        grads.append([x.grad, group.scores.grad, member.weight.grad, member.bias.grad])
        kept.append(packed)

    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
    recipes = [item for item in kept[1] if isinstance(item, masks._Recipe)]
    assert recipes and all(recipe.weight is not None for recipe in recipes)


def test_a_weight_changed_before_the_backward_pass_is_noticed():
    linear, _, member = masked_linear(4, 4, 2, 2)
    with recomputed_weights():
        loss = linear(torch.randn(2, 4, dtype=torch.float64, requires_grad=True)).sum()
        with torch.no_grad():
            member.weight.add_(1)
        with pytest.raises(RuntimeError, match="changed between"):
            loss.backward()


@hypothesis.given(
    scores=st.lists(st.sampled_from([-1.0, 0.0, 1.0]), min_size=1, max_size=40), least=st.floats(0.001, 1)
)
def test_the_least_that_stays_holds_on_ties(scores, least):
    tensor = torch.tensor(scores).reshape(1, -1)
    live = keep_at_least(tensor > 10, tensor, least)

    floor = min(int(least * len(scores)) + 1, len(scores))
    assert int(live.sum()) == floor
    assert tensor[live].min() >= tensor[~live].max() if floor < len(scores) else True


def test_nothing_need_stay_where_nothing_is_asked():
    scores = torch.zeros(2, 2)
    assert not keep_at_least(scores > 1, scores, 0).any()


def test_of_equal_scores_the_first_ones_stay():
    assert highest(torch.zeros(2, 3), 2).flatten().tolist() == [True, True, False, False, False, False]


def test_a_neuron_switches_its_row_and_its_column():
    first, second = nn.Linear(4, 6), nn.Linear(6, 4)
    members = [Member(first, "first", "first", 1, 4), Member(second, "second", "first", 4, 1, transposed=True)]
    group = Group("first", "feed_forward", "encoder", (6, 1), torch.full((6, 1), 8.0))
    group.members = members
    group.set_live(torch.tensor([[True], [False], [True], [True], [False], [True]]))

    dead = [1, 4]
    assert not members[0].expand(group.live)[dead].any() and members[0].expand(group.live)[[0, 2, 3, 5]].all()
    assert not members[1].expand(group.live)[:, dead].any()
    assert members[1].live_rows(group.live).all()  # of the output, every row has living weights: its bias stays
    assert int(group.live_weights) == 4 * 8


def fused_linear(*, seed: int = 0) -> tuple[nn.Linear, Tensor, Tensor, list[tuple[Group, Member]]]:
    """One weight of 4 rows that no mask covers, 4 cut into blocks of 2x3, and twice 3 that are neurons."""
    torch.manual_seed(seed)
    linear = nn.Linear(6, 14).double()
    weight, bias = linear.weight.detach().clone(), linear.bias.detach().clone()
    blocks = Group("fused[4:8]", "attention", "encoder", (2, 2), torch.full((2, 2), 6.0)).double()
    neurons = Group("fused[8:11]", "feed_forward", "encoder", (3, 1), torch.full((3, 1), 12.0)).double()
    blocks.members = [Member(linear, "fused", blocks.name, 2, 3, start=4, stop=8)]
    neurons.members = [Member(linear, "fused", neurons.name, 1, 6, start=start, stop=start + 3) for start in (8, 11)]
    blocks.set_live(torch.tensor([[True, False], [False, False]]))
    neurons.set_live(torch.tensor([[False], [True], [True]]))
    own = [(group, member) for group in (blocks, neurons) for member in group.members]
    parametrize.register_parametrization(linear, "weight", MaskedWeight(*own))
    parametrize.register_parametrization(linear, "bias", MaskedBias(*own))
    return linear, weight, bias, own


FUSED = torch.ones(14, 6, dtype=torch.float64)
FUSED[4:6, 3:], FUSED[6:8], FUSED[8], FUSED[11] = 0, 0, 0, 0


@pytest.mark.parametrize("recompute", [False, True])
def test_matrices_in_one_weight_have_masks_of_their_own(recompute):
    linear, weight, bias, own = fused_linear()
    x = torch.randn(5, 6, dtype=torch.float64)
    upstream = torch.randn(5, 14, dtype=torch.float64)
    with recomputed_weights() if recompute else contextlib.nullcontext():
        found = linear(x.requires_grad_())
        (found * upstream).sum().backward()

    torch.testing.assert_close(found, x @ (weight * FUSED).T + bias * FUSED.any(1))
    torch.testing.assert_close(x.grad, upstream @ (weight * FUSED))
    of_masked = upstream.T @ x.detach()  # dL/dW'
    torch.testing.assert_close(own[0][1].weight.grad, of_masked * FUSED)
    each = of_masked * weight
    blocks = [[each[4 + 2 * i : 6 + 2 * i, 3 * j : 3 * j + 3].sum() for j in (0, 1)] for i in (0, 1)]
    torch.testing.assert_close(own[0][0].scores.grad, torch.stack([torch.stack(row) for row in blocks]))
    neurons = torch.stack([each[8 + i].sum() + each[11 + i].sum() for i in range(3)])
    torch.testing.assert_close(own[1][0].scores.grad.flatten(), neurons)
    assert torch.equal(live_elements(own), FUSED.bool()) and torch.equal(live_rows(own), FUSED.any(1))


def test_the_norm_of_a_neuron_is_over_all_its_matrices():
    _, weight, _, own = fused_linear()
    by_hand = [((weight[8 + i].square().sum() + weight[11 + i].square().sum()) / 12).sqrt() for i in range(3)]
    torch.testing.assert_close(own[1][0].norms().flatten(), torch.stack(by_hand))
