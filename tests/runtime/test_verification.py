from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compactor.runtime import verification
from compactor.runtime.sessions import open_session
from compactor.runtime.verification import (
    Case,
    Comparison,
    Tolerance,
    check,
    compare,
    image_cases,
    run_case,
    run_cases,
    text_cases,
)
from tests.runtime.graphs import VOCAB, embedding, save

TEXT = ("input_ids", "attention_mask", "token_type_ids")
STRICT = Tolerance(atol=1e-6, rtol=1e-6)


def cases(**changes):
    return text_cases(**{"input_names": TEXT, "vocab_size": 50, "max_length": 512, "type_vocab_size": 2} | changes)


def padded(kind):
    return [case for case in cases() if case.name.startswith(kind)]


# Inputs


def test_covers_each_padding_at_each_length_and_one_sentence_alone():
    names = [case.name for case in cases()]
    assert names == [
        "unpadded-1x7",
        *[f"{kind}-padded-4x{length}" for length in (7, 32, 128) for kind in ("right", "left", "holes")],
    ]


@pytest.mark.parametrize(("max_length", "lengths"), [(512, {7, 32, 128}), (64, {7, 32, 64}), (9, {7, 9}), (3, {3})])
def test_cuts_lengths_to_what_the_model_takes(max_length, lengths):
    assert {case.valid.shape[1] for case in cases(max_length=max_length)} == lengths


@pytest.mark.parametrize("length", [1, 2, 3, 4, 7, 128])
@pytest.mark.parametrize("batch", [1, 2, 4, 9])
def test_rows_hold_between_one_and_all_tokens_as_different_as_possible(length, batch):
    for case in cases(lengths=(length,), batch=batch)[1:]:
        counts = case.valid.sum(1)
        assert case.valid.shape == (batch, length)
        assert counts.min() >= 1 and counts.max() == length
        assert len(set(counts.tolist())) == min(batch, length)


def test_right_padding_hides_the_end():
    for case in padded("right"):
        assert (np.diff(case.valid.astype(int), axis=1) <= 0).all() and not case.valid.all()


def test_left_padding_hides_the_start():
    for case in padded("left"):
        assert (np.diff(case.valid.astype(int), axis=1) >= 0).all() and not case.valid[:, 0].all()


def test_holes_lie_between_real_tokens_and_leave_the_first_position():
    for case in padded("holes"):
        assert case.valid[:, 0].all()
        partly = case.valid[(case.valid.sum(1) > 1) & ~case.valid.all(1)]
        assert len(partly) >= 2 and partly[:, -1].all()


@pytest.mark.parametrize("pad", [0, 1, 49])
def test_only_padded_positions_hold_the_padding_token(pad):
    for case in cases(pad_token_id=pad):
        ids = case.feeds["input_ids"]
        np.testing.assert_array_equal(ids == pad, ~case.valid)
        assert ids.min() >= 0 and ids.max() < 50


def test_the_last_real_token_ends_a_text():
    for case in cases(pad_token_id=1, end_token_id=49):
        for ids, real in zip(case.feeds["input_ids"], case.valid, strict=True):
            assert ids[real][-1] == 49
            assert (ids[~real] == 1).all()


def test_every_other_token_is_drawn():
    drawn = np.concatenate([case.feeds["input_ids"].ravel() for case in cases(pad_token_id=7)])
    assert set(drawn.tolist()) == set(range(50))


def test_feeds_are_what_the_graph_takes():
    for case in cases():
        assert tuple(case.feeds) == TEXT
        assert all(feed.dtype == np.int64 and feed.shape == case.valid.shape for feed in case.feeds.values())
        np.testing.assert_array_equal(case.feeds["attention_mask"], case.valid)
        assert set(np.unique(case.feeds["token_type_ids"][~case.valid])) <= {0}
    assert {0, 1} == set(np.unique(cases()[-1].feeds["token_type_ids"]))
    assert tuple(cases(input_names=("attention_mask", "input_ids"))[0].feeds) == ("input_ids", "attention_mask")


def test_without_a_mask_input_nothing_is_padded():
    made = cases(input_names=("input_ids",))
    assert [case.name for case in made] == [f"unpadded-{rows}x{size}" for size in (7, 32, 128) for rows in (1, 4)]
    assert all(case.valid.all() for case in made)


