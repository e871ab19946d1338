from __future__ import annotations

import importlib.util
import math

import numpy as np
import pytest

from compactor.errors import MeasurementError, ModelDirectoryError, UsageError
from compactor.trainer.tasks import guess_task, open_task
from compactor.trainer.tasks.base import Features
from tests.compactor.trainer.task_fakes import bart_like, bert_ids, bert_like, evaluate, table

GOOD, BAD = {"text": "good film", "label": 1}, {"text": "the film is bad", "label": 0}


def classify(train, evaluation=None, *, tokenizer=None, labels=None, max_length=12, **options):
    evaluation = table(*train, name="dev.jsonl") if evaluation is None else table(*evaluation, name="dev.jsonl")
    return open_task(
        "text-classification",
        table(*train),
        evaluation,
        tokenizer or bert_like(),
        labels=labels,
        max_length=max_length,
        **options,
    )


# Texts


def test_a_text_becomes_tokens_and_a_label():
    data = classify([GOOD, BAD])
    assert list(data.train) == [
        {"input_ids": bert_ids("[CLS] good film [SEP]"), "token_type_ids": [0] * 4, "labels": 1},
        {"input_ids": bert_ids("[CLS] the film is bad [SEP]"), "token_type_ids": [0] * 6, "labels": 0},
    ]
    assert (data.task, data.metric, data.label_names) == ("text-classification", "accuracy", ("0", "1"))
    assert data.notes == ("The labels are those of the training data: 0, 1.",)


@pytest.mark.parametrize("names", [("sentence1", "sentence2"), ("Premise", "Hypothesis"), ("question", "sentence")])
def test_a_pair_becomes_one_sequence(names):
    rows = [{names[0]: "the film", names[1]: "bad", "label": label} for label in (0, 1)]
    data = classify(rows)
    assert data.train[0]["input_ids"] == bert_ids("[CLS] the film [SEP] bad [SEP]")
    assert data.train[0]["token_type_ids"] == [0, 0, 0, 0, 1, 1]


def test_long_texts_are_cut_and_counted():
    data = classify([{"text": "film " * 30, "label": 1}, BAD], [GOOD, BAD], max_length=5)
    assert data.train[0]["input_ids"] == bert_ids("[CLS] film film film [SEP]")
    assert data.notes[1:] == (
        "2 of 2 training texts were cut to 5 tokens.",
        "1 of 2 evaluation texts were cut to 5 tokens.",
    )


def test_more_texts_than_are_tokenized_at_a_time_stay_in_order():
    rows = [{"text": "film " * (1 + i % 7), "label": i % 2} for i in range(2003)]
    data = classify(rows, max_length=6)
    assert [len(feature["input_ids"]) for feature in data.train] == [min(6, 3 + i % 7) for i in range(2003)]
    assert data.notes[1].startswith(f"{sum(i % 7 > 3 for i in range(2003))} of 2003 training texts")


def test_the_tokenizer_is_left_as_it_was():
    tokenizer = bert_like()
    before = tokenizer.backend_tokenizer.to_str()
    classify([{"text": "film " * 30, "label": 1}, BAD], tokenizer=tokenizer)
    assert tokenizer.backend_tokenizer.to_str() == before


# Labels


@pytest.mark.parametrize(
    ("values", "names", "ids"),
    [
        ([10, 9, 2], ("2", "9", "10"), [2, 1, 0]),
        (["10", " 9", "2"], ("2", "9", "10"), [2, 1, 0]),
        ([1, 2, 5, 1.0, "1"], ("1", "2", "5"), [0, 1, 2, 0, 0]),
        ([True, False], ("0", "1"), [1, 0]),
        (["neutral", "good", "Bad"], ("Bad", "good", "neutral"), [2, 1, 0]),
        (["10", "9", "none"], ("10", "9", "none"), [0, 1, 2]),
        ([-1, 1], ("-1", "1"), [0, 1]),
    ],
)
def test_labels_of_the_data(values, names, ids):
    data = classify([{"text": "a", "label": value} for value in values])
    assert data.label_names == names
    assert [feature["labels"] for feature in data.train] == ids
    assert data.references == tuple(ids)


@pytest.mark.parametrize(
    ("value", "label"), [(2, 2), ("2", 2), ("bad", 0), (" Good ", 1), ("NONE", 2), (1.0, 1), (True, 1)]
)
def test_labels_of_the_model(value, label):
    data = classify(
        [{"text": "a", "label": value}, {"text": "a", "label": 1 - label % 2}], labels=("bad", "good", "none")
    )
    assert data.label_names == ("bad", "good", "none")
    assert data.train[0]["labels"] == label
    assert data.notes == ()


def test_numbers_that_are_names_of_the_model_are_those_names():
    data = classify([{"text": "a", "label": value} for value in (1, 5, "3")], labels=("1", "3", "5"))
    assert [feature["labels"] for feature in data.train] == [0, 2, 1]


