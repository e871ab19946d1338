from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compactor.errors import MeasurementError
from compactor.evaluation.answers import best_span, predict, read_outputs
from compactor.evaluation.inputs import InputSpec
from compactor.evaluation.texts import Context, Labelled, Words
from compactor.runtime.bucketing import Examples
from tests.compactor.evaluation import summarizers

FILL = {"input_ids": 0}


def examples(*lengths):
    return Examples.join([{"input_ids": np.ones(length, np.int64)} for length in lengths], FILL)


def spec(task, labels=2):
    return InputSpec(vocabulary=9, task=task, label_count=labels)


# Labels


def test_the_label_of_a_text_is_the_largest_logit():
    labelled = Labelled(examples(3, 3, 3), [0, 1, 1])
    outputs = [{"logits": np.array([[2.0, 1.0], [-5.0, -1.0]])}, {"logits": np.array([[0.0, 0.1]])}]
    assert predict(spec("text-classification"), labelled, outputs) == [0, 1, 1]


def test_the_only_output_is_the_logits_whatever_its_name():
    labelled = Labelled(examples(3), [0])
    assert predict(spec("text-classification"), labelled, [{"output_0": np.array([[0.0, 1.0]])}]) == [1]


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ([{"logits": np.zeros((1, 3))}], "the last of 2 labels, got shape"),
        ([{"logits": np.zeros((1, 4, 2))}], "expected 'logits' with 2 axes"),
        ([{"a": np.zeros((1, 2)), "b": np.zeros((1, 2))}], "no output 'logits' among a, b"),
        ([{"logits": np.array([[np.nan, 0]])}], "not finite"),
        ([{"logits": np.array([[np.inf, 0]])}], "not finite"),
        ([], "expected outputs of 1 examples, got 0"),
        ([{"logits": np.zeros((2, 2))}], "expected outputs of 1 examples, got 2"),
    ],
)
def test_outputs_that_answer_nothing_are_refused(outputs, message):
    with pytest.raises(MeasurementError, match=message):
        predict(spec("text-classification"), Labelled(examples(3), [0]), outputs)


def test_the_tags_of_words_are_read_at_their_first_tokens():
    logits = np.full((2, 4, 3), np.nan)  # what is no word's first token may hold anything
    logits[0, 1], logits[0, 3], logits[1, 1] = [0, 2, 1], [0, 1, 2], [3, 2, 1]
    guides = [Words(np.array([1, 3])), Words(np.array([1]))]
    labelled = Labelled(examples(4, 3), [np.array([1, 1]), np.array([0])], guides)
    found = predict(spec("token-classification", 3), labelled, [{"logits": logits}])
    assert [tags.tolist() for tags in found] == [[1, 2], [0]]


def test_outputs_are_read_from_files_in_order(tmp_path):
    files = [tmp_path / f"{i}.npz" for i in range(2)]
    for i, file in enumerate(files):
        np.savez(file, logits=np.full((1, 2), i))
    assert [batch["logits"][0, 0] for batch in read_outputs(files)] == [0, 1]


# Answers to questions

TEXT = "It was a good film"
SPANS = np.array([[-1, -1], [-1, -1], [-1, -1], [0, 2], [3, 6], [7, 8], [9, 13], [14, 18], [-1, -1]], np.int32)


def questions(*references):
    return Labelled(examples(*[9] * len(references)), references, [Context(TEXT, SPANS)] * len(references))


def logits(peak, *, width=9, others=-3.0):
    """(1, width): ``others``, but for the positions in ``peak``."""
    values = np.full((1, width), others)
    for position, value in peak.items():
        values[0, position] = value
    return values


def answer(start, end, *references):
    (found,) = predict(spec("question-answering"), questions(*references), [{"start_logits": start, "end_logits": end}])
    return found


def test_the_answer_is_the_best_span_of_the_context():
    assert answer(logits({6: 5.0}), logits({7: 5.0}), ("good film",)) == "good film"


def test_an_answer_does_not_end_before_it_begins():
    assert answer(logits({7: 5.0, 4: 3.0}), logits({4: 5.0}), ("x",)) == "was"  # 3 + 5; not from 7 back to 4


def test_the_question_is_no_answer_however_high_its_logits():
    assert answer(logits({1: 50.0, 6: 5.0}), logits({2: 50.0, 6: 5.0}), ("good",)) == "good"


def test_padding_is_not_looked_at():
    start, end = logits({6: 5.0, 11: 50.0}, width=12), logits({6: 5.0, 11: np.nan}, width=12)
    assert answer(start, end, ("good",)) == "good"


def test_no_answer_is_given_only_where_the_data_knows_of_it():
    start, end = logits({0: 6.0, 6: 5.0}), logits({0: 6.0, 6: 5.0})
    assert answer(start, end, ("good",)) == "good"
    assert answer(start, end, ()) == ""
    assert answer(logits({0: 4.0, 6: 5.0}), logits({0: 4.0, 6: 5.0}), ()) == "good"


def test_a_context_that_was_cut_off_has_no_answer():
    guide = Context(TEXT, np.full((9, 2), -1, np.int32))
    labelled = Labelled(examples(9), [("good",)], [guide])
    outputs = [{"start_logits": logits({6: 5.0}), "end_logits": logits({6: 5.0})}]
    assert predict(spec("question-answering"), labelled, outputs) == [""]


@pytest.mark.parametrize(("tokens", "last"), [(30, 29), (31, 0)])
def test_an_answer_has_thirty_tokens_at_most(tokens, last):
    start, end = np.zeros(40), np.zeros(40)
    start[0] = end[tokens - 1] = 5.0
    end[0] = 1.0
    assert best_span(start, end, np.ones(40, bool)) == (start[0] + end[last], 0, last)


def test_outputs_that_are_not_finite_answer_nothing():
    with pytest.raises(MeasurementError, match="not finite"):
        answer(logits({6: np.nan}), logits({6: 5.0}), ("good",))


@given(
    st.integers(1, 14).flatmap(
        lambda n: st.tuples(
            st.lists(st.integers(-9, 9), min_size=n, max_size=n),
            st.lists(st.integers(-9, 9), min_size=n, max_size=n),
            st.lists(st.booleans(), min_size=n, max_size=n),
        )
    ),
    st.integers(1, 6),
)
def test_the_best_span_is_the_best_of_all(values, longest):
    start, end, inside = (np.array(each) for each in values)
    pairs = [
        (start[i] + end[j], i, j)
        for i in range(len(start))
        for j in range(i, min(len(start), i + longest))
        if inside[i] and inside[j]
    ]
    found = best_span(start, end, inside, longest=longest)
    if not pairs:
        assert found is None
    else:
        assert found is not None
        assert found[0] == max(pairs)[0]
        assert found in pairs


# Texts


def test_written_tokens_become_text_without_what_is_special(tmp_path):
    task = InputSpec(summarizers.VOCABULARY, task="text2text-generation", folder=summarizers.save_tokenizer(tmp_path))
    labelled = Labelled(examples(3, 3), [("good film",), ("film",)])
    good, film = (4 + summarizers.WORDS.index(word) for word in ("good", "film"))
    batch = {"sequences": np.array([[2, 0, good, film, 2], [2, film, 2, 1, 1]])}
    assert predict(task, labelled, [batch]) == ["good film", "film"]
    with pytest.raises(MeasurementError, match="there is no output 'sequences' among logits"):
        predict(task, labelled, [{"logits": np.zeros((2, 3))}])
