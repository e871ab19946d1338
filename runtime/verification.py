"""Compare two graphs on inputs that are hard on attention: padding left, right and in the middle, several lengths.

Only positions that hold a real token count, because a graph is free in what it leaves at padded ones. Tolerances
have no defaults and an empty comparison is an error, so a check cannot pass by checking nothing.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .sessions import open_session

# Outputs of shape (B, S) with one logit a position. Named, as (B, labels) has the same shape when labels == S.
POSITION_OUTPUTS = ("start_logits", "end_logits")

_TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
_CHUNK_VALUES = 1 << 20  # values compared at a time: the logits of a large vocabulary do not fit twice in memory


@dataclasses.dataclass(frozen=True)
class Case:
    """One batch of inputs, and which of its positions hold real tokens."""

    name: str
    feeds: dict[str, NDArray[Any]]
    valid: NDArray[np.bool_] | None  # (B, S); None for images


@dataclasses.dataclass(frozen=True)
class Comparison:
    """How far a candidate's output is from the reference's, over the positions that count."""

    case: str
    output: str
    max_abs_diff: float
    max_rel_diff: float  # max_abs_diff relative to the largest magnitude in the reference
    argmax_agreement: float  # share of vectors along the last axis whose largest entry is the same
    max_reference: float  # that largest magnitude

    def exceeds(self, tolerance: Tolerance) -> bool:
        """Whether the difference is larger than ``tolerance`` allows; a difference that is not finite always is."""
        return not self.max_abs_diff <= tolerance.atol + tolerance.rtol * self.max_reference

    def to_json(self) -> dict[str, Any]:
        """The comparison as JSON values; a difference that is not finite is ``None``."""

        def number(value: float) -> float | None:
            return value if math.isfinite(value) else None

        return {
            "case": self.case,
            "output": self.output,
            "max_abs_diff": number(self.max_abs_diff),
            "max_rel_diff": number(self.max_rel_diff),
            "argmax_agreement": self.argmax_agreement,
        }

    def __str__(self) -> str:
        return (
            f"'{self.output}' of case {self.case} differs by {self.max_abs_diff:.3g} "
            f"(relative {self.max_rel_diff:.3g}, same argmax for {self.argmax_agreement:.2%})"
        )


@dataclasses.dataclass(frozen=True)
class Tolerance:
    """What a difference may be at most: ``atol + rtol * (largest magnitude in the reference)``."""

    atol: float
    rtol: float

    def __post_init__(self) -> None:
        for value in (self.atol, self.rtol):
            if not 0 <= value < math.inf:
                raise ValueError(f"expected a finite tolerance of zero or more, got {value}")
        if self.rtol >= 1:
            raise ValueError(f"expected rtol below 1, got {self.rtol}: an output of zeros would pass")

    def to_json(self) -> dict[str, float]:
        """The tolerance as JSON values."""
        return dataclasses.asdict(self)


def check(comparisons: Sequence[Comparison], tolerance: Tolerance) -> list[Comparison]:
    """The comparisons beyond ``tolerance``, in order; empty when all is well.

    Raises:
        ValueError: There is nothing to check.
    """
    if not comparisons:
        raise ValueError("nothing was compared, so nothing can be said to agree")
    return [comparison for comparison in comparisons if comparison.exceeds(tolerance)]


# Inputs


def text_cases(
    input_names: Collection[str],
    *,
    vocab_size: int,
    max_length: int,
    pad_token_id: int = 0,
    type_vocab_size: int = 1,
    end_token_id: int | None = None,
    lengths: Sequence[int] = (7, 32, 128),
    batch: int = 4,
    seed: int = 0,
) -> list[Case]:
    """Batches of random tokens: right-, left- and hole-padded at each length, and one sentence alone.

    Rows of a batch hold different numbers of real tokens, from one to all. Real tokens are never the padding token:
    some models derive positions from it. Holes leave the first position real, left padding does not.

    Args:
        input_names: Inputs of the graph, of ``input_ids``, ``attention_mask`` and ``token_type_ids``. Without
            ``attention_mask`` there is no padding.
        vocab_size: Token ids lie below this.
        max_length: The longest sequence the model takes; longer ``lengths`` are cut to it.
        pad_token_id: Token id at padded positions.
        type_vocab_size: Token types lie below this.
        end_token_id: The last real token of every row, for models that look for it; None leaves that to chance.
        lengths: Sequence lengths.
        batch: Rows in a batch.
        seed: Same seed, same cases.

    Raises:
        ValueError: An input is of another kind, or a number is out of range.
    """
    unknown = sorted(set(input_names) - set(_TEXT_INPUTS))
    if unknown or "input_ids" not in input_names:
        raise ValueError(f"expected text inputs of {', '.join(_TEXT_INPUTS)}, got {', '.join(sorted(input_names))}")
    if not 0 <= pad_token_id < vocab_size or vocab_size < 2:
        raise ValueError(f"expected pad_token_id {pad_token_id} within a vocabulary of two or more, got {vocab_size}")
    if min(max_length, type_vocab_size, batch, *lengths) < 1:
        raise ValueError("expected max_length, type_vocab_size, batch and lengths of at least 1")

    random = np.random.default_rng(seed)

    def case(name: str, valid: NDArray[np.bool_]) -> Case:
        tokens = random.integers(0, vocab_size - 1, valid.shape)
        tokens += tokens >= pad_token_id  # skips the padding token
        if end_token_id is not None:
            last = valid.shape[1] - 1 - valid[:, ::-1].argmax(1)
            tokens[np.arange(len(valid)), last] = end_token_id
        feeds = {
            "input_ids": np.where(valid, tokens, pad_token_id).astype(np.int64),
            "attention_mask": valid.astype(np.int64),
            "token_type_ids": np.where(valid, random.integers(0, type_vocab_size, valid.shape), 0).astype(np.int64),
        }
        return Case(name, {key: value for key, value in feeds.items() if key in input_names}, valid)

    cut = sorted({min(length, max_length) for length in lengths})
    if "attention_mask" not in input_names:
        shapes = [(rows, length) for length in cut for rows in (1, batch)]
        return [case(f"unpadded-{rows}x{length}", np.ones((rows, length), bool)) for rows, length in shapes]
    cases = [case(f"unpadded-1x{cut[0]}", np.ones((1, cut[0]), bool))]
    for length in cut:
        for name, pad in (("right", _pad_right), ("left", _pad_left), ("holes", _pad_holes)):
            cases.append(case(f"{name}-padded-{batch}x{length}", _padded_rows(random, batch, length, pad)))
    return cases


def _padded_rows(
    random: np.random.Generator, batch: int, length: int, pad: Callable[[np.random.Generator, int, int], NDArray[Any]]
) -> NDArray[np.bool_]:
    """(B, S): rows with ``length`` real positions, one, and numbers in between, as different as possible."""
    between = random.permutation(np.arange(2, length)) if length > 2 else np.ones(1, int)
    counts = [length, 1, *np.resize(between, max(0, batch - 2)).tolist()][:batch]
    return np.stack([pad(random, count, length) for count in counts])


def _pad_right(_: np.random.Generator, count: int, length: int) -> NDArray[np.bool_]:
    return np.arange(length) < count


def _pad_left(_: np.random.Generator, count: int, length: int) -> NDArray[np.bool_]:
    return np.arange(length) >= length - count


def _pad_holes(random: np.random.Generator, count: int, length: int) -> NDArray[np.bool_]:
    """The first position is real and so is the last where ``count`` allows it; the holes lie in between."""
    real = [0, length - 1, *random.permutation(np.arange(1, length - 1)).tolist()][:count]
    return np.isin(np.arange(length), real)


def image_cases(
    input_name: str,
    *,
    channels: int,
    height: int,
    width: int,
    batch_sizes: Sequence[int] = (1, 4),
    seed: int = 0,
) -> list[Case]:
    """Batches of random images, as normalised pixels of shape (B, channels, height, width)."""
    random = np.random.default_rng(seed)
    return [
        Case(
            f"image-{batch}x{channels}x{height}x{width}",
            {input_name: random.standard_normal((batch, channels, height, width), np.float32)},
            None,
        )
        for batch in batch_sizes
    ]


# Running and comparing


def run_cases(model: str | Path | Any, cases: Sequence[Case]) -> list[dict[str, NDArray[Any]]]:
    """The outputs of ``model`` on each case, by name.

    All of them are held at once; with a large vocabulary, open a session and call ``run_case`` in turn.

    Args:
        model: Path of an ONNX file, or an open session.
        cases: The inputs.
    """
    session = open_session(model) if isinstance(model, str | Path) else model
    return [run_case(session, case) for case in cases]


def run_case(session: Any, case: Case) -> dict[str, NDArray[Any]]:
    """The outputs of ``session`` on ``case``, by name.

    Raises:
        ValueError: The graph's inputs are not those of the case.
    """
    expected = {entry.name for entry in session.get_inputs()}
    if expected != case.feeds.keys():
        raise ValueError(f"case {case.name} feeds {sorted(case.feeds)}, but the graph has inputs {sorted(expected)}")
    names = [entry.name for entry in session.get_outputs()]
    return dict(zip(names, session.run(names, case.feeds), strict=True))


def compare(
    case: Case,
    reference: Mapping[str, NDArray[Any]],
    candidate: Mapping[str, NDArray[Any]],
    *,
    position_outputs: Collection[str] = POSITION_OUTPUTS,
) -> list[Comparison]:
    """Compare the outputs of two graphs on one case, one record for each output.

    Of an output of shape (B, S, ...), and of ``position_outputs`` of shape (B, S), only positions that hold a real
    token count. Equal infinities agree; a NaN agrees with nothing, not even a NaN; nor do different shapes.

    Raises:
        ValueError: The two have different outputs, or none.
    """
    if not reference or reference.keys() != candidate.keys():
        raise ValueError(f"expected outputs {sorted(reference)}, got {sorted(candidate)}")
    return [
        _compare_output(case, name, np.asarray(reference[name]), np.asarray(candidate[name]), name in position_outputs)
        for name in reference
    ]


def _compare_output(
    case: Case, name: str, reference: NDArray[Any], candidate: NDArray[Any], is_position_output: bool
) -> Comparison:
    if reference.shape != candidate.shape or not reference.size:
        return Comparison(case.name, name, math.inf, math.inf, 0.0, math.nan)
    difference = largest = 0.0
    vectors = agreeing = 0
    for expected, got in _vectors(case.valid, reference, candidate, is_position_output):
        difference = max(difference, _max_difference(expected, got))
        largest = max(largest, float(np.abs(expected[np.isfinite(expected)]).max(initial=0.0)))
        chosen = np.take_along_axis(expected, got.argmax(-1)[:, None], -1)[:, 0]
        vectors += len(expected)
        agreeing += int((chosen == expected.max(-1)).sum())  # any of tied maxima will do
    relative = 0.0 if difference == 0 else difference / largest if largest else math.inf
    return Comparison(case.name, name, difference, relative, agreeing / vectors, largest)


def _vectors(
    valid: NDArray[np.bool_] | None, reference: NDArray[Any], candidate: NDArray[Any], is_position_output: bool
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Both outputs as float64 matrices of vectors along the last axis, without padded positions, in pieces."""
    if valid is not None and reference.shape[:2] != valid.shape:
        valid = None  # one vector an example, such as (B, labels)
    if valid is not None and reference.ndim == 2 and is_position_output:
        for real, expected, got in zip(valid, reference, candidate, strict=True):
            yield expected[None, real].astype(np.float64), got[None, real].astype(np.float64)
        return
    width = reference.shape[-1] if reference.ndim > 1 else 1
    expected, got = reference.reshape(-1, width), candidate.reshape(-1, width)
    rows = np.arange(len(expected))
    if valid is not None and reference.ndim > 2:
        rows = np.flatnonzero(np.repeat(valid.ravel(), math.prod(reference.shape[2:-1])))
    step = max(1, _CHUNK_VALUES // width)
    for start in range(0, len(rows), step):
        piece = rows[start : start + step]
        yield expected[piece].astype(np.float64), got[piece].astype(np.float64)


def _max_difference(expected: NDArray[np.float64], got: NDArray[np.float64]) -> float:
    if np.isnan(expected).any() or np.isnan(got).any():
        return math.inf
    unequal = expected != got  # equal infinities would subtract to NaN
    return float(np.abs(expected[unequal] - got[unequal]).max(initial=0.0))
