"""Answers as columns, for every task; a refused item has nulls and its reason."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from compactor.predicting.answers import answer_arrays, answer_fields
from compactor.runtime.answers import (
    Answer,
    Answered,
    Classified,
    Embedded,
    Entity,
    Fill,
    Filled,
    Refused,
    Sparse,
    Tagged,
    TokenVectors,
    Written,
)

F = np.float32
LABELS = ("no", "yes")
ENTITY = {"label": "PER", "score": 0.5, "start": 2, "end": 5, "text": "Ada"}
CASES: list[tuple[Any, dict[str, Any]]] = [
    (
        Classified("yes", 0.75, np.array([0.25, 0.75], F), LABELS),
        {"label": "yes", "score": 0.75, "scores": [0.25, 0.75]},
    ),
    (Tagged((Entity(**ENTITY),)), {"entities": [ENTITY]}),
    (Tagged(()), {"entities": []}),
    (Answered("Ada", 0.5, 2, 5), {"answer": "Ada", "score": 0.5, "start": 2, "end": 5}),
    (Filled(((Fill("a", 0.5),), ())), {"fills": [[{"token": "a", "score": 0.5}], []]}),
    (Embedded(np.array([1, 2, 3], F)), {"vector": [1, 2, 3]}),
    (Sparse(np.array([2, 9]), np.array([0.5, 1], F)), {"indices": [2, 9], "weights": [0.5, 1]}),
    (TokenVectors(np.array([[1, 2], [3, 4]], F)), {"vectors": [[1, 2], [3, 4]]}),
    (Written("so\tit\nis"), {"text": "so\tit\nis"}),
]


@pytest.mark.parametrize(("answer", "columns"), CASES)
def test_an_answer_fills_its_columns(answer: Any, columns: dict[str, Any]) -> None:
    fields = answer_fields(type(answer), LABELS)
    assert [field.name for field in fields] == [*columns, "error"]
    arrays = answer_arrays(fields, [answer, Refused("the text is empty"), answer])
    assert [array.type for array in arrays] == [field.type for field in fields]
    rows = list(zip(*(array.to_pylist() for array in arrays), strict=True))
    assert rows[0] == rows[2] == (*columns.values(), None)
    assert rows[1] == (*[None] * len(columns), "the text is empty")


@pytest.mark.parametrize("kind", dict.fromkeys(type(answer) for answer, _ in CASES), ids=lambda kind: kind.__name__)
def test_columns_have_their_types_even_where_all_are_refused(kind: type[Answer]) -> None:
    fields = answer_fields(kind, LABELS)
    arrays = answer_arrays(fields, [Refused("no")] * 2)
    assert [array.type for array in arrays] == [field.type for field in fields]
    assert [array.null_count for array in arrays] == [2] * (len(fields) - 1) + [0]


def test_the_labels_stand_beside_the_scores() -> None:
    scores = answer_fields(Classified, LABELS)[2]
    assert scores.metadata == {b"compactor.labels": b'["no", "yes"]'}
