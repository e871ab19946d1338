"""Answers as columns: one set of columns for each kind of answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa

from compactor.predicting.columns import ERROR
from compactor.runtime.answers import (
    Answer,
    Answered,
    Classified,
    Embedded,
    Filled,
    Refused,
    Sparse,
    Tagged,
    TokenVectors,
    Written,
)

_LABELS = b"compactor.labels"  # in the metadata of 'scores': the labels, in the order of the numbers

_Value: TypeAlias = Callable[[Any], Any]

_ENTITY = pa.struct(
    [
        ("label", pa.string()),
        ("score", pa.float32()),
        ("start", pa.int64()),
        ("end", pa.int64()),
        ("text", pa.string()),
    ]
)
_FILL = pa.struct([("token", pa.string()), ("score", pa.float32())])

# What of an answer's JSON stands in which column. ``scores`` and vectors are taken as arrays.
_COLUMNS: Mapping[type[Answer], Mapping[str, pa.DataType]] = {
    Classified: {"label": pa.string(), "score": pa.float32(), "scores": pa.list_(pa.float32())},
    Tagged: {"entities": pa.list_(_ENTITY)},
    Answered: {"answer": pa.string(), "score": pa.float32(), "start": pa.int64(), "end": pa.int64()},
    Filled: {"fills": pa.list_(pa.list_(_FILL))},
    Embedded: {"vector": pa.list_(pa.float32())},
    Sparse: {"indices": pa.list_(pa.int64()), "weights": pa.list_(pa.float32())},
    TokenVectors: {"vectors": pa.list_(pa.list_(pa.float32()))},
    Written: {"text": pa.string()},
}
_ARRAYS = {"scores", "vector", "weights"}


def answer_fields(kind: type[Answer], labels: Sequence[str]) -> list[pa.Field]:
    """The columns of a model's answers, and ``error``.

    Args:
        kind: What it answers with.
        labels: The names of its labels.
    """
    columns = _COLUMNS[kind]
    fields = [pa.field(name, stored) for name, stored in columns.items()]
    if "scores" in columns:
        fields[-1] = fields[-1].with_metadata({_LABELS: json.dumps(list(labels)).encode()})
    return [*fields, pa.field(ERROR, pa.string())]


def answer_arrays(fields: Sequence[pa.Field], answers: Sequence[Any]) -> list[pa.Array]:
    """The answers as ``fields``: null in all of them where an item was refused, and then ``error`` says why."""
    plain = [answer.to_json() for answer in answers]
    arrays = []
    for field in fields:
        if field.name in _ARRAYS:
            arrays.append(_vectors([None if isinstance(a, Refused) else getattr(a, field.name) for a in answers]))
        else:
            arrays.append(pa.array([values.get(field.name) for values in plain], field.type))
    return arrays


def _vectors(values: Sequence[Any]) -> pa.Array:
    """Arrays of float32 as lists, without a Python object for each number."""
    sizes = [0 if value is None else len(value) for value in values]
    there = [value for value in values if value is not None]
    numbers = np.concatenate(there).astype(np.float32, copy=False) if there else np.zeros(0, np.float32)
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
    missing = pa.array([value is None for value in values], pa.bool_())
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(numbers), mask=missing)
