from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compactor.runtime.bucketing import (
    Examples,
    by_length,
    collate,
    count_positions,
    in_order,
    padding_share,
    restore,
)

LENGTHS = st.lists(st.integers(0, 40), max_size=60)
BATCH = st.integers(1, 9)
BUDGET = st.none() | st.integers(1, 120)
PADDING = {"input_ids": 9, "attention_mask": 0}


def tokens(lengths):
    return [{"input_ids": np.arange(n) + 100 * i, "attention_mask": np.ones(n, int)} for i, n in enumerate(lengths)]


# Batches


@given(LENGTHS, BATCH, BUDGET, st.sampled_from([in_order, by_length]))
def test_every_example_is_in_one_batch_within_the_limits(lengths, batch, budget, make):
    batches = make(lengths, batch, max_positions=budget)

    assert sorted(np.concatenate([[], *batches])) == list(range(len(lengths)))
    for rows in batches:
        longest = max(lengths[row] for row in rows)
        assert 1 <= len(rows) <= batch
        assert budget is None or len(rows) == 1 or len(rows) * longest <= budget


@given(LENGTHS, BATCH, BUDGET)
def test_a_batch_is_cut_only_where_the_next_example_would_not_fit(lengths, batch, budget):
    for make in (in_order, by_length):
        batches = make(lengths, batch, max_positions=budget)
        for rows, following in itertools.pairwise(batches):
            grown = [*rows, following[0]]
            positions = len(grown) * max(lengths[row] for row in grown)
            assert len(grown) > batch or (budget is not None and positions > budget)


@given(LENGTHS, BATCH, BUDGET)
def test_in_order_keeps_the_order(lengths, batch, budget):
    assert np.concatenate([[], *in_order(lengths, batch, max_positions=budget)]).tolist() == list(range(len(lengths)))


@given(LENGTHS, BATCH, BUDGET)
def test_by_length_is_sorted_and_stable(lengths, batch, budget):
    order = np.concatenate([[], *by_length(lengths, batch, max_positions=budget)]).astype(int).tolist()
    assert order == sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))


@given(LENGTHS, BATCH)
def test_by_length_never_pads_more_where_all_batches_are_full(lengths, batch):
    lengths = lengths[: len(lengths) // batch * batch]
    together, apart = by_length(lengths, batch), in_order(lengths, batch)
    assert count_positions(lengths, together) <= count_positions(lengths, apart)
    assert 0 <= padding_share(lengths, together) <= padding_share(lengths, apart) <= 1


@given(LENGTHS, BATCH, BUDGET)
def test_restore_puts_results_back(lengths, batch, budget):
    batches = by_length(lengths, batch, max_positions=budget)
    results = [[f"result {row}" for row in rows] for rows in batches]
    assert restore(batches, results) == [f"result {row}" for row in range(len(lengths))]


def test_restore_refuses_a_missing_result():
    with pytest.raises(ValueError, match="shorter"):
        restore([np.array([0, 1])], [["only one"]])
    with pytest.raises(ValueError, match="shorter"):
        restore([np.array([0]), np.array([1])], [["only one"]])


def test_an_example_beyond_the_budget_has_a_batch_of_its_own():
    assert [rows.tolist() for rows in in_order([3, 50, 3, 3], 8, max_positions=10)] == [[0], [1], [2, 3]]


def test_padding_is_counted():
    lengths = [1, 9, 1, 9]
    apart, together = in_order(lengths, 2), by_length(lengths, 2)
    assert [rows.tolist() for rows in together] == [[1, 3], [0, 2]]
    assert (count_positions(lengths, apart), count_positions(lengths, together)) == (36, 20)
    assert padding_share(lengths, apart) == pytest.approx(16 / 36)
    assert padding_share(lengths, together) == 0
    assert padding_share([], []) == 0


@pytest.mark.parametrize(
    ("lengths", "batch", "budget"), [([1], 0, None), ([1], 1, 0), ([-1], 1, None), ([[1]], 1, None)]
)
def test_numbers_out_of_range_are_refused(lengths, batch, budget):
    for make in (in_order, by_length):
        with pytest.raises(ValueError, match="expected"):
            make(lengths, batch, max_positions=budget)


# Examples


def test_collate_pads_on_the_right_and_stacks_the_rest():
    examples = [example | {"pixels": np.full((2, 2), i)} for i, example in enumerate(tokens([1, 3]))]
    batch = collate(examples, PADDING)
    assert batch["input_ids"].tolist() == [[0, 9, 9], [100, 101, 102]]
    assert batch["attention_mask"].tolist() == [[1, 0, 0], [1, 1, 1]]
    assert batch["pixels"].shape == (2, 2, 2)
    assert batch["pixels"][1].tolist() == [[1, 1], [1, 1]]


@pytest.mark.parametrize(
    "examples",
    [
        [],
        [{"input_ids": np.ones(2)}, {"attention_mask": np.ones(2)}],
        [{"input_ids": np.ones(2), "attention_mask": np.ones(3)}],
        [{"input_ids": np.ones((2, 2))}],
    ],
)
def test_collate_refuses_what_does_not_fit_together(examples):
    with pytest.raises(ValueError, match="expected"):
        collate(examples, PADDING)


@given(st.lists(st.integers(0, 12), min_size=1, max_size=20), BATCH)
def test_joined_examples_survive_the_file_and_give_the_same_batches(tmp_path_factory, lengths, batch):
    examples = tokens(lengths)
    path = tmp_path_factory.mktemp("examples") / "queries.npz"
    Examples.join(examples, PADDING).save(path)
    loaded = Examples.load(path)

    assert len(loaded) == len(lengths)
    assert loaded.lengths.tolist() == lengths
    for rows in by_length(lengths, batch):
        expected = collate([examples[row] for row in rows], PADDING)
        for name, array in loaded.batch(rows).items():
            np.testing.assert_array_equal(array, expected[name])


def test_images_have_no_lengths(tmp_path):
    images = [{"pixel_values": np.full((1, 2, 2), i, np.float32)} for i in range(3)]
    Examples.join(images, PADDING).save(tmp_path / "images.npz")
    loaded = Examples.load(tmp_path / "images.npz")
    assert loaded.lengths.tolist() == [0, 0, 0]
    assert loaded.batch([2, 0])["pixel_values"][:, 0, 0, 0].tolist() == [2, 0]


def test_join_refuses_inputs_of_different_length_and_an_index_beyond_the_end():
    with pytest.raises(ValueError, match="equally long"):
        Examples.join([{"input_ids": [1, 2], "attention_mask": [1]}], PADDING)
    with pytest.raises(ValueError, match="at least one"):
        Examples.join([], PADDING)
    with pytest.raises(IndexError):
        Examples.join(tokens([2]), PADDING)[1]
