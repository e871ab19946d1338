"""Numbers for people: three digits, signs and units; never more than was measured."""

from __future__ import annotations

import pytest

from compactor.reporting.numbers import (
    MINUS,
    digits,
    duration,
    interval,
    percent,
    points,
    rate,
    score,
    score_of,
    signed,
    times,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"), (0.00123456, "0.00123"), (0.07731, "0.0773"), (0.7731, "0.773"), (0.99949, "0.999"), (0.9996, "1.00"),
        (9.4249, "9.42"), (9.996, "10.0"), (83.41, "83.4"), (99.96, "100"), (661.2, "661"), (1239.7, "1,240"),
        (-2.5, f"{MINUS}2.50"), (-0.0, "0"),
    ],
)  # fmt: skip
def test_digits(value: float, text: str) -> None:
    assert digits(value) == text


def test_ratios_and_times() -> None:
    assert [times(value) for value in (0.834, 1.0, 9.541, 9.996, 10.21, 99.96, 1234)] == [
        *("0.83×", "1.00×", "9.54×", "10.0×", "10.2×", "100×", "1,234×"),
    ]  # fmt: skip
    assert interval(9.271, 10.04) == "[9.27, 10.0]"
    assert (duration(0.7731), duration(999.4), duration(1240)) == ("0.773 ms", "999 ms", "1.24 s")
    assert (rate(40.31), rate(9999), rate(49_310)) == ("40.3", "9,999", "49.3 k")


def test_quality() -> None:
    assert score(0.8463, 0.0122) == score_of({"value": 0.8463, "se": 0.0122}) == "84.63 ± 1.22 %"
    assert score_of({"value": 0.8463}) == "84.63 %"
    assert points({"value": -0.0012, "se": 0.0041}) == f"{MINUS}0.12 ± 0.41"
    assert points({"value": 0.01, "se": 0.0}) == "+1.00 ± 0.00"
    assert signed(-0.001) == "0.00"  # no sign on nothing
    assert percent(0.3351) == "33.5 %"
