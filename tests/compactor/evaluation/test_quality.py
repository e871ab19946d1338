from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compactor.errors import UsageError
from compactor.evaluation.quality import (
    BETTER,
    METRICS,
    SAME,
    WORSE,
    choose_metrics,
    difference,
    evaluate,
)

LABELS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=2, max_size=40)


def value(metric, predictions, references, labels=2):
    """The metric alone, without the bootstrap that finds its standard error."""
    whole = METRICS[metric].whole
    if whole is not None:
        return whole(np.array(predictions), np.array(references), labels)
    return evaluate(metric, predictions, references)["value"]


# The metrics against their formulas


@given(LABELS)
def test_accuracy_and_its_standard_error(pairs):
    predictions, references = zip(*pairs, strict=True)
    found = evaluate("accuracy", predictions, references, labels=3)
    assert found["value"] == pytest.approx(value("accuracy", predictions, references, labels=3))
    n, right = len(pairs), sum(p == r for p, r in pairs)
    assert found["n"] == n
    assert found["value"] == pytest.approx(right / n)
    assert found["se"] == pytest.approx(math.sqrt(right / n * (1 - right / n) / n))


def f1_of(label, pairs):
    hits = sum(p == r == label for p, r in pairs)
    wrong = sum((p == label) != (r == label) for p, r in pairs)
    return Fraction(2 * hits, 2 * hits + wrong) if hits + wrong else None


@pytest.mark.parametrize("labels", [2, 3])
def test_f1(labels):
    random = np.random.default_rng(labels)
    for _ in range(5):
        references = random.integers(0, labels, 30)
        predictions = np.where(random.random(30) < 0.6, references, random.integers(0, labels, 30))
        pairs = list(zip(predictions.tolist(), references.tolist(), strict=True))
        each = [f1_of(label, pairs) for label in range(labels)]
        expected = each[1] if labels == 2 else sum(each) / 3
        assert value("f1", predictions.tolist(), references.tolist(), labels=labels) == pytest.approx(float(expected))


def test_f1_of_many_labels_is_the_mean_over_those_that_occur():
    assert value("f1", [0, 1, 1, 1], [0, 1, 1, 0], labels=7) == pytest.approx((2 / 3 + 4 / 5) / 2)


@pytest.mark.parametrize("labels", [2, 4])
def test_matthews(labels):
    random = np.random.default_rng(labels)
    references = random.integers(0, labels, 50)
    predictions = np.where(random.random(50) < 0.5, references, random.integers(0, labels, 50))
    # Gorodkin's R_K is the correlation of the two indicator matrices.
    x, y = np.eye(labels)[predictions], np.eye(labels)[references]
    x, y = x - x.mean(0), y - y.mean(0)
    expected = (x * y).sum() / math.sqrt((x * x).sum() * (y * y).sum())
    assert value("matthews", predictions.tolist(), references.tolist(), labels=labels) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "answers", "f1", "exact"),
    [
        ("The Denver Broncos!", ("Denver Broncos", "Broncos"), 1, 1),
        ("Broncos team", ("Denver Broncos", "the team of Denver"), 0.5, 0),
        ("in 1976", ("1976",), 2 / 3, 0),
        ("", ("1976",), 0, 0),
        ("", (), 1, 1),
        ("1976", (), 0, 0),
        ("a b b", ("b",), 2 / 3, 0),
    ],
)
def test_squad(text, answers, f1, exact):
    # Twice, since one example alone has no standard error.
    assert value("squad_f1", [text] * 2, [answers] * 2) == pytest.approx(f1)
    assert value("exact_match", [text] * 2, [answers] * 2) == exact


