from __future__ import annotations

import json

import numpy as np
import pytest

from compactor.errors import ModelDirectoryError, UsageError
from compactor.evaluation.datafiles import read_table
from compactor.evaluation.inputs import InputSpec
from compactor.evaluation.texts import tokenize
from tests.compactor.evaluation import summarizers
from tests.compactor.evaluation.texts import CONFIG, ids, write_tokenizer


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return write_tokenizer(tmp_path_factory.mktemp("model"))


@pytest.fixture
def run(tmp_path, home):
    """Tokenizes rows for a task."""

    def run(rows, task="text-classification", *, labelled=True, folder=home, **config):
        path = tmp_path / "data.jsonl"
        path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
        spec = InputSpec.from_config({**CONFIG, **config}, task=task, folder=folder)
        return tokenize(read_table(path), spec, labelled=labelled)

    return run


# Texts


def test_sentences_and_labels(run):
    found = run([{"sentence": "The film", "label": 1}, {"sentence": "not good .", "label": "negative"}])
    assert found.examples[0]["input_ids"].tolist() == ids("[CLS] the film [SEP]")
    assert found.examples[1]["input_ids"].tolist() == ids("[CLS] not good . [SEP]")
    assert found.references == [1, 0]
    assert (found.guides, found.notes) == (None, ())


@pytest.mark.parametrize(
    "names", [("sentence1", "sentence2"), ("premise", "hypothesis"), ("Question1", "Question2"), ("text", "text_pair")]
)
def test_pairs(run, names):
    found = run([{names[0]: "the film", names[1]: "bad", "label": 0}] * 2)
    assert found.examples[0]["input_ids"].tolist() == ids("[CLS] the film [SEP] bad [SEP]")
    assert found.examples[0]["token_type_ids"].tolist() == [0, 0, 0, 0, 1, 1]


def test_a_model_without_token_types_gets_zeros(run):
    found = run([{"sentence1": "the film", "sentence2": "bad", "label": 0}] * 2, type_vocab_size=1)
    assert found.examples[0]["token_type_ids"].tolist() == [0] * 6


def test_an_embedding_model_takes_the_first_of_a_pair_and_needs_no_labels(run):
    found = run([{"sentence1": "the film", "sentence2": "bad"}] * 2, task="feature-extraction", labelled=False)
    assert found.examples[0]["input_ids"].tolist() == ids("[CLS] the film [SEP]")
    assert found.references is None


# Texts whose vectors are judged


def test_queries_search_each_passage_once(run):
    rows = [
        {"query": "the film", "passage": "good"},
        {"query": "bad", "passage": "not"},
        {"query": ".", "passage": "good"},
    ]
    found = run(rows, task="feature-extraction")
    texts = found.vectors
    assert len(found.examples) == 5 and found.references is None
    assert [found.examples[i]["input_ids"].tolist() for i in (0, 4)] == [
        ids("[CLS] the film [SEP]"),
        ids("[CLS] not [SEP]"),
    ]
    assert (texts.queries.tolist(), texts.documents.tolist(), texts.right.tolist()) == ([0, 1, 2], [3, 4], [0, 1, 0])
    assert texts.scores is None
    assert [len(item.windows[0]) for item in texts.items] == [4, 3, 3, 3, 3]


@pytest.mark.parametrize("name", ["score", "similarity_score", "Similarity"])
def test_scores_say_how_alike_a_pair_is(run, name):
    rows = [{"sentence1": "the film", "sentence2": "good", name: "0.5"}, {"sentence1": "a", "sentence2": "b", name: 3}]
    assert run(rows, task="feature-extraction").vectors.scores.tolist() == [0.5, 3]


@pytest.mark.parametrize("value", ["high", None, float("nan"), [1]])
def test_a_score_that_is_no_number_is_refused(run, value):
    rows = [
        {"sentence1": "the film", "sentence2": "good", "score": 1},
        {"sentence1": "a", "sentence2": "b", "score": value},
    ]
    with pytest.raises(UsageError, match="'score' of line 2 is not a number"):
        run(rows, task="feature-extraction")


def test_texts_alone_are_searched_among_each_other(run):
    texts = run([{"text": "the film"}, {"text": "good"}], task="feature-extraction").vectors
    assert texts.right is None and texts.queries.tolist() == texts.documents.tolist() == [0, 1]


def test_no_text_at_all_names_a_pair(run):
    with pytest.raises(UsageError, match="nor a pair such as query and passage"):
        run([{"title": "the film"}], task="feature-extraction")


