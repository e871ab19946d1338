from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compactor.errors import MeasurementError, ModelDirectoryError, UsageError
from compactor.trainer.tasks import open_task
from compactor.trainer.tasks.questions import Window
from tests.compactor.trainer.task_fakes import bart_like, bert_ids, bert_like, evaluate, roberta_like, table

# With "what ?" in front, a window of 11 tokens has room for 6 words; it shares 2 with the next: w0-w5, w4-w9, w8-w11.
LONG = " ".join(f"w{i}" for i in range(12))
SHORT = "The film is  Good."


def ask(context, *answers, question="what ?", **more):
    found = {"text": list(answers), "answer_start": [context.index(answer) for answer in answers]}
    return {"question": question, "context": context, "answers": found, **more}


def open_questions(rows, train=None, *, tokenizer=None, max_length=11, stride=2, **options):
    return open_task(
        "question-answering",
        table(*(rows if train is None else train), name="train.jsonl"),
        table(*rows),
        tokenizer or bert_like(),
        labels=None,
        max_length=max_length,
        stride=stride,
        **options,
    )


def positions(features):
    return [(feature["start_positions"], feature["end_positions"]) for feature in features]


def logits(data, **values):
    """Start and end logits of all windows: ``s1_4=5.0`` is the start logit of token 4 in window 1."""
    width = max(len(window.spans) for window in data.windows)
    both = {"s": np.zeros((len(data.windows), width)), "e": np.zeros((len(data.windows), width))}
    for name, value in values.items():
        window, token = name[1:].split("_")
        both[name[0]][int(window), int(token)] = value
    return both["s"], both["e"]


# Windows


def test_a_long_context_becomes_windows_that_overlap():
    data = open_questions([ask(LONG, "w0"), ask(SHORT, "film")])
    words = [[LONG[start:end] for start, end in window.spans if start >= 0] for window in data.windows[:3]]
    assert words == [[f"w{i}" for i in span] for span in (range(6), range(4, 10), range(8, 12))]
    assert [window.question for window in data.windows] == [0, 0, 0, 1]
    assert data.evaluation[3]["input_ids"] == bert_ids("[CLS] what ? [SEP] the film is good . [SEP]")
    assert data.evaluation[3]["token_type_ids"] == [0] * 4 + [1] * 6
    assert "2 training questions have 4 windows of up to 11 tokens." in data.notes
    assert "2 evaluation questions have 4 windows of up to 11 tokens." in data.notes


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("w1", [(5, 5), (0, 0), (0, 0)]),
        ("w2 w3 w4", [(6, 8), (0, 0), (0, 0)]),
        ("w4 w5", [(8, 9), (4, 5), (0, 0)]),  # in the overlap: both windows hold it
        ("w5 w6", [(0, 0), (5, 6), (0, 0)]),  # the first window's border cuts it
        ("w3 w4 w5 w6", [(0, 0), (0, 0), (0, 0)]),  # every border cuts it
        ("w11", [(0, 0), (0, 0), (7, 7)]),
    ],
)
def test_a_window_that_does_not_hold_the_whole_answer_points_to_the_first_token(answer, expected):
    data = open_questions([ask(LONG, answer), ask(SHORT, "film")])
    assert positions(data.train)[:3] == expected
    lost = [note for note in data.notes if "that no window holds in full" in note]
    assert len(lost) == (2 if answer == "w3 w4 w5 w6" else 0)


def test_the_first_answer_is_learned_and_all_are_accepted():
    data = open_questions([ask(SHORT, "Good", "is  Good"), ask(SHORT, "film")])
    assert positions(data.train)[0] == (7, 7)
    assert data.references == (("Good", "is  Good"), ("film",))


def test_the_other_form_of_squad():
    answers = [{"text": "film", "answer_start": 4}, {"text": "Good", "answer_start": 13}]
    data = open_questions([{"question": "what ?", "context": SHORT, "answers": answers}] * 2)
    assert positions(data.train) == [(5, 5)] * 2
    assert data.references[0] == ("film", "Good")


