"""What is asked for, refused before any work begins."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compactor.errors import UsageError
from compactor.speedup.costs import Load
from compactor.speedup.settings import SpeedSettings, name_of, names_of, parse_speedups


@pytest.mark.parametrize("text", ["1", "0.5", "nan", "inf", "-2", "0", "-inf", "1e400", "1.5,1", "2,nan"])
def test_speedups_that_are_none(text):
    with pytest.raises(UsageError, match="is none") as caught:
        SpeedSettings(parse_speedups(text))
    assert caught.value.todo and "--speedup" in caught.value.todo


@pytest.mark.parametrize("text", ["a,b", "", ",", "2,", "2;3", "2 3", "x", "two"])
def test_what_is_no_list_of_numbers(text):
    with pytest.raises(UsageError, match="no list of speed-ups") as caught:
        parse_speedups(text)
    assert caught.value.todo


@pytest.mark.parametrize(
    ("text", "found"),
    [("2", (2,)), ("1.5,2,3", (1.5, 2, 3)), (" 1.5x , 2X,3×", (1.5, 2, 3)), ("1e1", (10,))],
)
def test_lists_of_numbers(text, found):
    assert parse_speedups(text) == found


@pytest.mark.parametrize("speedups", [(2, 2), (1.5, 2, 1.5), (2, 2.00004), (1.75, 1.7500001)])
def test_the_same_twice(speedups):
    with pytest.raises(UsageError, match="the same"):
        SpeedSettings(speedups)


@pytest.mark.parametrize("speedups", [(), tuple(range(2, 11))])
def test_none_or_nine_of_them(speedups):
    with pytest.raises(UsageError, match=f"^{len(speedups)} speed-ups"):
        SpeedSettings(speedups)
    assert len(SpeedSettings(tuple(range(2, 10))).speedups) == 8


@pytest.mark.parametrize("load", [Load(batch=0), Load(batch=-1), Load(seq=0)])
def test_loads_that_are_none(load):
    with pytest.raises(UsageError, match="below 1"):
        SpeedSettings((2,), load)


def test_no_trial():
    with pytest.raises(UsageError, match="trial"):
        SpeedSettings((2,), trials=0)


def test_they_are_made_in_ascending_order():
    assert SpeedSettings((3, 1.5, 2)).speedups == (1.5, 2, 3)


@pytest.mark.parametrize(
    ("target", "name"),
    [(2, "2.0x"), (2.0, "2.0x"), (1.75, "1.75x"), (1.5, "1.5x"), (10, "10.0x"), (1.3333333, "1.333x"), (12.5, "12.5x")],
)
def test_names(target, name):
    assert name_of(target) == name
    assert names_of([target, 3]) == [name, "3.0x"]


@given(st.floats(1.001, 9000))
def test_a_name_is_the_target_to_four_digits(target):
    name = name_of(target)
    assert name.endswith("x") and math.isclose(float(name[:-1]), target, rel_tol=1e-3)
    assert parse_speedups(name) == (float(name[:-1]),)
