"""The pruner: what it masks, when, how far; what it counts."""

from __future__ import annotations

import math

import pytest
import torch

from compactor.errors import UsageError
from compactor.trainer.folders import plain_state, stock_copy
from compactor.trainer.methods import Block, Scoring, Shape
from compactor.trainer.pruner import Plan, Pruner
from compactor.trainer.refilling import FILL_SPREAD, fill, protect
from compactor.trainer.schedule import Schedule
from compactor.trainer.structure import AttentionMatrices, find_blocks
from compactor.trainer.survivors import find_survivors
from tests.compactor.trainer.tiny import HEADS, LAYERS, NEURONS, WIDTH, bert_config

SCHEDULE = Schedule(steps=100, warm_up=10, cool_down=30)
LINEAR = LAYERS * (4 * WIDTH * WIDTH + 2 * WIDTH * NEURONS)


EIGHT = Block(8, 8)


def model_and_pruner(attention=EIGHT, feed_forward=Shape.DIM, *, schedule=SCHEDULE, seed=0, **plan):
    from transformers import BertForSequenceClassification

    torch.manual_seed(seed)
    model = BertForSequenceClassification(bert_config())
    ids = torch.arange(4, 12).reshape(1, -1)
    blocks = find_blocks(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    plan = Plan(attention, feed_forward, schedule, **plan)
    return model, Pruner.install(model, blocks, plan)


def spread_scores(pruner, seed=1):
    """Scores from -6 to 2: sigmoids on both sides of the final threshold."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for group in pruner.all_groups:
            group.scores.copy_(torch.rand(group.scores.shape, generator=generator) * 8 - 6)


@pytest.mark.parametrize(
    ("attention", "feed_forward", "scores"),
    [
        pytest.param(Block(8, 8), Shape.DIM, 4 * (WIDTH // 8) ** 2 + NEURONS, id="hybrid"),
        pytest.param(Shape.HEAD, Shape.DIM, 4 * HEADS + NEURONS, id="struct"),
        pytest.param(Shape.DIM, Shape.NONE, 4 * WIDTH, id="rows-and-columns"),
        pytest.param(Shape.NONE, Shape.DIM, NEURONS, id="feed-forward-alone"),
        pytest.param(Block(16, 16), Block(16, 16), 4 * 4 + 2 * 2 * 3, id="block"),
        pytest.param(Block(1, 1), Block(1, 1), 4 * WIDTH**2 + 2 * WIDTH * NEURONS, id="movement"),
    ],
)
def test_a_score_for_each_unit_and_every_weight_under_one(attention, feed_forward, scores):
    _, pruner = model_and_pruner(attention, feed_forward)

    assert sum(group.scores.numel() for group in pruner.all_groups) == LAYERS * scores
    assert pruner.all_weights() == LINEAR
    for group in pruner.all_groups:
        assert int(group.weights.sum()) == sum(m.module.weight.numel() for m in group.members)
    assert pruner.density() == 1 and pruner.heads() == (LAYERS * HEADS, LAYERS * HEADS)


def test_the_attention_output_is_cut_the_other_way_round():
    _, pruner = model_and_pruner(Block(8, 16))
    output = next(block.output for block in pruner.blocks if isinstance(block, AttentionMatrices))
    for _, member in pruner.members():
        if member.name == output.module:
            assert (member.rows, member.cols) == (16, 8)


def test_masks_follow_the_threshold_and_settle_in_the_cool_down():
    _, pruner = model_and_pruner(least=0.0)
    spread_scores(pruner)
    for step in (0, 5, 9, 10, 40, 69):
        pruner.advance(step)
        tau = 0.1 * (1 - min(1, (70 - step) / 60) ** 3)
        assert pruner.threshold == pytest.approx(tau)
        assert pruner.strength == pytest.approx(20 * tau / 0.1)
        assert all(torch.equal(g.live, g.scores.sigmoid() > tau) for g in pruner.all_groups)
        assert not pruner.settled
    pruner.advance(70)
    live = [group.live.clone() for group in pruner.all_groups]
    assert pruner.settled and pruner.threshold == 0.1 and pruner.penalty() is None
    with torch.no_grad():
        for group in pruner.all_groups:
            assert not group.scores.requires_grad
            group.scores.zero_()
    pruner.advance(71)
    pruner.refresh()
    assert all(torch.equal(a, g.live) for a, g in zip(live, pruner.all_groups, strict=True))


def test_the_penalty_is_a_mean_over_all_scores_of_a_family():
    _, pruner = model_and_pruner(attention_lambda=0.5, feed_forward_lambda=2.0, strength=8.0)
    spread_scores(pruner)
    pruner.advance(40)
    means = {}
    for family in ("attention", "feed_forward"):
        scores = torch.cat([g.scores.flatten() for g in pruner.all_groups if g.family == family])
        means[family] = (1 / (1 + (-scores).exp())).mean()
    share = 1 - (30 / 60) ** 3
    expected = 8 * share * (0.5 * means["attention"] + 2 * means["feed_forward"])
    torch.testing.assert_close(pruner.penalty(), expected)


def test_the_decoder_is_pushed_harder():
    from transformers import BartConfig, BartForConditionalGeneration

    torch.manual_seed(0)
    sizes = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    model = BartForConditionalGeneration(
        BartConfig(d_model=16, encoder_ffn_dim=16, decoder_ffn_dim=16, vocab_size=40, **sizes)
    )
    ids = torch.arange(4, 10).reshape(1, -1)
    blocks = find_blocks(model, {"input_ids": ids, "decoder_input_ids": ids.clone(), "use_cache": False})
    pruner = Pruner.install(model, blocks, Plan(Block(8, 8), Shape.DIM, Schedule(10, 0, 0), strength=1.0))
    pruner.strength = 1.0  # as at the end of the pruning phase
    assert pruner.penalty().item() == pytest.approx(0.5 * (1 + 1 + 2 + 2))  # σ(0) = 0.5; two families, two stacks


def test_a_target_is_met_when_the_masks_settle():
    _, pruner = model_and_pruner(target_density=0.3)
    spread_scores(pruner)
    pruner.advance(70)
    assert pruner.density() == pytest.approx(0.3, abs=0.01)
    scores = torch.cat([group.scores.flatten() for group in pruner.all_groups])
    live = torch.cat([group.live.flatten() for group in pruner.all_groups])
    assert scores[live].min() > scores[~live].max() - 1.0  # by rank, but for the least that stays
    lowest = min(
        g.scores[g.live].min().item() for g in pruner.all_groups if int(g.live.sum()) > g.live.numel() // 100 + 1
    )
    assert pruner.threshold == pytest.approx(1 / (1 + math.exp(-lowest)), rel=1e-3)


def test_lambda_rises_while_scores_are_above_their_line_and_falls_below_it():
    _, pruner = model_and_pruner(target_density=0.3)
    pruner.advance(40)  # all scores are 0, and the line is half-way down
    assert pruner.steering.value > pruner.steering.first
    with torch.no_grad():
        for group in pruner.all_groups:
            group.scores.fill_(-8)
    before = pruner.steering.value
    pruner.advance(41)
    assert pruner.steering.value < before
    for _ in range(2000):
        pruner.advance(41)
    assert pruner.steering.value == pytest.approx(pruner.steering.first / 10)  # not further: the task shall count


def test_on_the_way_to_a_target_the_density_follows_the_schedule():
    _, pruner = model_and_pruner(target_density=0.3, least=0.0)
    spread_scores(pruner)
    with torch.no_grad():
        for group in pruner.all_groups:
            group.scores.add_(10)  # none would go by the threshold
    for step in (10, 25, 40, 55, 69):
        pruner.advance(step)
        assert pruner.density() == pytest.approx(0.3 + 0.7 * ((70 - step) / 60) ** 3, abs=0.01)
    with torch.no_grad():
        for group in pruner.all_groups:
            group.scores.sub_(20)
    pruner.advance(30)  # nor do blocks go sooner, all of them below the threshold, to come back in the end
    assert pruner.density() == pytest.approx(0.3 + 0.7 * (40 / 60) ** 3, abs=0.01)


def test_magnitude_keeps_the_largest_norms():
    _, pruner = model_and_pruner(scoring=Scoring.MAGNITUDE, target_density=0.4)
    pruner.advance(70)
    assert pruner.density() == pytest.approx(0.4, abs=0.02)
    for group in pruner.all_groups:
        member = group.members[0]
        if group.family != "attention":
            continue
        for row in range(group.live.shape[0]):
            for col in range(group.live.shape[1]):
                block = member.weight[row * 8 : row * 8 + 8, col * 8 : col * 8 + 8]
                assert group.scores[row, col].item() == pytest.approx(block.norm().item() / 8, rel=1e-4)
        assert group.scores[group.live].min() >= group.scores[~group.live].max()


def test_magnitude_without_a_density_is_refused():
    with pytest.raises(UsageError, match="needs a density"):
        model_and_pruner(scoring=Scoring.MAGNITUDE)


def test_feed_forward_layers_have_no_heads():
    with pytest.raises(UsageError, match="no heads"):
        model_and_pruner(Shape.HEAD, Shape.HEAD)


def test_blocks_that_do_not_divide_are_told():
    _, pruner = model_and_pruner(Block(7, 7))
    assert "do not divide 8 matrices" in pruner.notes[0]
    spread_scores(pruner)
    pruner.advance(70)
    live = sum(int(member.expand(group.live).sum()) for group, member in pruner.members())
    assert pruner.live_weights() == live  # blocks at the edge count what they hold


def test_heads_are_judged_as_the_export_judges_them():
    _, pruner = model_and_pruner(Shape.HEAD)
    groups = {group.name: group for group in pruner.all_groups}
    attention = next(block for block in pruner.blocks if isinstance(block, AttentionMatrices))
    groups[attention.query.name].live[0] = False  # an average of its values: alive
    groups[attention.value.name].live[1] = False  # no values: dead
    groups[attention.output.name].live[0, 2] = False  # never read: dead
    assert pruner.layers()[0].heads == (True, False, False, True)


def test_what_is_saved_is_the_masked_model():
    model, pruner = model_and_pruner(least=0.0)
    spread_scores(pruner)
    pruner.advance(70)
    stock = stock_copy(model).eval()
    ids = torch.arange(4, 12).reshape(1, -1)

    torch.testing.assert_close(stock(input_ids=ids).logits, model.eval()(input_ids=ids).logits, rtol=0, atol=0)
    assert not any("compactor" in name or "parametriz" in name for name in plain_state(model))
    modules = dict(stock.named_modules())
    for group, member in pruner.members():
        mask = member.expand(group.live)
        assert torch.equal(modules[member.name].weight != 0, mask)
        assert torch.equal(modules[member.name].bias == 0, (~member.live_rows(group.live)) | (member.bias == 0))


def test_filling_revives_surviving_heads_and_nothing_else():
    model, pruner = model_and_pruner(least=0.0)
    spread_scores(pruner, seed=3)
    dead = next(block for block in pruner.blocks if isinstance(block, AttentionMatrices))
    groups = {group.name: group for group in pruner.all_groups}
    with torch.no_grad():
        groups[dead.output.name].scores[:, 0] = -9  # the first head of 8 channels is never read
        groups[dead.output.name].scores[:, 1] = 9
        groups[dead.value.name].scores[1] = 9
    pruner.advance(70)
    stock = stock_copy(model)
    blocks = pruner.blocks
    survivors = find_survivors(stock, blocks)
    assert survivors.heads[dead.output.name].tolist() == list(pruner.layers()[0].heads)
    assert not survivors.heads[dead.output.name][0] and survivors.heads[dead.output.name][1]
    before = {name: tensor.clone() for name, tensor in stock.state_dict().items()}

    filler = Pruner.install(stock, blocks, Plan(Shape.HEAD, Shape.DIM, Schedule(10, 0, 0)))
    filled = fill(filler, survivors, torch.Generator().manual_seed(0))

    assert filler.settled and filled > 0
    query = next(member for _, member in filler.members() if member.name == dead.query.module).weight
    was = before[f"{dead.query.module}.weight"]
    new = (was == 0) & (query != 0)
    assert not new[:8].any() and (query[8:16] != 0).all()  # of the dead head nothing, of the living one everything
    assert torch.equal(query[was != 0], was[was != 0])
    assert query[new].abs().max().item() < 6 * FILL_SPREAD
    filler.advance(5)
    assert filler.heads()[0] == sum(int(alive.sum()) for alive in survivors.heads.values())


def test_protected_heads_cannot_be_pruned():
    model, pruner = model_and_pruner(least=0.0)
    spread_scores(pruner, seed=3)
    pruner.advance(70)
    survivors = find_survivors(stock_copy(model), pruner.blocks)
    _, second = model_and_pruner(least=0.0)
    protect(second, survivors)
    with torch.no_grad():
        for group in second.all_groups:
            group.scores.fill_(-9)
    second.advance(70)
    for layer, block in zip(second.layers(), second.blocks, strict=True):
        if isinstance(block, AttentionMatrices):
            assert list(layer.heads) == survivors.heads[block.output.name].tolist()
        else:
            assert layer.neurons[0] == 0