@pytest.mark.parametrize(
    ("metric", "expected"),
    # 5 words against 6. Words in common: police, the, gunman. Pairs: "the gunman". In order: police the gunman.
    [("rouge1", 2 * 3 / (5 + 6)), ("rouge2", 2 * 1 / (4 + 5)), ("rougeL", 2 * 3 / (5 + 6))],
)
def test_rouge(metric, expected):
    text, accepted = "police ended the gunman fast", ("The police arrested: the gunman, twice!"[4:],)
    assert accepted[0].split() == ["police", "arrested:", "the", "gunman,", "twice!"]
    reference = ("old " + accepted[0],)
    assert value(metric, [text] * 2, [reference] * 2) == pytest.approx(expected)
    assert value(metric, [text] * 2, [("nothing", *reference)] * 2) == pytest.approx(expected)  # the best of several


def test_the_standard_error_of_scores_is_that_of_their_mean():
    found = evaluate("squad_f1", ["a b", "c", "d e", "x"], [("b",), ("c",), ("d",), ("y",)])
    scores = [1, 1, 2 / 3, 0]  # "a" is an article
    assert found["value"] == pytest.approx(np.mean(scores))
    assert found["se"] == pytest.approx(np.std(scores, ddof=1) / 2)


def test_the_bootstrap_finds_the_standard_error_of_a_proportion():
    random = np.random.default_rng(0)
    references = random.integers(0, 2, 400)
    predictions = np.where(random.random(400) < 0.8, references, 1 - references)
    # Matthews of labels that are half and half is nearly 2 * accuracy - 1.
    found = evaluate("matthews", predictions.tolist(), references.tolist())
    expected = 2 * evaluate("accuracy", predictions.tolist(), references.tolist())["se"]
    assert found["se"] == pytest.approx(expected, rel=0.1)


def test_words_of_a_sentence_are_drawn_together():
    """Ten sentences right and ten wrong throughout: as sure as 20 flips of a coin, not as 200."""
    references = [np.zeros(10, np.int64)] * 20
    predictions = [np.full(10, i % 2) for i in range(20)]
    found = evaluate("accuracy", predictions, references)
    assert (found["value"], found["n"]) == (0.5, 200)
    assert found["se"] == pytest.approx(math.sqrt(0.25 / 20), rel=0.1)


def test_sentences_without_a_scored_word_do_not_matter():
    none = np.zeros(0, np.int64)
    found = evaluate(
        "accuracy", [none, np.array([1, 0]), none, np.array([1])], [none, np.array([1, 1]), none, np.array([1])]
    )
    assert (found["value"], found["n"]) == (pytest.approx(2 / 3), 3)
    assert math.isfinite(found["se"])


def test_one_example_or_unequal_numbers_are_refused():
    for predictions, references in (([1], [1]), ([1, 0], [1, 0, 1]), ([], [])):
        with pytest.raises(ValueError, match="two references"):
            evaluate("accuracy", predictions, references)


# Differences


def split(won, lost, both, neither):
    """Predictions of a variant, of the baseline, and right labels, by which of the two is right."""
    ours = [1] * won + [0] * lost + [1] * both + [0] * neither
    theirs = [0] * won + [1] * lost + [1] * both + [0] * neither
    return ours, theirs, [1] * len(ours)


@given(st.integers(0, 12), st.integers(0, 12), st.integers(1, 30), st.integers(1, 30))
def test_mcnemar_is_a_coin_flip_for_each_answer_that_only_one_has_right(won, lost, both, neither):
    found = difference("accuracy", *split(won, lost, both, neither))
    n, moved = won + lost + both + neither, won + lost
    tail = sum(math.comb(moved, k) for k in range(min(won, lost) + 1)) / 2**moved
    assert found["p"] == pytest.approx(min(1, 2 * tail))
    assert found["value"] == pytest.approx((won - lost) / n)
    gains = np.repeat([1, -1, 0], [won, lost, both + neither])
    assert found["se"] == pytest.approx(gains.std() / math.sqrt(n))
    assert found["high"] - found["value"] == pytest.approx(1.959964 * found["se"])
    assert found["value"] - found["low"] == pytest.approx(1.959964 * found["se"])
    assert found["changed"] == moved