@pytest.mark.parametrize(
    "none",
    [
        {"answers": {"text": [], "answer_start": []}},
        {"answers": []},
        {"answers": {"text": [""], "answer_start": [0]}},
        {"answers": [{"text": "film", "answer_start": 4}], "is_impossible": True},
    ],
)
def test_a_question_without_an_answer_points_to_the_first_token(none):
    data = open_questions([{"question": "what ?", "context": SHORT, **none}, ask(SHORT, "film")])
    assert positions(data.train) == [(0, 0), (5, 5)]
    assert data.references == ((), ("film",))
    assert data.notes == ("1 of 2 evaluation questions have no answer.",)


def test_an_evaluation_answer_without_a_place_is_looked_for():
    rows = [{"question": "what ?", "context": SHORT, "answers": {"text": [text]}} for text in ("Good", "excellent")]
    data = open_questions(rows, [ask(SHORT, "film")])
    assert positions(data.evaluation) == [(7, 7), (0, 0)]
    assert data.references == (("Good",), ("excellent",))


def test_spaces_around_an_answer_do_not_matter():
    context = " film is \n\t it "
    data = open_questions([ask(context, " is \n"), ask(context, "\t it "), ask(context, " film")])
    assert positions(data.train) == [(5, 5), (6, 6), (4, 4)]


def test_a_word_that_only_touches_the_answer_is_not_of_it():
    data = open_questions([ask(SHORT, "."), ask(SHORT, "Good")])
    assert positions(data.train) == [(8, 8), (7, 7)]


def test_more_questions_than_are_tokenized_at_a_time_stay_in_order():
    rows = [ask(f"w{i} {SHORT}", f"w{i}", question="what " * (1 + i % 2)) for i in range(403)]
    data = open_questions(rows)
    assert [window.question for window in data.windows] == list(range(403))
    assert positions(data.train) == [(3 + i % 2, 3 + i % 2) for i in range(403)]
    first = np.zeros((403, 11))
    first[np.arange(403), [start for start, _ in positions(data.train)]] = 1.0
    assert data.read((first, first)) == [f"w{i}" for i in range(403)]


def test_a_long_question_leaves_room_for_the_context():
    # 11 tokens, 3 of them special, 2 shared: the question may have 3.
    data = open_questions([ask(LONG, "w11", question=" what " * 50), ask(SHORT, "film")])
    assert data.evaluation[0]["input_ids"][:5] == bert_ids("[CLS] what what what [SEP]")
    assert all((window.spans[:, 0] >= 0).sum() <= 5 for window in data.windows)
    assert "1 of 2 evaluation questions were cut to 3 tokens." in data.notes
    seen = {int(start) for window in data.windows if window.question == 0 for start, _ in window.spans if start >= 0}
    assert seen == {LONG.index(f"w{i}") for i in range(12)}


def test_an_empty_context_has_no_answer():
    empty = {"question": "what ?", "context": "", "answers": []}
    data = open_questions([empty, ask(SHORT, "film")])
    assert positions(data.train)[0] == (0, 0)
    assert data.read(logits(data, s1_5=1.0, e1_5=1.0)) == ["", "film"]


# Reading the answers


def test_the_best_span_over_all_windows_wins():
    data = open_questions([ask(LONG, "w0"), ask(SHORT, "film")])
    found = logits(data, s0_4=3.0, e0_4=3.0, s1_6=4.0, e1_7=4.0, s2_5=1.0, e2_5=9.0, s3_7=1.0, e3_7=1.0)
    assert data.read(found) == ["w9", "Good"]  # 1 + 9 beats 4 + 4 beats 3 + 3
    found = logits(data, s0_4=3.0, e0_4=3.0, s1_6=4.0, e1_7=4.0, s2_5=1.0, e2_5=6.0, s3_7=1.0, e3_8=1.0)
    assert data.read(found) == ["w6 w7", "Good."]


def test_a_start_and_an_end_in_different_windows_are_no_answer():
    data = open_questions([ask(LONG, "w0"), ask(SHORT, "film")])
    found = logits(data, s0_9=9.0, e1_6=9.0, s1_5=5.0, s0_4=1.0)  # w5 starts in the first, w6 ends in the second
    assert data.read(found)[0] == "w5 w6"  # 5 + 9 in the second window: more than 9 + 0 in the first


