"""A time to reach: which density it is, how a prediction is corrected, and a whole run that stops there."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from compactor.errors import UsageError
from compactor.trainer.config import PruneConfig
from compactor.trainer.methods import Block, Scoring, Shape
from compactor.trainer.pacing import LOOKS, Timed, densest
from compactor.trainer.pruning import prune
from compactor.trainer.refilling import grown
from tests.compactor.trainer.test_pruner import model_and_pruner, spread_scores
from tests.compactor.trainer.tiny import HEADS, LAYERS, NEURONS, write_model, write_sentences
from tests.slow import slow_after_first

WHOLE = LAYERS * (HEADS + NEURONS)
FAST = {"steps": 12, "batch_size": 8, "max_length": 16, "warm_up": 2, "cool_down": 4, "learning_rate": 1e-3}


def share(sizes) -> float:
    """Time as if each head and each neuron took the same."""
    return sum(sizes.values()) / WHOLE


class Pace:
    """Predicts by ``share``; measures what is in a folder, and finds so much more than that."""

    def __init__(self, wanted: float, more: float = 1.0) -> None:
        self.wanted, self.more, self.found = wanted, more, []

    def share(self, sizes):
        return share(sizes)

    def measure(self, folder: Path) -> float:
        from compactor.exporting.inspecting import AttentionSummary, inspect

        layers = inspect(folder).layers
        left = sum((layer.heads if isinstance(layer, AttentionSummary) else layer.width)[1] for layer in layers)
        self.found.append(left / WHOLE)
        return self.more * left / WHOLE


def test_densest():
    assert densest(lambda density: density**2, 0.25) == pytest.approx(0.5, abs=1e-4)
    assert densest(lambda density: 0.1, 0.25) == 1.0
    assert densest(lambda density: 0.5 + density, 0.25) == 0.0
    assert densest(lambda density: float(density > 0.3), 0.5) <= 0.3, "never above what is wanted"


@pytest.mark.parametrize(
    ("attention", "feed_forward"),
    [(Block(8, 8), Shape.DIM), (Shape.HEAD, Shape.DIM), (Shape.DIM, Shape.DIM), (Block(16, 4), Block(8, 8))],
)
def test_sizes_are_those_that_layers_counts(attention, feed_forward):
    _, pruner = model_and_pruner(attention, feed_forward)
    spread_scores(pruner)
    pruner.advance(80)
    sizes = pruner._sizes([group.live for group in pruner.all_groups])
    assert sizes == {
        layer.name: sum(layer.heads) if layer.heads is not None else layer.neurons[0] for layer in pruner.layers()
    }
    assert 0 < sum(sizes.values()) < WHOLE


@pytest.mark.parametrize("scoring", [Scoring.MOVEMENT, Scoring.MAGNITUDE])
def test_time_falls_along_the_curve_and_ends_where_it_is_measured_right(scoring):
    looked = []

    def measure() -> float:
        looked.append(share(pruner._sizes([group.live for group in pruner.all_groups])))
        return 1.25 * looked[-1]  # graphs are slower than the sum of their blocks

    _, pruner = model_and_pruner(scoring=scoring, timed=Timed(0.5, share, measure))
    spread_scores(pruner)
    taken = []
    for step in range(10, 70, 5):
        pruner.advance(step)
        taken.append(share(pruner._sizes([group.live for group in pruner.all_groups])))
        assert taken[-1] <= pruner.plan.schedule.density(step, 0.5)
        assert taken[-1] == pytest.approx(pruner.plan.schedule.density(step, 0.5), abs=0.1)
    assert taken == sorted(taken, reverse=True) and not looked
    pruner.advance(70)
    assert pruner.settled and 1 < len(looked) <= LOOKS
    left = share(pruner._sizes([group.live for group in pruner.all_groups]))
    assert 1.25 * left == pytest.approx(0.5, abs=0.05)
    best = min(pruner.looks, key=lambda look: abs(look.measured - 0.5))
    assert left == pytest.approx(best.predicted), "of several looks, the closest stays"


def test_what_is_measured_close_enough_is_not_measured_again():
    calls = []
    _, pruner = model_and_pruner(timed=Timed(0.5, share, lambda: calls.append(0) or 0.505))
    spread_scores(pruner)
    pruner.advance(70)
    assert len(calls) == 1


def test_grown_masks_have_whole_heads():
    _, pruner = model_and_pruner(Block(4, 4))
    spread_scores(pruner)
    pruner.advance(80)
    before = pruner.layers()
    sparse = sum(int(group.live.sum()) for group in pruner.all_groups)
    for group, live in zip(pruner.all_groups, grown(pruner), strict=True):
        group.set_live(live)
    after = pruner.layers()
    assert [layer.heads for layer in after] == [layer.heads for layer in before]
    assert [layer.neurons for layer in after] == [layer.neurons for layer in before]
    assert sum(int(group.live.sum()) for group in pruner.all_groups) > sparse
    for layer in after:
        if layer.heads is not None:
            assert layer.density == pytest.approx(sum(layer.heads) / HEADS)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pacing")
    write_model(folder / "model")
    write_sentences(folder / "train.tsv", 60, seed=1)
    write_sentences(folder / "dev.tsv", 20, seed=2)
    return folder


def run(place, out, method="hybrid", *, pace, **settings):
    blocks = {"attention_block": "8x8"} if method != "struct" else {}
    config = PruneConfig(method=method, **{**FAST, **blocks, **settings})
    return prune(place / "model", place / "train.tsv", place / "dev.tsv", out, config=config, pace=pace)


@pytest.mark.parametrize("method", slow_after_first(["hybrid", "struct", "magnitude", "hybrid-filled", "rewind"]))
def test_a_run_stops_at_the_time(place, tmp_path, method):
    pace = Pace(0.6)
    result = run(place, tmp_path / "out", method, pace=pace)
    final = result.record["final"]
    left = (final["heads"][0] + final["neurons"][0]) / WHOLE
    assert left == pytest.approx(0.6, abs=0.05)
    assert pace.found, "it was measured on a folder that inspect reads"
    looks = result.record["looks"] or (tmp_path / "out" / "first" / "training.json").read_text()
    assert looks


def test_a_run_that_goes_on_after_its_measurement_is_not_measured_again(place, tmp_path):
    whole = run(place, tmp_path / "whole", pace=Pace(0.6), eval_steps=5)
    out = tmp_path / "again"
    shutil.copytree(tmp_path / "whole", out)
    for name in ("training.json", "model.safetensors"):
        (out / name).unlink()
    shutil.rmtree(out / "checkpoints" / "checkpoint-12", ignore_errors=True)
    assert (out / "checkpoints" / "checkpoint-10").is_dir(), "written after masks had settled"
    pace = Pace(0.6)
    config = PruneConfig(method="hybrid", **FAST, attention_block="8x8", eval_steps=5)
    options = {"config": config, "pace": pace, "resume": True}
    again = prune(place / "model", place / "train.tsv", place / "dev.tsv", out, **options)
    assert not pace.found
    assert again.record["looks"] == whole.record["looks"]
    assert torch.equal(*(_weights(path) for path in (tmp_path / "whole", out)))


def _weights(folder):
    from safetensors.torch import load_file

    return torch.cat([tensor.flatten() for _, tensor in sorted(load_file(folder / "model.safetensors").items())])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "movement"}, "'movement' does not lead to a time"),
        ({"method": "tuned"}, "'tuned' does not lead to a time"),
        ({"method": "dense"}, "'dense' does not lead to a time"),
        ({"target_density": 0.4}, "cannot both be reached"),
        ({"feed_forward_block": "none"}, "does not lead to a time"),
    ],
)
def test_what_cannot_stop_at_a_time(place, tmp_path, settings, message):
    config = PruneConfig(**{**FAST, **settings})
    with pytest.raises(UsageError, match=message):
        prune(place / "model", place / "train.tsv", place / "dev.tsv", tmp_path / "out", config=config, pace=Pace(0.5))
    assert not (tmp_path / "out").exists()
