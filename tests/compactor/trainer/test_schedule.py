"""Threshold, λ and density against the formula, computed by hand; and where λ is steered."""

from __future__ import annotations

import json

import hypothesis
import pytest
from hypothesis import strategies

from compactor.trainer.schedule import Schedule, Steering

SCHEDULE = Schedule(steps=100, warm_up=20, cool_down=30, final_threshold=0.1)  # 50 steps of pruning


@pytest.mark.parametrize(
    ("step", "phase", "left", "threshold"),
    [
        (0, "warm-up", 1.0, 0.0),
        (19, "warm-up", 1.0, 0.0),
        (20, "pruning", 1.0, 0.0),
        (30, "pruning", 0.8, 0.0488),  # 0.1 (1 - 0.512)
        (45, "pruning", 0.5, 0.0875),  # 0.1 (1 - 0.125)
        (60, "pruning", 0.2, 0.0992),  # 0.1 (1 - 0.008)
        (69, "pruning", 0.02, 0.0999992),
        (70, "cool-down", 0.0, 0.1),
        (99, "cool-down", 0.0, 0.1),
    ],
)
def test_the_threshold_rises_with_the_cube_of_what_is_left(
    step: int, phase: str, left: float, threshold: float
) -> None:
    assert SCHEDULE.phase(step) == phase
    assert SCHEDULE.left(step) == pytest.approx(left)
    assert SCHEDULE.threshold(step) == pytest.approx(threshold)
    assert SCHEDULE.strength(step) == pytest.approx(threshold / 0.1)  # λ goes with the threshold


@pytest.mark.parametrize(("step", "density"), [(0, 1.0), (20, 1.0), (45, 0.3875), (60, 0.3056), (70, 0.3), (99, 0.3)])
def test_the_density_falls_as_the_threshold_rises(step: int, density: float) -> None:
    assert SCHEDULE.density(step, 0.3) == pytest.approx(density)


def test_phases_are_those_that_have_steps() -> None:
    assert SCHEDULE.phases() == [("warm-up", 0, 20), ("pruning", 20, 70), ("cool-down", 70, 100)]
    assert Schedule(10, 0, 4).phases() == [("pruning", 0, 6), ("cool-down", 6, 10)]
    assert Schedule(10, 3, 0).phases() == [("warm-up", 0, 3), ("pruning", 3, 10)]


@hypothesis.given(
    warm_up=strategies.integers(0, 30),
    pruning=strategies.integers(1, 50),
    cool_down=strategies.integers(0, 30),
    final=strategies.floats(0.01, 1),
)
def test_the_threshold_never_falls_and_ends_where_it_should(
    warm_up: int, pruning: int, cool_down: int, final: float
) -> None:
    schedule = Schedule(warm_up + pruning + cool_down, warm_up, cool_down, final)
    values = [schedule.threshold(step) for step in range(schedule.steps)]
    assert values == sorted(values)
    assert values[: warm_up + 1] == [0.0] * (warm_up + 1)
    assert values[schedule.settled_from :] == [final] * cool_down
    assert all(0 <= value <= final for value in values)
    phases = [schedule.phase(step) for step in range(schedule.steps)]
    assert phases == ["warm-up"] * warm_up + ["pruning"] * pruning + ["cool-down"] * cool_down


# Steering: half-way through the pruning phase, the cut shall be at logit(0.1) / 2 = -1.09861


@pytest.mark.parametrize(
    ("cut", "value"),
    [
        pytest.param(-1.09861, 20.0, id="on-its-line"),
        pytest.param(-0.59861, 20.50630, id="above"),  # 20 · e^(0.05 · 0.5)
        pytest.param(-1.59861, 19.50620, id="below"),  # 20 · e^(-0.05 · 0.5)
        pytest.param(3.0, 21.02542, id="far-above"),  # 20 · e^0.05: an error counts for 1 at most
        pytest.param(-9.0, 19.02459, id="far-below"),  # 20 · e^-0.05
    ],
)
def test_lambda_grows_while_the_cut_is_above_its_line(cut: float, value: float) -> None:
    steering = Steering(value=20.0, first=20.0)
    steering.move(cut, SCHEDULE, 45)
    assert steering.value == pytest.approx(value, abs=1e-4)


def test_the_line_of_the_cut_falls_evenly_to_the_final_threshold() -> None:
    for step, line in ((20, 0.0), (30, -0.439445), (60, -1.757780), (70, -2.197225)):
        steering = Steering(value=20.0, first=20.0)
        steering.move(line, SCHEDULE, step)
        assert steering.value == pytest.approx(20.0, abs=1e-5)


@pytest.mark.parametrize(("cut", "bound"), [(2.0, 200.0), (-9.0, 2.0)])
def test_lambda_stays_within_a_factor_of_ten_of_the_first(cut: float, bound: float) -> None:
    steering = Steering(value=20.0, first=20.0)
    for step in range(20, 70):
        steering.move(cut, SCHEDULE, step)
    assert steering.value == pytest.approx(bound)


def test_steering_goes_on_where_it_was() -> None:
    steering = Steering(value=20.0, first=20.0)
    steering.move(-0.2, SCHEDULE, 45)
    assert steering.value > 20
    again = Steering.from_json(json.loads(json.dumps(steering.to_json())))
    assert again == steering