@pytest.mark.parametrize(
    ("won", "lost", "verdict"), [(9, 1, BETTER), (1, 9, WORSE), (6, 3, SAME), (0, 0, SAME), (0, 4, SAME), (0, 6, WORSE)]
)
def test_the_verdict_on_accuracy(won, lost, verdict):
    found = difference("accuracy", *split(won, lost, 400, 90))
    assert found["verdict"] == verdict
    if (won, lost) == (0, 4):  # the normal interval is too sure of four answers
        assert found["high"] < 0
        assert found["p"] == pytest.approx(0.125)


def test_answers_that_are_wrong_in_another_way_have_changed():
    found = difference("accuracy", [0, 2, 1], [0, 1, 1], [0, 0, 1], labels=3)
    assert (found["changed"], found["value"], found["p"], found["verdict"]) == (1, 0, 1, SAME)


ARRAYS = ([np.array([0, 1, 1]), np.array([1])] * 10, [np.array([0, 1, 0]), np.array([1])] * 10)


@pytest.mark.parametrize(
    ("metric", "predictions", "references"),
    [
        ("accuracy", [0, 1] * 10, [0, 1, 1, 1] * 5),
        ("f1", [0, 1] * 10, [0, 1, 1, 1] * 5),
        ("matthews", [0, 1] * 10, [0, 1, 1, 1] * 5),
        ("accuracy", *ARRAYS),
        ("f1", *ARRAYS),
        ("squad_f1", ["a good film", "x"] * 10, [("film",), ("y",)] * 10),
        ("exact_match", ["film", "x"] * 10, [("film",), ("y",)] * 10),
        ("rougeL", ["a good film", "x"] * 10, [("film",), ("y",)] * 10),
    ],
)
def test_identical_predictions_do_not_differ(metric, predictions, references):
    found = difference(metric, predictions, predictions, references)
    assert found == {"value": 0, "se": 0, "low": 0, "high": 0, "p": 1, "changed": 0, "verdict": SAME}


@pytest.mark.parametrize("metric", ["f1", "matthews"])
def test_differences_of_all_together_are_bootstrapped_in_pairs(metric):
    random = np.random.default_rng(3)
    references = random.integers(0, 2, 300)
    theirs = np.where(random.random(300) < 0.85, references, 1 - references)
    few = theirs.copy()
    few[:2] = 1 - few[:2]
    noisy = np.where(random.random(300) < 0.7, theirs, random.integers(0, 2, 300))
    lists = references.tolist(), theirs.tolist()

    same = difference(metric, few.tolist(), lists[1], lists[0])
    assert (same["verdict"], same["changed"]) == (SAME, 2)
    assert same["low"] <= same["value"] <= same["high"]
    alone = evaluate(metric, few.tolist(), lists[0])["se"]
    assert same["se"] < alone / 2  # what both get alike does not count

    worse = difference(metric, noisy.tolist(), lists[1], lists[0])
    assert worse["verdict"] == WORSE
    assert worse["high"] < 0 and worse["p"] < 0.01
    back = difference(metric, lists[1], noisy.tolist(), lists[0])
    assert back["verdict"] == BETTER
    assert back["value"] == pytest.approx(-worse["value"])
    assert (back["low"], back["high"]) == pytest.approx((-worse["high"], -worse["low"]), rel=0.1)


def test_the_same_seed_gives_the_same_numbers():
    random = np.random.default_rng(5)
    ours, theirs, references = random.integers(0, 2, (3, 60)).tolist()
    assert evaluate("f1", ours, references) == evaluate("f1", ours, references)
    assert evaluate("f1", ours, references, seed=1) != evaluate("f1", ours, references)
    first = difference("f1", ours, theirs, references)
    assert first == difference("f1", ours, theirs, references)
    assert first["value"] == pytest.approx(value("f1", ours, references) - value("f1", theirs, references))