def test_same_seed_same_cases():
    first, again, other = cases(seed=3)[-1], cases(seed=3)[-1], cases(seed=4)[-1]
    np.testing.assert_array_equal(first.feeds["input_ids"], again.feeds["input_ids"])
    assert (first.feeds["input_ids"] != other.feeds["input_ids"]).any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input_names": ("input_ids", "position_ids")}, "position_ids"),
        ({"input_names": ("attention_mask",)}, "expected text inputs"),
        ({"pad_token_id": 50}, "pad_token_id 50"),
        ({"pad_token_id": -1}, "pad_token_id -1"),
        ({"vocab_size": 1}, "vocabulary of two"),
        ({"max_length": 0}, "at least 1"),
        ({"lengths": (0,)}, "at least 1"),
        ({"batch": 0}, "at least 1"),
    ],
)
def test_refuses_inputs_it_cannot_make(changes, message):
    with pytest.raises(ValueError, match=message):
        cases(**changes)


def test_image_cases_have_the_shape_asked_for():
    made = image_cases("pixel_values", channels=3, height=8, width=10, batch_sizes=(1, 2))
    assert [case.feeds["pixel_values"].shape for case in made] == [(1, 3, 8, 10), (2, 3, 8, 10)]
    assert all(case.feeds["pixel_values"].dtype == np.float32 and case.valid is None for case in made)


# Running


def graph_cases():
    return text_cases(("input_ids", "attention_mask"), vocab_size=VOCAB, max_length=12)


def test_runs_a_file_and_an_open_session_alike(tmp_path):
    path = save(embedding(), tmp_path / "model.onnx")
    from_file = run_cases(path, graph_cases())
    from_session = run_cases(open_session(path, optimize=False), graph_cases())
    for case, reference, candidate in zip(graph_cases(), from_file, from_session, strict=True):
        assert reference.keys() == {"last_hidden_state"}
        assert not check(compare(case, reference, candidate), STRICT)


def test_refuses_a_graph_with_other_inputs():
    session = open_session(embedding(inputs=("input_ids", "attention_mask", "extra")).SerializeToString())
    with pytest.raises(ValueError, match=r"case unpadded-1x7 feeds .* but the graph has inputs .*'extra'"):
        run_case(session, graph_cases()[0])


def test_a_graph_with_other_weights_fails_the_check(tmp_path):
    first = open_session(embedding().SerializeToString())
    second = open_session(embedding(scale=1.001).SerializeToString())
    for case in graph_cases():
        assert check(compare(case, run_case(first, case), run_case(second, case)), STRICT)


# Comparing


@pytest.fixture
def case():
    valid = np.array([[True, True, False], [True, False, False]])
    return Case("right-padded-2x3", {}, valid)


def one(case, reference, candidate, name="logits"):
    (comparison,) = compare(case, {name: np.asarray(reference)}, {name: np.asarray(candidate)})
    return comparison


def test_measures_absolute_relative_and_argmax(case):
    comparison = one(case, [[1.0, -4.0], [2.0, 1.0]], [[1.0, -4.0], [1.0, 1.5]])
    assert comparison == Comparison(case.name, "logits", 1.0, 0.25, 0.5, 4.0)


def test_identical_outputs_agree_exactly(case):
    output = np.random.default_rng(0).standard_normal((2, 3, 5))
    comparison = one(case, output, output.copy())
    assert (comparison.max_abs_diff, comparison.max_rel_diff, comparison.argmax_agreement) == (0.0, 0.0, 1.0)
    assert not comparison.exceeds(Tolerance(0.0, 0.0))


@pytest.mark.parametrize("shape", [(2, 3, 4), (2, 3, 2, 2)])
def test_only_real_positions_of_token_outputs_count(case, shape):
    reference = np.random.default_rng(0).standard_normal(shape)
    candidate = reference.copy()
    candidate[~case.valid] = np.nan
    assert one(case, reference, candidate).max_abs_diff == 0
    candidate[1, 0] += 1
    assert one(case, reference, candidate).max_abs_diff == pytest.approx(1)