def test_a_label_of_the_model_that_no_training_example_has_is_noted():
    data = classify([GOOD, BAD], [GOOD, {"text": "a", "label": 2}], labels=("bad", "good", "none"))
    assert data.notes == ("1 evaluation examples have a label that no training example has: none.",)


@pytest.mark.parametrize("value", [3, -1, "3", "great", 0.5, None, [1], ""])
def test_a_label_that_is_none_of_the_models_is_refused(value):
    with pytest.raises(UsageError, match="the label of line 2 is none of the model's") as caught:
        classify([GOOD, {"text": "a", "label": value}], labels=("bad", "good", "none"))
    assert caught.value.todo == "expected 0 to 2, or one of bad, good, none"


def test_an_evaluation_label_that_training_does_not_have_is_refused():
    with pytest.raises(UsageError, match="the label of line 2 is none of the training data's: 2") as caught:
        classify([GOOD, BAD], [GOOD, {"text": "a", "label": 2}])
    assert (caught.value.where, caught.value.todo) == ("dev.jsonl", "data.jsonl has: 0, 1")


@pytest.mark.parametrize(
    ("value", "todo"),
    [
        (0.5, "to predict other"),
        ("3.8", "to predict other"),
        (math.nan, "to predict other"),
        (None, "complete or"),
        ([1], "complete or"),
        (" ", "complete or"),
    ],
)
def test_what_is_no_label_is_refused(value, todo):
    with pytest.raises(UsageError, match="the label of line 2 is not a whole number or a name") as caught:
        classify([GOOD, {"text": "a", "label": value}])
    assert caught.value.todo.startswith(todo)


@pytest.mark.parametrize("labels", [None, ("bad", "good")])
def test_a_single_label_teaches_nothing(labels):
    with pytest.raises(UsageError, match=r"all examples have the same label, '(1|good)'"):
        classify([GOOD, GOOD], [GOOD, GOOD], labels=labels)


def test_a_regression_is_refused():
    with pytest.raises(UsageError, match="a single output"):
        classify([GOOD, BAD], labels=("score",))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "a", "id": 3}, "there is no column of labels: none of label, labels"),
        ({"utterance": "a", "label": 3}, "there is no column of text: none of sentence, text"),
        ({"text": 3, "label": 3}, "'text' of line 1 is not text: 3"),
    ],
)
def test_columns_that_are_missing_or_not_text_are_refused(row, message):
    with pytest.raises(UsageError, match=message):
        classify([row, {**row, "label": 4}])


def test_a_text_without_any_token_is_refused():
    tokenizer = bert_like()
    from tokenizers import processors

    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B")
    with pytest.raises(UsageError, match="line 2 has no text"):
        classify([GOOD, {"text": " ", "label": 0}], tokenizer=tokenizer)


# What all tasks refuse


def test_too_few_examples_are_refused():
    with pytest.raises(UsageError, match="too few examples to train on; found no") as caught:
        classify([], [GOOD, BAD])
    assert caught.value.where == "data.jsonl"
    with pytest.raises(UsageError, match="too few examples to evaluate on: a standard error needs two; found 1"):
        classify([GOOD, BAD], [GOOD])


def test_an_unknown_task_is_refused():
    with pytest.raises(UsageError, match="the task 'fill-mask' cannot be trained") as caught:
        open_task("fill-mask", table(GOOD), table(GOOD), bert_like(), labels=None, max_length=8)
    assert "summarization" in caught.value.todo


def test_a_tokenizer_without_padding_is_refused():
    tokenizer = bert_like()
    tokenizer.pad_token = None
    with pytest.raises(ModelDirectoryError, match="no padding token"):
        classify([GOOD, BAD], tokenizer=tokenizer)


def test_without_the_library_of_metrics_nothing_begins(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="metrics need torchmetrics"):
        classify([GOOD, BAD])


@pytest.mark.parametrize(
    ("row", "task"),
    [
        ({"text": "a", "label": 0}, "text-classification"),
        ({"sentence1": "a", "sentence2": "b", "gold_label": "x"}, "text-classification"),
        ({"question": "a", "context": "b", "answers": [], "label": 0}, "question-answering"),
        ({"question": "a", "sentence": "b", "label": 0}, "text-classification"),
        ({"article": "a", "highlights": "b"}, "summarization"),
        ({"text": "a", "target": "b"}, "summarization"),
        ({"text": "a", "summary": "b", "label": 0}, "text-classification"),
        ({"tokens": ["a"], "labels": [0]}, None),
        ({"text": "a", "labels": [0]}, None),
        ({"text": "a"}, None),
        ({"label": 0}, None),
    ],
)
def test_the_task_is_told_from_the_columns(row, task):
    assert guess_task(table(row)) == task
    assert guess_task(table()) is None


# Features and batches


def test_features_are_a_sequence():
    features = Features([{"input_ids": np.arange(i), "labels": 10 * i} for i in range(4)])
    assert len(features) == 4
    assert features[2] == features[-2] == {"input_ids": [0, 1], "labels": 20}
    assert features[0]["input_ids"] == []
    assert features[1:3] == [features[1], features[2]]
    assert [feature["labels"] for feature in features] == [0, 10, 20, 30]
    with pytest.raises(IndexError):
        features[4]