@pytest.mark.parametrize("moved", [1, 2, 4, 5, 6, 8])
def test_the_sign_flips_are_exact_where_few_answers_changed(moved):
    ours, theirs = ["film"] * 40, ["film"] * (40 - moved) + ["good film"] * moved
    found = difference("squad_f1", ours, theirs, [("film",)] * 40)
    assert found["p"] == pytest.approx(2 / 2**moved)
    assert found["changed"] == moved
    gains = np.repeat([0, 1 / 3], [40 - moved, moved])
    assert found["value"] == pytest.approx(gains.mean())
    assert found["se"] == pytest.approx(gains.std(ddof=1) / math.sqrt(40))
    assert (found["high"] - found["value"]) / found["se"] == pytest.approx(2.0227, abs=1e-4)  # t of 39
    assert found["verdict"] == (BETTER if moved >= 6 else SAME)


# Similarities


def test_spearman_is_of_ranks_and_its_difference_is_paired():
    right = [float(score) for score in range(30)]
    bent, turned = [score**3 for score in right], [-score for score in right]
    noisy = [score + 9 * (-1) ** i for i, score in enumerate(right)]
    assert evaluate("spearman", bent, right) == {"value": pytest.approx(1), "se": pytest.approx(0), "n": 30}
    assert evaluate("spearman", turned, right)["value"] == pytest.approx(-1)
    found = difference("spearman", noisy, bent, right)
    assert found["value"] < 0 and found["verdict"] == WORSE
    assert evaluate("spearman", [1.0] * 30, right)["value"] == 0  # all alike: no order


def test_cosines_are_scores_already():
    found = evaluate("cosine", [1.0, 0.5], [1.0, 1.0])
    assert (found["value"], found["n"]) == (0.75, 2)


# Which metric for what


@pytest.mark.parametrize(
    ("task", "asked", "names"),
    [
        ("text-classification", None, ("accuracy",)),
        ("question-answering", None, ("squad_f1", "exact_match")),
        ("token-classification", None, ("accuracy",)),
        ("feature-extraction", None, ("recall@1", "spearman", "same_first_hit", "cosine")),
        ("feature-extraction", "Recall@1", ("recall@1",)),
        ("fill-mask", None, ()),
        (None, None, ()),
        ("text-classification", "F1", ("f1",)),
        ("question-answering", "f1,em", ("squad_f1", "exact_match")),
        ("text-classification", "accuracy, mcc,accuracy", ("accuracy", "matthews")),
    ],
)
def test_the_metrics_of_a_task(task, asked, names):
    assert choose_metrics(task, asked) == names


@pytest.mark.parametrize(
    ("task", "asked", "what", "todo"),
    [
        ("text-classification", "bleu", "there is no metric 'bleu'", "choose from: accuracy, f1, matthews"),
        ("text-classification", "rougeL", "'rougeL' is not for text-classification", "accuracy, f1, matthews"),
        ("text-classification", "accuracy,", "there is no metric ''", "accuracy"),
        ("question-answering", "accuracy", "'accuracy' is not for question-answering", "squad_f1, exact_match"),
        ("feature-extraction", "accuracy", "is not for feature-extraction", "recall@1, spearman"),
        ("fill-mask", "accuracy", "is not for fill-mask", "leave out --metric"),
        (None, "accuracy", "whose task is unknown", "leave out --metric"),
    ],
)
def test_a_metric_that_does_not_fit_is_refused_with_those_that_do(task, asked, what, todo):
    with pytest.raises(UsageError, match=what) as caught:
        choose_metrics(task, asked)
    assert todo in caught.value.todo


def test_without_the_libraries_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="metrics need torchmetrics and scipy") as caught:
        choose_metrics("text-classification", None)
    assert "compactor[bench]" in caught.value.todo
    assert choose_metrics("fill-mask", None) == ()


def test_rouge_lsum_which_downloads_is_not_offered():
    assert {name for name in METRICS if name.startswith("rouge")} == {"rouge1", "rouge2", "rougeL"}