def test_only_real_positions_of_start_and_end_logits_count(case):
    reference = [[1.0, 2.0, 9.0], [1.0, 9.0, 9.0]]
    candidate = [[1.0, 2.0, -9.0], [1.0, -9.0, math.nan]]
    for name in ("start_logits", "end_logits"):
        comparison = one(case, reference, candidate, name)
        assert (comparison.max_abs_diff, comparison.argmax_agreement, comparison.max_reference) == (0.0, 1.0, 2.0)


def test_as_many_labels_as_positions_are_not_taken_for_positions(case):
    reference = np.zeros((2, 3))
    candidate = reference.copy()
    candidate[1, 2] = 5.0  # padded, were this a logit for each position
    assert one(case, reference, candidate, "logits").max_abs_diff == 5.0


@pytest.mark.parametrize(("shape", "name"), [((2, 5, 4), "attentions"), ((2, 5), "start_logits"), ((4, 3, 2), "image")])
def test_outputs_of_another_shape_than_the_tokens_count_in_full(case, shape, name):
    for index in np.ndindex(*shape):
        candidate = np.zeros(shape)
        candidate[index] = 1.0
        assert one(case, np.zeros(shape), candidate, name).max_abs_diff == 1.0


def test_other_position_outputs_can_be_named(case):
    reference, candidate = {"spans": np.zeros((2, 3))}, {"spans": np.where(case.valid, 0.0, 1.0)}
    assert compare(case, reference, candidate)[0].max_abs_diff == 1.0
    assert compare(case, reference, candidate, position_outputs=("spans",))[0].max_abs_diff == 0.0


def test_argmax_of_position_logits_is_over_real_positions(case):
    comparison = one(case, [[3.0, 2.0, 9.0], [1.0, 0.0, 0.0]], [[2.0, 3.0, 9.0], [1.0, 0.0, 0.0]], "start_logits")
    assert comparison.argmax_agreement == 0.5


def test_either_of_two_equal_maxima_is_the_argmax(case):
    assert one(case, [[1.0, 1.0]], [[0.9, 1.1]]).argmax_agreement == 1.0


@pytest.mark.parametrize(
    ("reference", "candidate", "difference"),
    [
        pytest.param([1.0, math.nan], [1.0, 2.0], math.inf, id="nan-in-reference"),
        pytest.param([1.0, 2.0], [1.0, math.nan], math.inf, id="nan-in-candidate"),
        pytest.param([1.0, math.nan], [1.0, math.nan], math.inf, id="nan-in-both"),
        pytest.param([1.0, math.inf], [1.0, 2.0], math.inf, id="infinity-in-one"),
        pytest.param([1.0, math.inf], [1.0, -math.inf], math.inf, id="opposite-infinities"),
        pytest.param([1.0, -math.inf], [1.5, -math.inf], 0.5, id="equal-infinities"),
    ],
)
def test_values_that_are_not_finite(case, reference, candidate, difference):
    comparison = one(case, [reference], [candidate])
    assert comparison.max_abs_diff == difference
    assert comparison.exceeds(Tolerance(atol=1e300, rtol=0.9)) is math.isinf(difference)
    json.dumps(comparison.to_json(), allow_nan=False)


@pytest.mark.parametrize("shape", [(2, 4), (3, 3), (2, 3, 1)])
def test_another_shape_agrees_with_nothing(case, shape):
    comparison = one(case, np.zeros((2, 3)), np.zeros(shape))
    assert comparison.max_abs_diff == math.inf and comparison.exceeds(Tolerance(1e300, 0.9))


def test_an_empty_output_agrees_with_nothing(case):
    assert one(case, np.zeros((2, 0)), np.zeros((2, 0))).exceeds(Tolerance(1e300, 0.9))


@pytest.mark.parametrize("candidate", [{}, {"other": np.zeros(1)}, {"logits": np.zeros(1), "other": np.zeros(1)}])
def test_refuses_other_outputs(case, candidate):
    with pytest.raises(ValueError, match="expected outputs"):
        compare(case, {"logits": np.zeros(1)}, candidate)


def test_refuses_to_compare_nothing(case):
    with pytest.raises(ValueError, match="expected outputs"):
        compare(case, {}, {})
    with pytest.raises(ValueError, match="nothing was compared"):
        check([], STRICT)


