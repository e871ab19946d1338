"""How good the answers are, with a standard error, and whether they differ from the baseline's.

Every variant answers the same examples, so differences are paired: what both get right or wrong alike says nothing.
Metrics come from torchmetrics, tests from SciPy. A difference is ``better`` or ``worse`` only where its 95 % interval
leaves out 0 *and* its p is below 0.05; the interval is an approximation, and where few answers changed p is the better
judge.

- A metric of right or wrong for each example (accuracy, exact match): normal interval; exact McNemar test.
- A metric with a score for each example (SQuAD's F1, ROUGE): Student's interval; sign-flip randomisation.
- A metric of all examples together (F1, Matthews, Spearman; everything on words): bootstrap over examples, 1,000
  times.

References: Dror et al., "The Hitchhiker's Guide to Testing Statistical Significance in NLP", 2018; McNemar, 1947;
Efron and Tibshirani, "An Introduction to the Bootstrap", 1993.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compactor.errors import UsageError

BETTER, WORSE, SAME = "better", "worse", "no significant difference"

_LEVEL = 0.95
_REPLICATES = 1000
_FLIPS = 9999

Scores = NDArray[np.float64]
Labels = NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class Metric:
    """One metric; higher is better.

    Attributes:
        tasks: What it is for.
        each: The score of each example, from predictions and references; None for a metric of all together.
        whole: The score of all, from labels, right labels and the number of labels; None for a metric of each.
        is_binary: Whether ``each`` is 0 or 1.
    """

    tasks: tuple[str, ...]
    each: Callable[[Sequence[Any], Sequence[Any]], Scores] | None = None
    whole: Callable[[Any, Any, int], float] | None = None
    is_binary: bool = False


def choose_metrics(task: str | None, asked: str | None) -> tuple[str, ...]:
    """The metrics to use.

    Args:
        task: What the models do; None where nothing says.
        asked: The user's choice, one or several with commas; None takes the task's own.

    Raises:
        UsageError: One is unknown, or not for the task; or the libraries are not installed.
    """
    fitting = [name for name, metric in METRICS.items() if task in metric.tasks]
    if asked is None:
        names = list(_DEFAULTS.get(task or "", ()))
    else:
        names = []
        known = {name.casefold(): name for name in METRICS} | _ALIASES
        for given in asked.split(","):
            name = known.get(given.strip().casefold())
            if name == "f1" and task == "question-answering":
                name = "squad_f1"
            todo = f"choose from: {', '.join(fitting)}" if fitting else "leave out --metric"
            if name is None:
                raise UsageError(f"there is no metric '{given.strip()}'", todo=todo)
            if name not in fitting:
                raise UsageError(f"the metric '{name}' is not for {task or 'a model whose task is unknown'}", todo=todo)
            names.append(name)
    missing = [name for name in ("torchmetrics", "scipy") if names and importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(
            f"metrics need {' and '.join(missing)}",
            todo="pip install 'compactor[bench]'; or pass --lengths instead of --data, to measure speed alone",
        )
    return tuple(dict.fromkeys(names))


def evaluate(
    metric: str, predictions: Sequence[Any], references: Sequence[Any], *, labels: int = 2, seed: int = 0
) -> dict[str, Any]:
    """``value``, from 0 to 1 (Matthews from -1), its standard error ``se``, and ``n``: examples, or scored words.

    Args:
        metric: Its name.
        predictions: One an example: a label, an array of tags, or a text.
        references: The right ones; of texts, all that are accepted, none of which means that nothing is right.
        labels: How many labels there are.
        seed: Of the bootstrap.
    """
    _check(predictions, references)
    found = METRICS[metric]
    if found.each is not None and not _is_of_words(references):
        scores = found.each(predictions, references)
        value = float(scores.mean())
        deviation = math.sqrt(value * (1 - value)) if found.is_binary else float(scores.std(ddof=1))
        return {"value": value, "se": deviation / math.sqrt(len(scores)), "n": len(scores)}
    items, owners = _flatten([predictions, references])
    score = _whole(metric)
    replicates = _bootstrap(items, owners, len(references), lambda p, r: (score(p, r, labels),), seed)
    return {
        "value": score(items[0], items[1], labels),
        "se": float(replicates[:, 0].std(ddof=1)),
        "n": len(owners),
    }


def difference(
    metric: str,
    predictions: Sequence[Any],
    baseline: Sequence[Any],
    references: Sequence[Any],
    *,
    labels: int = 2,
    seed: int = 0,
) -> dict[str, Any]:
    """How much better the predictions are than the baseline's on the same examples.

    Args:
        metric: Its name.
        predictions: As in ``evaluate``.
        baseline: The baseline's.
        references: The right ones.
        labels: How many labels there are.
        seed: Of the bootstrap and of the sign flips.

    Returns:
        ``value`` with its standard error ``se`` and its 95 % interval from ``low`` to ``high``; how many predictions
        ``changed``; ``p`` of there being no difference, two-sided; and the ``verdict``.
    """
    _check(predictions, references)
    _check(baseline, references)
    found = METRICS[metric]
    if found.each is not None and not _is_of_words(references):
        changed = sum(a != b for a, b in zip(predictions, baseline, strict=True))
        gains = found.each(predictions, references) - found.each(baseline, references)
        result = _binary_difference(gains) if found.is_binary else _scored_difference(gains, seed)
    else:
        items, owners = _flatten([predictions, baseline, references])
        changed = int((items[0] != items[1]).sum())
        score = _whole(metric)
        value = score(items[0], items[2], labels) - score(items[1], items[2], labels)
        if changed:
            pairs = _bootstrap(
                items, owners, len(references), lambda a, b, r: (score(a, r, labels), score(b, r, labels)), seed
            )
            result = _replicated_difference(value, pairs[:, 0] - pairs[:, 1])
        else:
            result = {"value": 0.0, "se": 0.0, "low": 0.0, "high": 0.0, "p": 1.0}
    significant = result["p"] < 1 - _LEVEL and (result["low"] > 0 or result["high"] < 0)
    verdict = SAME if not significant else BETTER if result["value"] > 0 else WORSE
    return {**result, "changed": int(changed), "verdict": verdict}


# How sure a difference is


def _binary_difference(gains: Scores) -> dict[str, float]:
    """Of scores that are 0 or 1: gains of 1, 0 or -1. Exact McNemar test on those that are not 0."""
    from scipy import stats

    n, won, lost = len(gains), int((gains > 0).sum()), int((gains < 0).sum())
    value = (won - lost) / n
    se = math.sqrt(won + lost - (won - lost) ** 2 / n) / n
    reach = float(stats.norm.ppf((1 + _LEVEL) / 2)) * se
    p = float(stats.binomtest(won, won + lost).pvalue) if won + lost else 1.0
    return {"value": value, "se": se, "low": value - reach, "high": value + reach, "p": p}


def _scored_difference(gains: Scores, seed: int) -> dict[str, float]:
    """Of scores of any size. If there is no difference, each gain could as well have the other sign."""
    from scipy import stats

    n, value = len(gains), float(gains.mean())
    se = float(gains.std(ddof=1)) / math.sqrt(n)
    reach = float(stats.t.ppf((1 + _LEVEL) / 2, n - 1)) * se
    moved = gains[gains != 0]
    p = 1.0
    if len(moved) > 1:  # of a single one, either sign is as likely
        p = float(
            stats.permutation_test(
                (moved,),
                lambda x, axis: x.mean(axis=axis),
                permutation_type="samples",
                vectorized=True,
                n_resamples=_FLIPS,
                batch=max(1, 10**6 // len(moved)),
                rng=np.random.default_rng(seed),
            ).pvalue
        )
    return {"value": value, "se": se, "low": value - reach, "high": value + reach, "p": p}


def _replicated_difference(value: float, replicates: Scores) -> dict[str, float]:
    """From bootstrap replicates: percentile interval, and the p at which the interval would just reach 0."""
    tail = (1 - _LEVEL) / 2
    low, high = (float(bound) for bound in np.quantile(replicates, (tail, 1 - tail)))
    beyond = min(int((replicates <= 0).sum()), int((replicates >= 0).sum()))
    p = min(1.0, 2 * (1 + beyond) / (1 + len(replicates)))
    return {"value": value, "se": float(replicates.std(ddof=1)), "low": low, "high": high, "p": p}


def _bootstrap(
    items: Sequence[Labels], owners: Labels, examples: int, score: Callable[..., tuple[float, ...]], seed: int
) -> Scores:
    """(replicates, scores): the scores of as many examples drawn with replacement, again and again.

    Examples are drawn, and with each all its words: those of one sentence are not independent. Equal items are counted
    instead of copied.

    Args:
        items: Labels of each item from several sources, all of shape (N,).
        owners: (N,) the example that an item is of.
        examples: How many there are; some may have no item.
        score: From the labels of the same sources to the scores.
        seed: Of the draws.
    """
    random = np.random.default_rng(seed)
    cells, cell_of = np.unique(np.stack(items), axis=1, return_inverse=True)
    cell_of = cell_of.reshape(-1)
    if len(owners) == examples and (np.diff(owners) == 1).all():  # one item each
        drawn = random.multinomial(examples, np.bincount(cell_of) / examples, size=_REPLICATES)
    else:
        held = np.zeros((examples, cells.shape[1]), np.int64)
        np.add.at(held, (owners, cell_of), 1)
        even = np.full(examples, 1 / examples)
        drawn = np.stack([random.multinomial(examples, even) @ held for _ in range(_REPLICATES)])
    scores = [score(*(np.repeat(labels, counts) for labels in cells)) for counts in drawn if counts.any()]
    return np.array(scores, np.float64)


# What is scored


def _check(predictions: Sequence[Any], references: Sequence[Any]) -> None:
    if len(predictions) != len(references) or len(references) < 2:
        raise ValueError(f"expected predictions for two references or more: {len(predictions)}, {len(references)}")


def _is_of_words(references: Sequence[Any]) -> bool:
    return isinstance(references[0], np.ndarray)


def _flatten(sources: Sequence[Sequence[Any]]) -> tuple[list[Labels], Labels]:
    """Labels of all examples end to end, from each source, and the example each is of."""
    rows = [[np.atleast_1d(np.asarray(labels)) for labels in source] for source in sources]
    owners = np.repeat(np.arange(len(rows[0])), [len(labels) for labels in rows[0]])
    return [np.concatenate(labels) for labels in rows], owners


# The metrics


def _is_right(predictions: Sequence[Any], references: Sequence[Any]) -> Scores:
    return np.asarray(np.asarray(predictions) == np.asarray(references), np.float64)


def _accuracy(predicted: Labels, right: Labels, labels: int) -> float:
    import torch
    from torchmetrics.functional.classification import multiclass_accuracy

    found = multiclass_accuracy(torch.from_numpy(predicted), torch.from_numpy(right), labels, average="micro")
    return float(found)


def _f1(predicted: Labels, right: Labels, labels: int) -> float:
    """Of label 1 where there are two; else the mean over the labels that occur."""
    import torch
    from torchmetrics.functional.classification import binary_f1_score, multiclass_f1_score

    tensors = torch.from_numpy(predicted), torch.from_numpy(right)
    if labels == 2:
        return float(binary_f1_score(*tensors, validate_args=False))
    return float(multiclass_f1_score(*tensors, labels, average="macro", validate_args=False))


def _matthews(predicted: Labels, right: Labels, labels: int) -> float:
    import torch
    from torchmetrics.functional.classification import multiclass_matthews_corrcoef

    tensors = torch.from_numpy(predicted), torch.from_numpy(right)
    return float(multiclass_matthews_corrcoef(*tensors, labels, validate_args=False))


def _squad(key: str, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> Scores:
    from torchmetrics.functional.text import squad

    scores = []
    for text, answers in zip(predictions, references, strict=True):
        target: Any = {"answers": {"text": list(answers) or [""], "answer_start": []}, "id": "0"}
        scores.append(float(squad({"prediction_text": text, "id": "0"}, target)[key]) / 100)
    return np.array(scores)


def _rouge(key: str, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> Scores:
    from torchmetrics.functional.text import rouge_score

    scores = []
    for text, accepted in zip(predictions, references, strict=True):
        scores.append(float(rouge_score([text], [list(accepted)], rouge_keys=key)[f"{key}_fmeasure"]))
    return np.array(scores)


def _given(predictions: Sequence[float], references: Sequence[Any]) -> Scores:
    """Predictions that are scores already."""
    return np.asarray(predictions, np.float64)


def _spearman(predicted: Scores, right: Scores, labels: int) -> float:
    """0 where all are alike, and nothing can be said of their order."""
    from scipy import stats

    if (predicted == predicted[0]).all() or (right == right[0]).all():
        return 0.0
    return float(stats.spearmanr(predicted, right).statistic)


def _whole(metric: str) -> Callable[[Any, Any, int], float]:
    found = METRICS[metric].whole
    assert found is not None
    return found


_LABELLED = ("text-classification", "token-classification")
_WRITTEN = ("text2text-generation",)
_EMBEDDED = ("feature-extraction",)
METRICS: Mapping[str, Metric] = {
    "accuracy": Metric(_LABELLED, each=_is_right, whole=_accuracy, is_binary=True),
    "f1": Metric(_LABELLED, whole=_f1),
    "matthews": Metric(_LABELLED, whole=_matthews),
    "squad_f1": Metric(("question-answering",), each=functools.partial(_squad, "f1")),
    "exact_match": Metric(("question-answering",), each=functools.partial(_squad, "exact_match"), is_binary=True),
    "recall@1": Metric(_EMBEDDED, each=_is_right, is_binary=True),
    "spearman": Metric(_EMBEDDED, whole=_spearman),
    "same_first_hit": Metric(_EMBEDDED, each=_is_right, is_binary=True),
    "cosine": Metric(_EMBEDDED, each=_given),
    # Not rougeLsum: it splits sentences by data that nltk would download.
    **{name: Metric(_WRITTEN, each=functools.partial(_rouge, name)) for name in ("rouge1", "rouge2", "rougeL")},
}
_ALIASES = {"em": "exact_match", "mcc": "matthews"}
_DEFAULTS: Mapping[str, tuple[str, ...]] = {
    "text-classification": ("accuracy",),
    "token-classification": ("accuracy",),
    "question-answering": ("squad_f1", "exact_match"),
    "text2text-generation": ("rougeL",),
    "feature-extraction": ("recall@1", "spearman", "same_first_hit", "cosine"),  # those that the file has the texts for
}