def test_long_texts_are_cut_and_counted(run):
    found = run([{"text": "film " * 30, "label": 1}, {"text": "film", "label": 1}, {"text": "a " * 11, "label": 0}])
    assert found.examples.lengths.tolist() == [12, 3, 12]
    assert found.examples[0]["input_ids"].tolist() == ids("[CLS] " + "film " * 10 + "[SEP]")
    assert found.notes == ("2 of 3 texts were cut to the model's 12 tokens.",)


@pytest.mark.parametrize(
    ("value", "label"),
    [(1, 1), ("1", 1), (" positive ", 1), ("Positive", 1), (True, 1), (0.0, 0), ("negative", 0)],
)
def test_labels_are_numbers_or_names(run, value, label):
    assert run([{"text": "a", "label": value}] * 2).references == [label] * 2


def test_a_name_that_is_a_number_is_a_name(run):
    names = {"0": "5", "1": "3"}
    assert run([{"text": "a", "label": "3"}, {"text": "a", "label": "5"}], id2label=names).references == [1, 0]


@pytest.mark.parametrize("value", [2, -1, "2", "great", 0.5, None, [1], "", "99999999999999999999"])
def test_a_label_that_is_none_of_the_models_is_refused(run, value):
    with pytest.raises(UsageError, match="the label of line 2 is none of the model's") as caught:
        run([{"text": "a", "label": 1}, {"text": "a", "label": value}])
    assert caught.value.todo == "expected 0 to 1, or one of negative, positive"


def test_no_labels_are_refused_with_a_way_on(run):
    with pytest.raises(UsageError, match="there are no labels: no column label") as caught:
        run([{"text": "a", "id": 3}])
    assert "among text, id" in caught.value.what
    assert "--lengths data.jsonl" in caught.value.todo
    assert run([{"text": "a", "id": 3}], labelled=False).references is None


def test_a_regression_has_no_labels(run):
    with pytest.raises(UsageError, match="a single output"):
        run([{"text": "a", "label": 0.5}], id2label={"0": "score"})


@pytest.mark.parametrize(
    ("task", "what"),
    [("text-classification", "text"), ("token-classification", "words"), ("question-answering", "'question' and")],
)
def test_no_known_column_is_an_error_that_lists_them(run, task, what):
    with pytest.raises(UsageError, match=f"there is no column of {what}") as caught:
        run([{"utterance": "a", "intent": 1}], task=task)
    assert caught.value.todo.endswith("utterance, intent")


# Words


def test_tags_are_of_the_first_token_of_each_word(run):
    rows = [
        {"tokens": ["the", "badly", "film"], "ner_tags": [0, 1, -100]},
        {"tokens": ["good"], "ner_tags": ["positive"]},
    ]
    found = run(rows, task="token-classification")
    assert found.examples[0]["input_ids"].tolist() == ids("[CLS] the bad ##ly film [SEP]")
    assert found.guides[0].positions.tolist() == [1, 2]
    assert [tags.tolist() for tags in found.references] == [[0, 1], [1]]


def test_words_that_were_cut_off_are_not_scored(run):
    found = run([{"tokens": ["badly"] * 9, "tags": [1] * 9}], task="token-classification")
    assert found.guides[0].positions.tolist() == [1, 3, 5, 7, 9]
    assert found.references[0].tolist() == [1] * 5
    assert len(found.notes) == 1


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"tokens": "the film", "tags": [0, 0]}, "'tokens' of line 1 is not a list of words"),
        ({"tokens": ["a", 1], "tags": [0, 0]}, "'tokens' of line 1 is not a list of words"),
        ({"tokens": ["a", "film"], "tags": [0]}, "'tags' of line 1 is not one tag a word"),
        ({"tokens": ["a", "film"], "tags": [0, 2]}, "the label of line 1 is none of the model's: 2"),
        ({"tokens": ["a", "film"], "tags": [-100, -100]}, "no word has a tag"),
        ({"tokens": ["a", "film"]}, "there are no labels"),
    ],
)
def test_words_and_tags_that_do_not_match_are_refused(run, row, message):
    with pytest.raises(UsageError, match=message):
        run([row], task="token-classification")


# Questions


@pytest.mark.parametrize(
    "answers",
    [{"text": ["good film", "film"], "answer_start": [0, 0]}, [{"text": "good film"}, {"text": "film"}]],
)
def test_the_context_is_known_by_its_characters(run, answers):
    context = "It is not a  Good film."
    found = run([{"question": "what is it ?", "context": context, "answers": answers}], task="question-answering")
    assert found.references == [("good film", "film")]
    (guide,) = found.guides
    assert guide.text == context
    tokens = found.examples[0]["input_ids"].tolist()
    assert tokens == [*ids("[CLS] what is it ? [SEP] it is not a good"), *ids("[SEP]")]  # cut to 12
    assert found.notes[0].endswith("12 tokens, and an answer behind that cannot be found.")
    words = [context[start:end] for start, end in guide.spans if start >= 0]
    assert words == ["It", "is", "not", "a", "Good"]
    assert np.flatnonzero(guide.spans[:, 0] >= 0).tolist() == [6, 7, 8, 9, 10]


