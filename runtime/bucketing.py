"""Put examples of different lengths into padded batches, in the order they came or with like lengths together.

    batches = by_length(examples.lengths, batch=32)
    outputs = [session.run(None, examples.batch(rows)) for rows in batches]
    in_the_order_they_came = restore(batches, outputs)

A batch is as long as its longest example; what the others lack is padding, which costs time and means nothing. Every
example is in exactly one batch, and ``restore`` puts the results back.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

T = TypeVar("T")
Rows = NDArray[np.intp]  # which examples are in a batch

_OFFSETS = "offsets"
_PADDING = "padding."  # before an input's name: what fills it up


def in_order(lengths: ArrayLike, batch: int, *, max_positions: int | None = None) -> list[Rows]:
    """Batches in the order the examples came.

    Args:
        lengths: (N,) tokens of each example.
        batch: Examples in a batch, at most.
        max_positions: Positions of a batch, padding included, at most; None sets no limit. An example that is longer
            by itself has a batch of its own.

    Raises:
        ValueError: A number is out of range.
    """
    lengths = _checked(lengths, batch, max_positions)
    return _cut(np.arange(len(lengths)), lengths, batch, max_positions)


def by_length(lengths: ArrayLike, batch: int, *, max_positions: int | None = None) -> list[Rows]:
    """Batches of like length, the longest first; examples of the same length stay in the order they came.

    Longest first, so that a runtime's memory grows once, and what does not fit fails at once.

    Args:
        lengths: (N,) tokens of each example.
        batch: Examples in a batch, at most.
        max_positions: As in ``in_order``.

    Raises:
        ValueError: A number is out of range.
    """
    lengths = _checked(lengths, batch, max_positions)
    return _cut(np.argsort(-lengths, kind="stable"), lengths, batch, max_positions)


def restore(batches: Sequence[Rows], results: Iterable[Iterable[T]]) -> list[T]:
    """The result of each example, in the order the examples came.

    Args:
        batches: The rows of each batch; together a permutation of all examples.
        results: For each batch one result a row.

    Raises:
        ValueError: There are more or fewer results than rows.
    """
    placed = [
        (int(row), result)
        for rows, found in zip(batches, results, strict=True)
        for row, result in zip(rows, found, strict=True)
    ]
    return [result for _, result in sorted(placed, key=lambda pair: pair[0])]


def count_positions(lengths: ArrayLike, batches: Iterable[Rows]) -> int:
    """Positions of all batches together, padding included."""
    lengths = np.asarray(lengths)
    return sum(len(rows) * int(lengths[rows].max()) for rows in batches)


def padding_share(lengths: ArrayLike, batches: Sequence[Rows]) -> float:
    """How much of what the batches hold is padding, from 0 to below 1; 0 where they hold nothing."""
    positions = count_positions(lengths, batches)
    return 1 - int(np.sum(np.asarray(lengths))) / positions if positions else 0.0


def collate(examples: Sequence[Mapping[str, NDArray[Any]]], padding: Mapping[str, int]) -> dict[str, NDArray[Any]]:
    """One padded batch.

    Args:
        examples: Their inputs by name. Those in ``padding`` are of shape (S_i,), all of one example equally long; the
            others have one shape in every example and are stacked.
        padding: What fills up an input behind its end.

    Returns:
        By input (B, S) with the longest S_i as S, or (B, ...).

    Raises:
        ValueError: There are no examples, or their inputs differ in name or shape.
    """
    if not examples:
        raise ValueError("expected at least one example")
    names = examples[0].keys()
    if any(example.keys() != names for example in examples):
        raise ValueError("expected the same inputs in every example")
    feeds: dict[str, NDArray[Any]] = {}
    for name in names:
        rows = [np.asarray(example[name]) for example in examples]
        feeds[name] = _pad(rows, padding[name]) if name in padding else np.stack(rows)
    if len({feeds[name].shape for name in names if name in padding}) > 1:
        raise ValueError("expected the inputs of an example to be equally long")
    return feeds


@dataclasses.dataclass(frozen=True)
class Examples:
    """Examples of different lengths, without padding: each input end to end in one array.

    Attributes:
        arrays: By input. Those in ``padding`` are of shape (T,), T tokens of all examples together; the others of
            (N, ...), one entry an example.
        offsets: (N + 1,) where each example begins in T, and where the last one ends.
        padding: What fills up an input behind its end.
    """

    arrays: Mapping[str, NDArray[Any]]
    offsets: NDArray[np.int64]
    padding: Mapping[str, int]

    @classmethod
    def join(cls, examples: Sequence[Mapping[str, ArrayLike]], padding: Mapping[str, int]) -> Examples:
        """Put ``examples`` end to end; their inputs are as in ``collate``.

        Raises:
            ValueError: There are no examples, or their inputs differ in name or length.
        """
        if not examples:
            raise ValueError("expected at least one example")
        ragged = [name for name in examples[0] if name in padding]
        lengths = {name: [len(np.atleast_1d(example[name])) for example in examples] for name in ragged}
        if any(found != lengths[ragged[0]] for found in lengths.values()):
            raise ValueError("expected the inputs of an example to be equally long")
        each = lengths[ragged[0]] if ragged else [0] * len(examples)
        return cls(
            {
                name: np.concatenate([np.atleast_1d(example[name]) for example in examples])
                if name in padding
                else np.stack([np.asarray(example[name]) for example in examples])
                for name in examples[0]
            },
            np.concatenate([[0], np.cumsum(each)]).astype(np.int64),
            {name: padding[name] for name in ragged},
        )

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> dict[str, NDArray[Any]]:
        """The inputs of one example, without a batch axis."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        start, end = self.offsets[index], self.offsets[index + 1]
        return {name: array[start:end] if name in self.padding else array[index] for name, array in self.arrays.items()}

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(N,) tokens of each example; zeros where no input is of tokens."""
        return np.diff(self.offsets)

    def batch(self, rows: Iterable[int]) -> dict[str, NDArray[Any]]:
        """The padded batch of some examples, in the order given."""
        return collate([self[int(row)] for row in rows], self.padding)

    def save(self, path: Path) -> None:
        """Write them as one ``.npz``: the inputs by name, ``offsets``, and ``padding.NAME``."""
        padding = {f"{_PADDING}{name}": np.int64(value) for name, value in self.padding.items()}
        arrays: dict[str, Any] = {**self.arrays, _OFFSETS: self.offsets, **padding}
        np.savez(path, **arrays)

    @classmethod
    def load(cls, path: Path) -> Examples:
        """The examples that ``save`` wrote."""
        with np.load(path) as file:
            content = dict(file)
        offsets = content.pop(_OFFSETS)
        padding = {
            name.removeprefix(_PADDING): int(content.pop(name)) for name in list(content) if name.startswith(_PADDING)
        }
        return cls(content, offsets, padding)


def _checked(lengths: ArrayLike, batch: int, max_positions: int | None) -> NDArray[np.int64]:
    if batch < 1 or (max_positions is not None and max_positions < 1):
        raise ValueError("expected batch and max_positions of at least 1")
    checked = np.asarray(lengths, np.int64)
    if checked.ndim != 1 or (checked < 0).any():
        raise ValueError("expected a list of lengths of 0 or more")
    return checked


def _cut(order: Rows, lengths: NDArray[np.int64], batch: int, max_positions: int | None) -> list[Rows]:
    """Pieces of ``order``, each as large as the limits allow."""
    if max_positions is None:
        return [order[start : start + batch] for start in range(0, len(order), batch)]
    pieces, start, longest = [], 0, 0
    for end, row in enumerate(order):
        grown = max(longest, int(lengths[row]))
        size = end - start + 1
        if end > start and (size > batch or size * grown > max_positions):
            pieces.append(order[start:end])
            start, grown = end, int(lengths[row])
        longest = grown
    return [*pieces, order[start:]] if len(order) else []


def _pad(rows: Sequence[NDArray[Any]], fill: int) -> NDArray[Any]:
    """(B, S): the rows, each filled up behind its end."""
    if any(row.ndim != 1 for row in rows):
        raise ValueError("expected inputs of shape (tokens,)")
    padded = np.full((len(rows), max(len(row) for row in rows)), fill, np.result_type(*rows))
    for line, row in zip(padded, rows, strict=True):
        line[: len(row)] = row
    return padded
