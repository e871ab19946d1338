"""Read the answers off a model's outputs: the label of a text, the tags of words, the answer to a question.

The answer to a question is the span of the context with the highest sum of start and end logit, at most 30 tokens
long. Where some questions of the data have no answer, none is given where the first token's sum is higher still: there
models trained for it (SQuAD 2.0) put "no answer". A model that writes has answered already: its tokens become text.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from compactor.errors import MeasurementError
from compactor.evaluation.inputs import InputSpec
from compactor.evaluation.texts import Context, Labelled, Words
from compactor.evaluation.tokens import open_tokenizer
from compactor.tasks import GENERATION

MAX_ANSWER = 30  # tokens

Outputs = Mapping[str, NDArray[Any]]
Predictions = Sequence[Any]  # labels, arrays of tags, or texts: as the references


def predict(spec: InputSpec, labelled: Labelled, outputs: Iterable[Outputs]) -> Predictions:
    """What the model answers, one prediction an example, in their order.

    Args:
        spec: The model.
        labelled: The examples.
        outputs: What it gave on them, batch by batch, in their order.

    Raises:
        MeasurementError: The outputs are not those of the task, not finite, or not of all examples.
    """
    read = _READERS[cast(str, spec.task)]
    predictions: list[Any] = []
    for batch in outputs:
        predictions.extend(read(spec, labelled, batch, len(predictions)))
    if len(predictions) != len(labelled.examples):
        raise MeasurementError(f"expected outputs of {len(labelled.examples)} examples, got {len(predictions)}")
    return predictions


def read_outputs(files: Sequence[Path]) -> Iterator[Outputs]:
    """The outputs that the worker kept, one file a batch."""
    for file in files:
        with np.load(file) as arrays:
            yield dict(arrays)


def best_span(
    start: NDArray[Any], end: NDArray[Any], inside: NDArray[np.bool_], *, longest: int = MAX_ANSWER
) -> tuple[float, int, int] | None:
    """The highest ``start[i] + end[j]`` with i <= j < i + ``longest``, both inside.

    Args:
        start: (S,) logits.
        end: (S,) logits.
        inside: (S,) whether a token is of the context.
        longest: Tokens in an answer, at most.

    Returns:
        The sum, i and j; None where no token is inside.
    """
    if not inside.any():
        return None
    first = np.where(inside, start.astype(np.float64), -np.inf)
    last = np.where(inside, end.astype(np.float64), -np.inf)
    best = (-np.inf, 0, 0)
    for extra in range(min(longest, len(first))):
        sums = first[: len(first) - extra] + last[extra:]
        i = int(sums.argmax())
        if sums[i] > best[0]:
            best = (float(sums[i]), i, i + extra)
    return best


def _read_labels(spec: InputSpec, labelled: Labelled, batch: Outputs, offset: int) -> list[int]:
    logits = _output(batch, "logits", axes=2, labels=spec.label_count)
    _require_finite(logits)
    return [int(label) for label in logits.argmax(-1)]


def _read_tags(spec: InputSpec, labelled: Labelled, batch: Outputs, offset: int) -> list[NDArray[np.int64]]:
    logits = _output(batch, "logits", axes=3, labels=spec.label_count)
    guides = cast(Sequence[Words], labelled.guides)[offset : offset + len(logits)]
    tags = []
    for values, guide in zip(logits, guides, strict=True):
        _require_finite(values[guide.positions])
        tags.append(values[guide.positions].argmax(-1).astype(np.int64))
    return tags


def _read_answers(spec: InputSpec, labelled: Labelled, batch: Outputs, offset: int) -> list[str]:
    starts, ends = _output(batch, "start_logits", axes=2), _output(batch, "end_logits", axes=2)
    guides = cast(Sequence[Context], labelled.guides)[offset : offset + len(starts)]
    may_be_none = any(not answers for answers in cast(Sequence[Sequence[str]], labelled.references))
    answers = []
    for start, end, guide in zip(starts, ends, guides, strict=True):
        start, end = start[: len(guide.spans)], end[: len(guide.spans)]
        _require_finite(start)
        _require_finite(end)
        found = best_span(start, end, guide.spans[:, 0] >= 0)
        if found is None or (may_be_none and float(start[0]) + float(end[0]) > found[0]):
            answers.append("")
        else:
            _, first, last = found
            answers.append(guide.text[guide.spans[first, 0] : guide.spans[last, 1]].strip())
    return answers


def _read_texts(spec: InputSpec, labelled: Labelled, batch: Outputs, offset: int) -> list[str]:
    sequences = _output(batch, "sequences", axes=2)
    texts = _tokenizer(spec.folder).batch_decode(sequences.tolist(), skip_special_tokens=True)
    return [text.strip() for text in texts]


_tokenizer = functools.lru_cache(maxsize=1)(open_tokenizer)

_READERS: Mapping[str, Callable[[InputSpec, Labelled, Outputs, int], Sequence[Any]]] = {
    "text-classification": _read_labels,
    "token-classification": _read_tags,
    "question-answering": _read_answers,
    GENERATION: _read_texts,
}


def _output(batch: Outputs, name: str, *, axes: int, labels: int | None = None) -> NDArray[Any]:
    """The output of that name, or the only one."""
    array = batch.get(name)
    if array is None and len(batch) == 1 and name == "logits":
        array = next(iter(batch.values()))
    if array is None:
        raise MeasurementError(f"there is no output '{name}' among {', '.join(batch)}")
    if array.ndim != axes or (labels is not None and array.shape[-1] != labels):
        wanted = f"{axes} axes" if labels is None else f"{axes} axes, the last of {labels} labels"
        raise MeasurementError(f"expected '{name}' with {wanted}, got shape {array.shape}")
    return array


def _require_finite(values: NDArray[Any]) -> None:
    if not np.isfinite(values).all():
        raise MeasurementError("the outputs are not finite numbers, so they answer nothing")