def test_a_question_without_an_answer_and_one_longer_than_the_model(run):
    rows = [
        {"question": "what ?", "context": "it", "answers": {"text": [], "answer_start": []}},
        {"question": "what " * 20, "context": "film " * 20, "answers": {"text": ["film"]}},
    ]
    found = run(rows, task="question-answering")
    assert found.references == [(), ("film",)]
    assert found.examples.lengths.tolist() == [6, 12]
    assert (found.guides[1].spans[:, 0] >= 0).any()


@pytest.mark.parametrize("answers", ["film", {"text": "film"}, [3], {"text": [None]}, None])
def test_answers_in_another_form_are_refused(run, answers):
    with pytest.raises(UsageError, match="not in SQuAD's form"):
        run([{"question": "what ?", "context": "it", "answers": answers}], task="question-answering")


# The tokenizer


def test_without_a_tokenizer_there_are_no_tokens(run, tmp_path):
    (tmp_path / "empty").mkdir()
    for folder in (None, tmp_path / "empty"):
        with pytest.raises(ModelDirectoryError, match="there is no tokenizer"):
            run([{"text": "a", "label": 1}], folder=folder)


def test_a_damaged_tokenizer_is_an_error_of_the_model(run, tmp_path, home):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "tokenizer_config.json").write_text((home / "tokenizer_config.json").read_text())
    (tmp_path / "bad" / "tokenizer.json").write_text('{"version": "1.0"}')
    with pytest.raises(ModelDirectoryError, match="cannot open the tokenizer") as caught:
        run([{"text": "a", "label": 1}], folder=tmp_path / "bad")
    assert len(str(caught.value).splitlines()) <= 3


def test_the_tokenizer_of_another_model_is_refused(run):
    with pytest.raises(ModelDirectoryError, match="the tokenizer is not the model's: it gives token 7 of 7"):
        run([{"text": "film", "label": 1}], vocab_size=7)


def test_the_labelled_sentences_of_the_example(root, example_checkpoint):
    config = json.loads((example_checkpoint / "config.json").read_text())
    spec = InputSpec.from_config(config, task="text-classification", folder=example_checkpoint)
    found = tokenize(read_table(root / "examples" / "sst2.tsv"), spec, labelled=True)
    assert len(found.examples) == 872
    assert sum(found.references) == 444
    assert found.examples.lengths.max() == 57
    assert found.notes == ()


# Summaries


def test_documents_and_what_is_to_be_written_of_them(tmp_path):
    folder = summarizers.save_tokenizer(tmp_path / "home")
    spec = InputSpec(summarizers.VOCABULARY, max_tokens=6, task="text2text-generation", folder=folder)
    table = read_table(summarizers.write_data(tmp_path / "data.jsonl"))
    found = tokenize(table, spec, labelled=True)
    assert found.references[0] == ("good film",) and found.longest_reference == 5  # <s> the film is </s>
    assert found.examples.lengths.tolist() == [6, 6, 6, 5, 6, 4]
    assert found.notes == ("3 of 6 texts were cut to the model's 6 tokens.",)
    plain = tokenize(table, spec, labelled=False)
    assert plain.references is None and plain.longest_reference == 0


@pytest.mark.parametrize(
    ("row", "labelled", "message"),
    [
        ({"summary": "a"}, True, "there is no column of documents: none of document, article, text"),
        ({"sentence": "a", "summary": "a"}, True, "there is no column of documents"),
        ({"text": "a"}, True, "there are no labels: no column summary or highlights or target among text"),
        ({"text": "a", "summary": 3}, True, "'summary' of line 1 is not text: 3"),
        ({"sentence": "a film"}, False, None),
    ],
)
def test_columns_of_summaries(tmp_path, row, labelled, message):
    folder = summarizers.save_tokenizer(tmp_path / "home")
    spec = InputSpec(summarizers.VOCABULARY, task="text2text-generation", folder=folder)
    file = tmp_path / "data.jsonl"
    file.write_text(json.dumps(row))
    if message is None:
        assert len(tokenize(read_table(file), spec, labelled=labelled).examples) == 1
    else:
        with pytest.raises(UsageError, match=message):
            tokenize(read_table(file), spec, labelled=labelled)
