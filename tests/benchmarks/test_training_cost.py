"""What pruning adds to training: what is timed, what is counted, and the table."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from benchmarks import training_cost
from benchmarks.training_cost import HYBRID, MARKER, PLAIN
from tests.benchmarks.made_up import MACHINE

TINY = dict(batch=2, length=8, width=32, layers=2, heads=4, inner=64, vocabulary=50, frozen=False)


def test_memory_is_what_was_allocated_and_not_freed() -> None:
    events = [
        ("aten::add", 0, 0),
        ("[memory]", 5, 100),
        ("[memory]", 9, -40),
        (MARKER, 10, 0),
        ("[memory]", 12, 70),
        ("[memory]", 20, -130),
    ]
    assert training_cost.read_trace(events) == (60, 130)
    assert training_cost.read_trace(list(reversed(events))) == (60, 130), "they come in any order"


def test_tensors_that_share_their_storage_count_once() -> None:
    tensor = torch.zeros(10, 10)
    assert training_cost.tensor_bytes([tensor, tensor[:5], torch.zeros(3)]) == 400 + 12


@pytest.mark.slow
@pytest.mark.parametrize("name", [PLAIN, HYBRID])
def test_a_process_times_its_steps_and_prunes_where_it_should(name: str) -> None:
    found = training_cost.time_steps(name, TINY, 6, torch.get_num_threads())
    assert len(found["step_ms"]) == 6 - 2
    assert min(found["step_ms"]) > 0
    assert found["peak_rss_bytes"] > 1_000_000
    assert (found["density"] < 1) == (name == HYBRID)


@pytest.mark.slow
def test_the_counted_memory_holds_scores_and_activations() -> None:
    plain, hybrid = (training_cost.count_memory(name, TINY, torch.get_num_threads()) for name in (PLAIN, HYBRID))
    for found in (plain, hybrid):
        assert found["standing_bytes"] < found["forward_bytes"] <= found["peak_bytes"]
    scores = 2 * (4 * (32 // 32) ** 2 + 64)
    moments = 2 * scores
    assert hybrid["standing_bytes"] - plain["standing_bytes"] >= 4 * (scores + moments)


@pytest.mark.slow
def test_frozen_embeddings_have_no_moments() -> None:
    frozen = {**TINY, "frozen": True}
    free, fixed = (training_cost.count_memory(PLAIN, shape, 1)["standing_bytes"] for shape in (TINY, frozen))
    embeddings = (50 + 512 + 2 + 2) * 32
    assert free - fixed == pytest.approx(2 * 4 * embeddings, abs=100), "beside a count of steps for each"


def _result() -> dict[str, Any]:
    def process(step: float, rss: int) -> dict[str, Any]:
        return {"step_ms": [step, step, step], "peak_rss_bytes": rss, "density": 1.0}

    return {
        "command": "python benchmarks/training_cost.py",
        "machine": MACHINE,
        "threads": 2,
        "shape": TINY,
        "steps": 20,
        "rounds": {
            PLAIN: [process(100.0 + i, 1_000_000_000) for i in range(4)],
            HYBRID: [process(110.0 + i, 1_020_000_000) for i in range(4)],
        },
        "memory": {
            PLAIN: {"standing_bytes": 100_000_000, "forward_bytes": 200_000_000, "peak_bytes": 250_000_000},
            HYBRID: {"standing_bytes": 101_000_000, "forward_bytes": 204_000_000, "peak_bytes": 255_000_000},
        },
    }


def test_the_table_gives_ratios_beside_what_is_wanted() -> None:
    text = training_cost.render(_result())
    assert "| time of a step | 102 ms | 112 ms | 1.099× [" in text
    assert "| at most 1.25× |" in text
    assert "| tensors at the end of the forward pass | 200 MB | 204 MB | 1.020× | at most 1.05× |" in text
    assert "| peak memory of the process | 1.00 GB | 1.02 GB | 1.020× [1.020, 1.020] | at most 1.05× |" in text
    assert "4 processes of 20 steps each" in text


def test_more_time_is_a_ratio_above_one() -> None:
    result = _result()
    assert training_cost.cost(result, "step_ms").value == pytest.approx(1.099, abs=1e-3)
    swapped = copy.deepcopy(result)
    swapped["rounds"] = {PLAIN: result["rounds"][HYBRID], HYBRID: result["rounds"][PLAIN]}
    assert training_cost.cost(swapped, "step_ms").value < 1


def test_too_few_steps_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        training_cost.main(["--steps", "4"])
    assert "--steps: expected more than 4, got 4" in capsys.readouterr().err
