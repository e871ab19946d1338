"""What int8 is chosen by: texts of the user's, or random inputs where there are none."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compactor.errors import UsageError
from compactor.evaluation.datafiles import read_table
from compactor.evaluation.inputs import Feeds, InputSpec
from compactor.evaluation.texts import EMBEDDING, LABELS, tokenize
from compactor.runtime.bucketing import Examples, in_order

LEAST, MOST = 20, 400  # rows that say anything; rows that are looked at
_MOST_TOKENS = 16_000  # of all of them: they run some sixty times
_BATCH = 16
_LENGTHS = (8, 65)  # of random texts, in tokens; the end is left out


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Inputs, in padded batches.

    Attributes:
        batches: Every input that a text or image model may have.
        count: How many examples they hold.
        file: The name of the file; None for random inputs.
        labels: Of the examples, where they are classified and the file has them.
        queries: Of texts that search others, which they are, by their place; None where all search all.
        documents: Those that they search.
    """

    batches: list[Feeds]
    count: int
    file: str | None = None
    labels: NDArray[np.int64] | None = None
    queries: NDArray[np.int64] | None = None
    documents: NDArray[np.int64] | None = None


def read_calibration(path: Path | None, spec: InputSpec) -> Calibration:
    """The texts in a file, spread over all of it where it has more than are looked at; or random inputs.

    Args:
        path: The file; None makes inputs, which tell less.
        spec: The model.

    Raises:
        UsageError: The file cannot be used: it has no texts, too few, or labels that are none of the model's.
        ModelDirectoryError: There is no usable tokenizer.
    """
    if path is None:
        return _random(spec)
    table = read_table(path)
    if len(table.rows) < LEAST:
        raise UsageError(
            f"{len(table.rows)} texts are too few to choose by",
            where=str(path),
            todo=f"give {LEAST} or more; a few hundred are enough",
        )
    labelled = spec.task == "text-classification" and table.find(*LABELS) is not None
    found = tokenize(table, spec, labelled=labelled or spec.task == EMBEDDING)
    if found.vectors is not None and found.vectors.right is not None and found.vectors.scores is None:
        return _searches(found.examples, found.vectors.queries, found.vectors.documents[found.vectors.right], path)
    rows = _few(len(found.examples), lambda rows: int(found.examples.lengths[rows].sum()))
    labels = np.array(found.references, np.int64)[rows] if labelled else None
    return Calibration(_batches(found.examples, rows), len(rows), path.name, labels)


def _few(count: int, tokens: Callable[[NDArray[np.int64]], int]) -> NDArray[np.int64]:
    """Rows that are spread over all, as many as are looked at and as their tokens allow."""
    number = min(count, MOST)
    while True:
        rows = np.unique(np.linspace(0, count - 1, number).astype(np.int64))
        if number <= LEAST or tokens(rows) <= _MOST_TOKENS:
            return rows
        number = max(LEAST, number * 9 // 10)


def _searches(examples: Examples, queries: NDArray[np.int64], documents: NDArray[np.int64], path: Path) -> Calibration:
    """Some documents, and in front of them all queries that they belong to."""
    distinct = np.unique(documents)

    def both(some: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return queries[np.isin(documents, distinct[some])], distinct[some]

    some = _few(len(distinct), lambda some: int(examples.lengths[np.concatenate(both(some))].sum()))
    asking, asked = both(some)
    rows = np.concatenate([asking, asked])
    places = np.arange(len(asking)), np.arange(len(asking), len(rows))
    return Calibration(_batches(examples, rows), len(rows), path.name, None, *places)


def _random(spec: InputSpec) -> Calibration:
    random = np.random.default_rng(0)
    if spec.image is not None:
        batches: list[Any] = [spec.random_images(random, _BATCH) for _ in range(4)]
        return Calibration(batches, 4 * _BATCH)
    longest = min(_LENGTHS[1], (spec.max_tokens or _LENGTHS[1]) + 1)
    lengths = random.integers(min(_LENGTHS[0], longest - 1), longest, MOST // 2)
    examples = Examples.join([spec.random_tokens(random, int(length)) for length in lengths], spec.fill)
    return Calibration(_batches(examples, np.arange(len(lengths))), len(lengths))


def _batches(examples: Examples, rows: NDArray[Any]) -> list[Feeds]:
    return [dict(examples.batch(rows[part])) for part in in_order(examples.lengths[rows], _BATCH)]