def test_a_batch_is_padded_on_the_right():
    data = classify([GOOD, BAD])
    batch = data.collate([data.train[0], data.train[1]])
    assert batch["input_ids"].tolist() == [
        bert_ids("[CLS] good film [SEP] [PAD] [PAD]"),
        bert_ids("[CLS] the film is bad [SEP]"),
    ]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 0, 0], [1] * 6]
    assert batch["token_type_ids"].tolist() == [[0] * 6] * 2
    assert batch["labels"].tolist() == [1, 0]


def test_a_batch_is_padded_on_the_left_by_a_tokenizer_that_does_so():
    data = classify([GOOD, BAD], tokenizer=bert_like(padding_side="left"))
    batch = data.collate(data.train)
    assert batch["input_ids"][0].tolist() == bert_ids("[PAD] [PAD] [CLS] good film [SEP]")
    assert batch["attention_mask"][0].tolist() == [0, 0, 1, 1, 1, 1]


def test_a_tokenizer_without_token_types_gives_none():
    data = classify([GOOD, BAD], tokenizer=bart_like())
    assert set(data.train[0]) == {"input_ids", "labels"}
    batch = data.collate([data.train[0], data.train[1]])
    assert set(batch) == {"input_ids", "attention_mask", "labels"}
    assert batch["input_ids"][0].tolist()[-2:] == [1, 1]


@pytest.mark.parametrize("stated", [["input_ids"], ["input_ids", "token_type_ids", "attention_mask"]])
def test_the_model_says_whether_there_are_token_types(stated):
    rows = [{"text1": "a", "text2": "film", "label": label} for label in (0, 1)]
    tokenizer = bert_like(model_input_names=stated)
    assert classify(rows, tokenizer=tokenizer, token_types=2).train[0]["token_type_ids"] == [0, 0, 0, 1, 1]
    assert "token_type_ids" not in classify(rows, tokenizer=tokenizer, token_types=1).train[0]
    assert tokenizer.model_input_names == stated


# Answers

FOUR = [{"text": "a", "label": label} for label in (0, 0, 1, 1)]
LOGITS = np.array([[2.0, 1.0], [0.0, 3.0], [0.0, 0.5], [-2.0, -1.0]])  # right, wrong, right, right


def test_metrics_of_two_labels():
    data = classify(FOUR)
    assert data.read(LOGITS) == [0, 1, 1, 1]
    scores = data.score(LOGITS, None)
    assert scores == {
        "accuracy": 0.75,
        "f1": pytest.approx(0.8),  # precision 2/3, recall 1
        "matthews": pytest.approx(1 / math.sqrt(3)),
    }
    judged = data.judge(LOGITS)
    assert {name: found["value"] for name, found in judged.items()} == pytest.approx(scores)
    assert judged["accuracy"]["se"] == pytest.approx(math.sqrt(0.75 * 0.25 / 4))
    assert {found["n"] for found in judged.values()} == {4}


def test_metrics_of_three_labels_leave_out_matthews():
    rows = [{"text": "a", "label": label} for label in (0, 1, 2)]
    data = classify(rows)
    scores = data.score(np.eye(3)[[0, 1, 1]], None)
    assert scores == {"accuracy": pytest.approx(2 / 3), "f1": pytest.approx((1 + 2 / 3 + 0) / 3)}
    assert set(data.judge(np.eye(3)[[0, 1, 1]])) == {"accuracy", "f1"}


def test_what_comes_behind_the_logits_is_not_looked_at():
    data = classify(FOUR)
    assert data.read((LOGITS, np.zeros((4, 7, 2)))) == data.read(LOGITS)


def test_outputs_that_are_not_finite_are_refused():
    with pytest.raises(MeasurementError, match="not finite numbers"):
        classify(FOUR).score(np.where(LOGITS == 3, np.nan, LOGITS), None)


@pytest.mark.parametrize("shape", [(3, 2), (4, 3), (4, 2, 2)])
def test_outputs_of_another_shape_are_our_mistake(shape):
    with pytest.raises(ValueError, match="expected 4 x 2 logits"):
        classify(FOUR).read(np.zeros(shape))


def test_what_trainer_gathers_is_read(tmp_path):
    pytest.importorskip("accelerate")
    from transformers import BertConfig, BertForSequenceClassification

    data = classify([GOOD, BAD, {"text": "what is it ?", "label": 1}])
    config = BertConfig(vocab_size=15, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    model = BertForSequenceClassification(config).eval()
    predictions, label_ids = evaluate(data, model, tmp_path)
    alone = []
    for feature in data.evaluation:
        batch = data.collate([feature])
        alone.append(model(**batch).logits.argmax(-1).item())
    assert data.read(predictions) == alone
    assert label_ids.tolist() == list(data.references)