def test_the_same_words_in_two_windows_are_judged_by_the_better_one():
    data = open_questions([ask(LONG, "w0"), ask(SHORT, "film")])
    assert data.read(logits(data, s0_8=1.0, e0_8=1.0, s1_4=2.0, e1_5=2.0))[0] == "w4 w5"


def test_the_first_window_wins_a_tie():
    data = open_questions([ask(LONG, "w0"), ask(SHORT, "film")])
    assert data.read(logits(data, s0_5=2.0, e0_5=2.0, s1_7=2.0, e1_7=2.0))[0] == "w1"


def test_an_answer_does_not_end_before_it_begins():
    data = open_questions([ask(LONG, "w0"), ask(SHORT, "film")])
    assert data.read(logits(data, s0_8=5.0, e0_5=5.0, s0_4=2.0))[0] == "w0 w1"  # 2 + 5; 5 + 5 runs backwards


def test_question_and_special_tokens_are_no_answer():
    data = open_questions([ask(LONG, "w0"), ask(SHORT, "film")])
    assert data.read(logits(data, s0_1=9.0, e0_2=9.0, s0_10=9.0, e0_10=9.0, s1_5=1.0, e1_5=1.0))[0] == "w5"


def test_the_space_in_front_of_a_token_is_not_part_of_the_answer():
    data = open_questions([ask(SHORT, "film")] * 2)
    spans = data.windows[0].spans.copy()
    spans[5] = (3, 8)  # " film", as some tokenizers have it
    data = dataclasses.replace(data, windows=(Window(0, spans), data.windows[1]))
    assert data.read(logits(data, s0_5=1.0, e0_5=1.0))[0] == "film"


@pytest.mark.parametrize(("longest", "answer"), [(4, "w0 w1 w2 w3"), (3, "w1 w2 w3"), (1, "w3")])
def test_an_answer_has_so_many_tokens_at_most(longest, answer):
    data = open_questions([ask(LONG, "w0"), ask(SHORT, "film")], max_answer_tokens=longest)
    found = logits(data, s0_4=5.0, s0_5=4.0, s0_7=1.0, e0_7=5.0)
    assert data.read(found)[0] == answer


# No answer

NONE = {"question": "what ?", "context": LONG, "answers": []}


def test_no_answer_is_given_only_where_the_data_knows_of_it():
    values = {f"{side}{window}_0": 9.0 for side in "se" for window in range(3)}
    answerable = open_questions([ask(LONG, "w1"), ask(SHORT, "film")])
    assert answerable.read(logits(answerable, s0_5=1.0, e0_5=1.0, **values))[0] == "w1"
    data = open_questions([NONE, ask(SHORT, "film")])
    assert data.read(logits(data, s0_5=1.0, e0_5=1.0, **values))[0] == ""


def test_every_window_must_say_that_there_is_no_answer():
    data = open_questions([NONE, ask(SHORT, "film")])
    found = logits(data, s0_0=9.0, e0_0=9.0, s2_0=9.0, e2_0=9.0, s1_0=1.0, e1_0=0.5, s0_5=1.0, e0_5=1.0)
    assert data.read(found)[0] == "w1"  # 1.5 in the second window is below 2
    found[0][1, 0] = 2.0
    assert data.read(found)[0] == ""  # 2.5 is above


def test_no_answer_must_be_better_than_the_best_answer_of_any_window():
    data = open_questions([NONE, ask(SHORT, "film")])
    nulls = {f"s{window}_0": 4.0 for window in range(3)}
    assert data.read(logits(data, s0_5=1.0, s2_5=5.0, **nulls))[0] == "w9"
    assert data.read(logits(data, s0_5=1.0, s2_5=4.0, **nulls))[0] == "w9"  # as good is not better
    assert data.read(logits(data, s0_5=1.0, s2_5=3.0, **nulls))[0] == ""


@pytest.mark.parametrize(("threshold", "answer"), [(-2.0, ""), (1.0, ""), (2.0, "w1"), (3.0, "w1")])
def test_the_threshold_of_no_answer(threshold, answer):
    data = dataclasses.replace(open_questions([NONE, ask(SHORT, "film")]), null_threshold=threshold)
    nulls = {f"s{window}_0": 4.0 for window in range(3)}
    assert data.read(logits(data, s0_5=2.0, **nulls))[0] == answer


