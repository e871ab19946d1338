"""Which sizes are measured, what is made of times, and what is read of a file; no time is measured here."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compactor.errors import UsageError
from compactor.speedup.costs import Costs, Load, Taken, _fit, _plans, _rising, _sizes
from tests.compactor.speedup.subjects import block


def stack(layers, *, heads=12, neurons=64):
    """The blocks of a model whose layers are alike."""
    return [
        unit
        for layer in range(layers)
        for unit in (block("attention", layer, heads, width=2), block("feed_forward", layer, neurons))
    ]


# Plans


@given(st.integers(1, 24), st.integers(1, 40), st.integers(1, 200))
def test_every_size_of_a_shape_is_in_some_graph(layers, heads, neurons):
    units = stack(layers, heads=heads, neurons=neurons)
    plans = _plans(units)
    assert 2 <= len(plans) <= 4
    assert all(len(plan) == len(units) for plan in plans)
    for kind in range(2):
        wanted = set(_sizes(units[kind]))
        found = [plan[place] for plan in plans for place in range(kind, len(units), 2)]
        assert set(found) <= wanted
        assert len(set(found)) == min(len(wanted), len(found))
        if len(found) < len(wanted):
            assert {min(wanted), max(wanted)} <= set(found)
        assert max(collections.Counter(found).values()) - min(collections.Counter(found).values()) <= 1


def test_shapes_are_planned_apart():
    units = [*stack(6), block("feed_forward", 6, 20), block("attention", 7, 3)]
    plans = _plans(units)
    assert {plan[12] for plan in plans} <= set(_sizes(units[12]))
    assert {plan[13] for plan in plans} == {1, 2}


@given(st.integers(1, 4096), st.booleans())
def test_sizes_are_ascending_and_neither_none_nor_all(count, attention):
    sizes = _sizes(block("attention" if attention else "feed_forward", 0, count))
    assert sizes == sorted(set(sizes)) and sizes
    assert 0 < sizes[0] and (sizes[-1] < count or sizes == [1] == [count])
    if attention and count <= 16:
        assert sizes == list(range(1, max(count, 2)))


def test_one_head():
    assert _plans(stack(2, heads=1))


# Levelling


@given(st.lists(st.floats(-100, 100), max_size=12))
def test_levelled_times_never_fall_and_are_closest(values):
    found = _rising(values)
    assert len(found) == len(values)
    assert all(later >= earlier - 1e-9 for earlier, later in itertools.pairwise(found))
    assert sum(found) == pytest.approx(sum(values), abs=1e-6)
    assert _rising(sorted(values)) == sorted(values)
    # Closest: by the minimum over ends of the maximum over beginnings of means, as isotonic regression is defined.
    for place in range(len(values)):
        expected = min(
            max(np.mean(values[start : end + 1]) for start in range(place + 1)) for end in range(place, len(values))
        )
        assert found[place] == pytest.approx(expected, abs=1e-6)


# Fitting


def true_cost(unit, size):
    """Never less for more; not a straight line."""
    rate = 0.31 if unit.is_attention else 0.017
    return 0.0 if size == 0 else rate * size + 0.2 * np.sqrt(size)


def profile_of(units, plan, times, *, excess, other, random):
    """What a profile says that adds ``excess`` milliseconds to each of the nodes."""
    found = {"other": Taken(other + 7 * excess, 7)}
    for unit, size, time in zip(units, plan, times, strict=True):
        if size:
            nodes = int(random.integers(3, 12))
            found[unit.name] = Taken(time + nodes * excess, nodes)
    return found


@given(
    st.integers(2, 12),
    st.integers(2, 16),
    st.integers(4, 300),
    st.floats(-0.001, 0.05),
    st.floats(0.01, 20),
)
def test_known_costs_are_recovered(layers, heads, neurons, excess, fixed):
    units = stack(layers, heads=heads, neurons=neurons)
    plans = [tuple(unit.count for unit in units), *_plans(units)]
    blocks = np.array([[true_cost(unit, size) for unit, size in zip(units, plan, strict=True)] for plan in plans])
    measured = fixed + blocks.sum(1)
    random = np.random.default_rng(layers)
    profiles = [
        profile_of(units, plan, times, excess=excess, other=fixed, random=random)
        for plan, times in zip(plans, blocks, strict=True)
    ]
    costs = _fit(units, plans, measured.tolist(), profiles, Load())  # the profile takes time of its own

    assert costs.fixed_ms == pytest.approx(fixed, abs=1e-6 * measured[0])
    assert costs.dense_ms == pytest.approx(measured[0])
    assert costs.error < 1e-6
    for unit in units[:2]:
        known = [size for size, _ in costs.tables[unit.shape]]
        assert known == sorted(
            {0, unit.count, *(plan[units.index(unit) + 2 * i] for plan in plans for i in range(layers))}
        )
        expected = [true_cost(unit, size) for size in known]
        np.testing.assert_allclose(costs.times(unit, known), expected, rtol=1e-6, atol=1e-6)
    for plan, time in zip(plans, measured, strict=True):
        assert costs.total(units, plan) == pytest.approx(time)
    assert np.allclose(costs.graphs, np.stack([measured, measured], 1))


def test_sizes_between_measured_ones_are_interpolated():
    unit = block("feed_forward", 0, 100)
    costs = dataclasses.replace(some_costs(), tables={unit.shape: [(0, 0.0), (50, 4.0), (100, 6.0)]}, fixed_ms=1.0)
    assert costs.times(unit, [0, 25, 50, 75, 100]).tolist() == [0, 2, 4, 5, 6]
    assert costs.total([unit, unit], [25, 75]) == 8


def test_what_noise_turns_around_is_levelled():
    units = stack(2, heads=4, neurons=16)
    plans = [tuple(unit.count for unit in units), *_plans(units)]
    random = np.random.default_rng(0)
    blocks = np.array([[true_cost(unit, size) for unit, size in zip(units, plan, strict=True)] for plan in plans])
    blocks *= random.uniform(0.5, 1.5, blocks.shape)
    profiles = [
        profile_of(units, plan, times, excess=0.01, other=2, random=random)
        for plan, times in zip(plans, blocks, strict=True)
    ]
    measured = 2 + blocks.sum(1) * random.uniform(0.9, 1.1, len(plans))
    costs = _fit(units, plans, measured.tolist(), profiles, Load())
    for rows in costs.tables.values():
        assert rows[0] == (0, 0.0)
        assert all(later >= earlier for (_, earlier), (_, later) in itertools.pairwise(rows))
    assert costs.fixed_ms >= 0 and np.isfinite(costs.error)


# Files


def some_costs(load=None):
    """Of ``stack``."""
    units = stack(2)
    tables = {units[0].shape: [(0, 0.0), (6, 1.5), (12, 3.0)], units[1].shape: [(0, 0.0), (64, 2.0)]}
    return Costs((load or Load()).to_json(), {"cpu": "any"}, 1.0, 11.0, tables, 0.01, [(11.0, 11.0)])


def write(path, costs=None, **changes):
    """A file of costs; a change to None drops the key."""
    content = {**(costs or some_costs()).to_json(), **changes}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    return path


def refused(path, units=None, load=None):
    """What is said: one line of what is wrong, the file, one line of what to do."""
    with pytest.raises(UsageError) as caught:
        Costs.read(path, units or stack(2), load or Load())
    error = caught.value
    lines = str(error).splitlines()
    assert len(lines) == 3 and lines[1] == str(path) and error.todo
    return lines[0]


@pytest.mark.parametrize("load", [Load(), Load(batch=4, seq=64, precision="fp32")])
def test_what_was_written_is_read(tmp_path, load):
    path = write(tmp_path / "costs.json", some_costs(load))
    costs = Costs.read(path, stack(2), load)
    assert json.loads(json.dumps(costs.to_json())) == json.loads(path.read_text())
    assert costs.total(stack(2), [6, 32, 12, 64]) == 1 + 1.5 + 1 + 3 + 2


def test_a_load_of_a_file_is_known_by_its_name(tmp_path):
    load = Load(seq=None, lengths=tmp_path / "a" / "lengths.txt")
    path = write(tmp_path / "costs.json", some_costs(load))
    assert Costs.read(path, stack(2), dataclasses.replace(load, lengths=tmp_path / "b" / "lengths.txt"))
    assert "another load" in refused(path, load=Load())


@pytest.mark.parametrize("load", [Load(batch=2), Load(seq=127), Load(precision="fp32")])
def test_costs_of_another_load(tmp_path, load):
    assert "another load" in refused(write(tmp_path / "costs.json"), load=load)


@pytest.mark.parametrize("units", [stack(2, heads=8), stack(2, neurons=128)])
def test_costs_of_another_model(tmp_path, units):
    assert "another model" in refused(write(tmp_path / "costs.json"), units)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "[1]", "null", "3", '"text"', "{}", '{"kind": "compactor-costs"}', "\x00", "[" * 100_000],
)
def test_files_that_are_damaged(tmp_path, text):
    path = tmp_path / "costs.json"
    path.write_text(text)
    assert "no costs that compactor wrote" in refused(path)


def test_bytes_that_are_no_text(tmp_path):
    path = tmp_path / "costs.json"
    path.write_bytes(b"\xff\xfe{}")
    assert "no costs that compactor wrote" in refused(path)


SHAPE = stack(1)[0].shape


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "compactor-manifest"},
        {"kind": None},
        {"schema": 2},
        {"schema": None},
        *({key: None} for key in ("load", "machine", "fixed_ms", "dense_ms", "tables", "error", "graphs")),
        {"another": 1},
        {"load": []},
        {"load": 3},
        {"load": "int8"},
        {"machine": 3},
        {"fixed_ms": "1 ms"},
        {"fixed_ms": float("nan")},
        {"fixed_ms": -1.0},
        {"fixed_ms": 10**400},
        {"dense_ms": float("inf")},
        {"dense_ms": 0},
        {"error": "small"},
        {"error": float("nan")},
        {"graphs": 3},
        {"graphs": [[1]]},
        {"graphs": [["a", "b"]]},
        {"tables": []},
        {"tables": 3},
        {"tables": {SHAPE: []}},
        {"tables": {SHAPE: 3}},
        {"tables": {SHAPE: [[0, 0.0], [12]]}},
        {"tables": {SHAPE: [[0, 0.0], [12, float("nan")]]}},
        {"tables": {SHAPE: [[0, 0.0], [float("inf"), 1.0]]}},
        {"tables": {SHAPE: [[0, 0.0], [12, -1.0]]}},
        {"tables": {SHAPE: [[0, 0.0], [12, 3.0], [6, 2.0]]}},
        {"tables": {SHAPE: [[0, 0.0], [6, 2.0], [6, 3.0]]}},
        {"tables": {SHAPE: [[0, 0.0], [6, 2.0], [12, 1.0]]}},
        {"tables": {SHAPE: [[6, 2.0], [12, 3.0]]}},
    ],
    ids=lambda changes: str(changes)[:60],
)
def test_values_that_are_damaged(tmp_path, changes):
    assert "no costs that compactor wrote" in refused(write(tmp_path / "costs.json", **changes))


def test_files_that_cannot_be_read(tmp_path):
    assert "cannot be read" in refused(tmp_path / "absent.json")
    assert "cannot be read" in refused(tmp_path)


def test_words_of_a_load(tmp_path):
    assert Load().words == "1 x 128 tokens, int8"
    assert Load(8, None, tmp_path / "lengths.txt", "fp32").words == "8 x lengths of lengths.txt, fp32"
