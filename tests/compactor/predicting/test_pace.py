"""The pace: what is told, and how often."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from compactor.predicting.pace import Pace, format_duration, format_rate


def test_time_left_counts_from_the_first_chunk_on() -> None:
    now = [0.0]
    told: list[str] = []
    pace = Pace(10_000, 4_000, told.append, clock=lambda: now[0])
    now[0] = 60.0  # a slow start
    pace.add(1_000)
    now[0] = 80.0
    pace.add(1_000)
    now[0] = 81.0
    pace.add(1_000)  # too soon after the last line
    now[0] = 91.0
    pace.add(3_000)
    assert told == [
        "5,000 of 10,000 rows (50 %)",
        "6,000 of 10,000 rows (60 %), 50 rows/s, 80 s left",
        "10,000 of 10,000 rows (100 %), 161 rows/s",
    ]
    assert pace.seconds == 91
    assert pace.rate == pytest.approx(6_000 / 91)


def test_nothing_answered_is_no_rate(clock: Callable[[], float]) -> None:
    pace = Pace(10, 10, lambda message: None, clock=clock)
    assert pace.rate == 0


def test_numbers_for_people() -> None:
    assert [format_rate(rate) for rate in (0.123456, 3.14159, 42.21, 1234.5)] == ["0.123", "3.14", "42.2", "1,234"]
    assert [format_duration(s) for s in (0.4, 89, 90, 3600, 11_100)] == ["0 s", "89 s", "2 min", "60 min", "3 h 05 min"]