# Scores


def test_scores_and_their_errors():
    data = open_questions([ask(LONG, "w1 w2"), ask(SHORT, "film"), NONE, NONE])
    values = {
        f"s{window}_0": 4.0 for window in range(4, 7)
    }  # the third question has no answer, and the fourth gets one
    found = logits(data, s0_5=9.0, e0_5=9.0, s3_5=9.0, e3_5=9.0, s7_5=9.0, **values)
    assert data.read(found) == ["w1", "film", "", "w1"]
    scores = data.score(found, None)
    assert scores == {"squad_f1": pytest.approx((2 / 3 + 1 + 1 + 0) / 4), "exact_match": pytest.approx(0.5)}
    judged = data.judge(found)
    assert {name: each["value"] for name, each in judged.items()} == pytest.approx(scores)
    assert judged["exact_match"]["se"] == pytest.approx(0.25)
    assert {each["n"] for each in judged.values()} == {4}
    assert (data.task, data.metric, data.label_names) == ("question-answering", "squad_f1", ())


def test_outputs_that_are_not_finite_are_refused_but_not_behind_a_window():
    data = open_questions([ask(LONG, "w0"), ask(SHORT, "film")])
    start, end = logits(data)
    start[3, 10] = np.nan  # the fourth window has ten tokens
    assert len(data.read((start, end))) == 2
    end[3, 9] = np.nan
    with pytest.raises(MeasurementError, match="not finite numbers"):
        data.read((start, end))


def test_outputs_of_another_shape_are_our_mistake():
    data = open_questions([ask(LONG, "w0"), ask(SHORT, "film")])
    with pytest.raises(ValueError, match="expected logits of 4 windows"):
        data.read((np.zeros((3, 11)), np.zeros((3, 11))))


# Batches


def test_a_batch_is_padded_on_the_right():
    data = open_questions([ask(LONG, "w5"), ask(SHORT, "film")])
    batch = data.collate(data.train[2:])
    assert batch["input_ids"].shape == (2, 10)
    assert batch["attention_mask"].sum(1).tolist() == [9, 10]
    assert (batch["start_positions"].tolist(), batch["end_positions"].tolist()) == ([0, 5], [0, 5])


def test_positions_move_with_padding_on_the_left():
    data = open_questions([ask(LONG, "w11"), ask(SHORT, "film")], tokenizer=bert_like(padding_side="left"))
    batch = data.collate(data.train[2:])
    assert batch["input_ids"].shape == (2, 11)  # always the longest window: Trainer joins batches behind their ends
    assert batch["input_ids"][:, :3].tolist() == [bert_ids("[PAD] [PAD] [CLS]"), bert_ids("[PAD] [CLS] what")]
    assert batch["start_positions"].tolist() == [7 + 2, 5 + 1]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("make", [bert_like, bart_like, roberta_like])
def test_what_trainer_gathers_is_read(make, side, tmp_path):
    """A model that knows the answers gives them, whatever the padding, the batches and the token types."""
    pytest.importorskip("accelerate")

    class Oracle(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))

        def forward(self, input_ids, attention_mask, start_positions=None, end_positions=None):
            start = 9.0 * torch.nn.functional.one_hot(start_positions, input_ids.shape[1])
            end = 9.0 * torch.nn.functional.one_hot(end_positions, input_ids.shape[1])
            return {"loss": self.weight.sum(), "start_logits": start, "end_logits": end, "other": input_ids}

    context = "Die Straße  kostet 5 € im Café, und das Eis kostet 3 €; so war es, und so bleibt es."
    answers = ["Straße", "5 €", "Café", "das Eis", "bleibt es."]
    rows = [ask(context, answer, question="was ?") for answer in answers] + [ask(SHORT, "film"), NONE]
    data = open_questions(rows, tokenizer=make(padding_side=side), max_length=40, stride=14)
    assert len(data.windows) > len(rows) or make is not roberta_like
    names = ["start_positions", "end_positions"]
    predictions, _ = evaluate(data, Oracle(), tmp_path, label_names=names, eval_do_concat_batches=True)
    assert data.read(predictions) == [*answers, "film", ""]
    assert data.score(predictions, None) == {"squad_f1": 1.0, "exact_match": 1.0}