def test_wrong_numbers_are_relative_to_an_all_zero_reference(case):
    assert one(case, [[0.0]], [[1e-9]]).max_rel_diff == math.inf


def test_images_have_no_padding():
    comparison = one(Case("image", {}, None), [[1.0, 2.0]], [[1.0, 2.5]])
    assert comparison.max_abs_diff == 0.5


def test_half_precision_is_compared_in_double(case):
    comparison = one(case, np.array([[60000.0]], np.float16), np.array([[-60000.0]], np.float16))
    assert comparison.max_abs_diff == pytest.approx(120000, rel=1e-3)


def test_large_outputs_are_compared_in_pieces(case, monkeypatch):
    reference = np.random.default_rng(0).standard_normal((2, 3, 4))
    candidate = reference + np.random.default_rng(1).standard_normal((2, 3, 4))
    whole = one(case, reference, candidate)
    monkeypatch.setattr(verification, "_CHUNK_VALUES", 1)
    assert one(case, reference, candidate) == whole


@given(st.integers(0, 10**6), st.sampled_from([(3, 5, 4), (3, 5), (3, 7)]), st.floats(1e-3, 1e6))
def test_no_wrong_number_at_a_real_position_gets_through(seed, shape, error):
    random = np.random.default_rng(seed)
    name = "start_logits" if shape == (3, 5) else "logits"
    valid = random.random((3, 5)) < 0.7
    valid[:, 0] = True
    reference = random.standard_normal(shape)
    counted = np.zeros(shape, bool)
    counted[valid if shape[1] == 5 else slice(None)] = True

    at = tuple(random.choice(np.argwhere(counted)))
    candidate = np.where(counted, reference, random.standard_normal(shape) * 100)
    good = one(Case("random", {}, valid), reference, candidate, name)
    candidate[at] += error
    wrong = one(Case("random", {}, valid), reference, candidate, name)

    assert not check([good], Tolerance(0.0, 0.0))
    assert check([good, wrong, good], Tolerance(1e-4, 1e-4)) == [wrong]
    assert wrong.max_abs_diff == pytest.approx(error)


# Tolerances


@pytest.mark.parametrize("factor", [0.5, 2.0, 100.0])
def test_a_multiple_of_the_reference_fails(case, factor):
    reference = np.random.default_rng(0).standard_normal((2, 8))
    assert check([one(case, reference, factor * reference)], Tolerance(atol=1e-3, rtol=1e-3))


def test_the_tolerance_grows_with_the_reference(case):
    comparison = one(case, [[100.0, 0.0]], [[100.0, 0.5]])
    assert comparison.exceeds(Tolerance(atol=0.0, rtol=0.004)) and not comparison.exceeds(Tolerance(0.0, 0.006))
    assert comparison.exceeds(Tolerance(atol=0.4, rtol=0.0)) and not comparison.exceeds(Tolerance(0.6, 0.0))


@pytest.mark.parametrize(("atol", "rtol"), [(-1.0, 0.0), (math.inf, 0.0), (math.nan, 0.0), (0.0, math.nan), (0.0, 1.0)])
def test_refuses_tolerances_that_allow_anything(atol, rtol):
    with pytest.raises(ValueError, match="expected"):
        Tolerance(atol, rtol)


def test_tolerances_have_no_default():
    assert all(field.default is dataclasses.MISSING for field in dataclasses.fields(Tolerance))


def test_reports_as_json_and_as_a_line(case):
    comparison = one(case, [[1.0, -4.0], [2.0, 1.0]], [[1.0, -4.0], [1.0, 1.5]])
    assert json.loads(json.dumps(comparison.to_json())) == {
        "case": "right-padded-2x3",
        "output": "logits",
        "max_abs_diff": 1.0,
        "max_rel_diff": 0.25,
        "argmax_agreement": 0.5,
    }
    assert str(comparison) == "'logits' of case right-padded-2x3 differs by 1 (relative 0.25, same argmax for 50.00%)"
    assert Tolerance(1e-3, 1e-4).to_json() == {"atol": 1e-3, "rtol": 1e-4}