TOKENIZER = bert_like()  # one for all examples of the test below


@given(st.data())
def test_what_is_labelled_is_the_answer(draw):
    """Wherever an answer lies: the labelled span of every window that holds it is the answer, and one holds it."""
    words = draw.draw(st.lists(st.sampled_from(["film", "x1", "é", "."]), min_size=1, max_size=30))
    first = draw.draw(st.integers(0, len(words) - 1))
    last = draw.draw(st.integers(first, min(len(words), first + 4) - 1))
    stride = draw.draw(st.integers(4, 8))
    spans = np.cumsum([0, *(len(word) + 1 for word in words)])
    context = " ".join(words)
    begin, end = int(spans[first]), int(spans[last]) + len(words[last])
    row = {
        "question": "what ?",
        "context": context,
        "answers": {"text": [context[begin:end]], "answer_start": [begin]},
    }
    data = open_questions([row, row], tokenizer=TOKENIZER, max_length=stride + 9, stride=stride)
    held = 0
    for window, (start_token, end_token) in zip(data.windows, positions(data.evaluation), strict=True):
        seen = window.spans[window.spans[:, 0] >= 0]
        if seen[0, 0] <= begin and end <= seen[-1, 1]:
            assert (window.spans[start_token, 0], window.spans[end_token, 1]) == (begin, end)
            held += window.question == 0
        else:
            assert (start_token, end_token) == (0, 0)
    assert held >= 1  # neighbours share four tokens or more, as many as an answer has


# What is refused


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({"text": ["film"], "answer_start": [5]}, 'question q7 .line 2. is not where .* says: "film" at 5'),
        ({"text": ["film"], "answer_start": [-14]}, "is not where"),
        ({"text": ["The film", "Film"], "answer_start": [0, 4]}, 'is not where .* says: "Film" at 4'),
        ({"text": ["film"]}, "question q7 .line 2. does not say where its answer begins"),
        (["film"], "does not say where its answer begins"),
        ({"text": ["film"], "answer_start": []}, "not in SQuAD's form"),
        ({"text": "film", "answer_start": 4}, "not in SQuAD's form"),
        ({"text": ["film"], "answer_start": ["4"]}, "not in SQuAD's form"),
        ({"text": ["film"], "answer_start": [True]}, "not in SQuAD's form"),
        ({"text": [None], "answer_start": [4]}, "not in SQuAD's form"),
        ("film", "'answers' of question q7 .line 2. is not in SQuAD's form"),
        (None, "not in SQuAD's form"),
    ],
)
def test_answers_that_are_not_in_their_place_or_form_are_refused(answers, message):
    bad = {"id": "q7", "question": "what ?", "context": SHORT, "answers": answers}
    good = ask(SHORT, "film", id="q6")
    with pytest.raises(UsageError, match=message) as caught:
        open_questions([good, good], [good, bad])
    assert caught.value.where == "train.jsonl"


def test_a_question_without_an_id_is_named_by_its_place():
    bad = {"question": "what ?", "context": SHORT, "answers": {"text": ["film"], "answer_start": [5]}}
    with pytest.raises(UsageError, match="the answer of the question of line 1 is not where"):
        open_questions([bad, bad])


@pytest.mark.parametrize("name", ["question", "context", "answers"])
def test_a_missing_column_is_refused(name):
    rows = [{key: value for key, value in ask(SHORT, "film").items() if key != name}] * 2
    with pytest.raises(UsageError, match=f"there is no column of '{name}'"):
        open_questions(rows)


@pytest.mark.parametrize(("max_length", "stride"), [(11, 7), (4, 0), (11, -1)])
def test_windows_without_room_are_refused(max_length, stride):
    with pytest.raises(UsageError, match="has no room for a question"):
        open_questions([ask(SHORT, "film")] * 2, max_length=max_length, stride=stride)


def test_a_tokenizer_that_does_not_know_where_its_tokens_are_is_refused():
    tokenizer = SimpleNamespace(is_fast=False, pad_token_id=0, name_or_path="folder")
    with pytest.raises(ModelDirectoryError, match="does not say where in the text") as caught:
        open_questions([ask(SHORT, "film")] * 2, tokenizer=tokenizer)
    assert caught.value.where == "folder"
