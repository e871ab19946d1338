"""The paper's methods by name: what one score stands for, who teaches, and what follows the pruning.

Reference: Lagunas, Charlaix, Sanh and Rush, "Block Pruning For Faster Transformers", EMNLP 2021, Table 1 and
Section 3; ``rewind`` is the alternative to ``hybrid-filled`` in its code. ``dense`` prunes nothing: it makes a teacher.
``tuned`` prunes nothing either: it trains what another pruning left (``compactor prune --speedup``).
"""

from __future__ import annotations

import dataclasses
import enum
import re
from collections.abc import Mapping

from compactor.errors import UsageError


class Shape(enum.Enum):
    """What one score covers, where that is no block of fixed size."""

    NONE = "none"  # the matrices are not pruned
    DIM = "dim"  # in feed-forward: a neuron, in all its matrices; in attention: a row of Q, K or V, a column of O
    HEAD = "head"  # a head: its rows of Q, K or V, its columns of O


@dataclasses.dataclass(frozen=True)
class Block:
    """A block of a stored ``(out, in)`` weight; of the attention's output projection, the other way round.

    Attributes:
        rows: Output features in it.
        cols: Input features in it.
    """

    rows: int
    cols: int

    def __str__(self) -> str:
        """As it is typed."""
        return f"{self.rows}x{self.cols}"


Unit = Shape | Block


class Scoring(enum.Enum):
    """Where scores come from."""

    MOVEMENT = "movement"  # trained, through the threshold
    MAGNITUDE = "magnitude"  # the norm of what they cover


class Second(enum.Enum):
    """What follows the pruning."""

    NONE = "none"
    FILL = "fill"  # zeros inside surviving heads become weights again, and the model is tuned on
    KEEP = "keep"  # no second run: the heads and neurons that MODEL has left are what is trained
    REWIND = "rewind"  # a second run from the first weights, in which surviving heads cannot be pruned


@dataclasses.dataclass(frozen=True)
class Method:
    """A named preset.

    Attributes:
        name: Its name on the command line.
        summary: What it does, in a line.
        attention: What a score of the attention's four matrices covers.
        feed_forward: What a score of the feed-forward matrices covers.
        teacher: Whether it learns from a teacher.
        attention_lambda: The regularisation of attention, as a multiple of λ.
        feed_forward_lambda: That of feed-forward layers.
        scoring: Where scores come from.
        second: What follows the pruning.
        default_lambda: λ where none is given: the middle of what the paper sweeps.
        default_hidden: The weight of the teacher's states where none is given and they can be compared.
    """

    name: str
    summary: str
    attention: Unit
    feed_forward: Unit
    teacher: bool = True
    attention_lambda: float = 1.0
    feed_forward_lambda: float = 1.0
    scoring: Scoring = Scoring.MOVEMENT
    second: Second = Second.NONE
    default_lambda: float = 20.0
    default_hidden: float = 0.0

    @property
    def prunes(self) -> bool:
        """Whether anything is pruned."""
        return self.attention is not Shape.NONE or self.feed_forward is not Shape.NONE


_SQUARE = Block(32, 32)
_STRUCT_ATTENTION = 1 / 32  # of the feed-forward's λ: a head has far fewer scores than a feed-forward layer

METHODS: Mapping[str, Method] = {
    method.name: method
    for method in (
        Method(
            "hybrid",
            "blocks of 32x32 in attention, whole neurons in feed-forward; learns from a teacher",
            _SQUARE,
            Shape.DIM,
        ),
        Method(
            "hybrid-nt",
            "hybrid without a teacher",
            _SQUARE,
            Shape.DIM,
            teacher=False,
        ),
        Method(
            "hybrid-filled",
            "hybrid; then the zeros inside the heads that are left become weights again, and training goes on",
            _SQUARE,
            Shape.DIM,
            second=Second.FILL,
        ),
        Method(
            "hybrid-filled-lt",
            "hybrid-filled with a larger teacher (any teacher of the same task: --teacher)",
            _SQUARE,
            Shape.DIM,
            second=Second.FILL,
        ),
        Method(
            "struct",
            "whole heads in attention, whole neurons in feed-forward",
            Shape.HEAD,
            Shape.DIM,
            attention_lambda=_STRUCT_ATTENTION,
        ),
        Method("block", "square blocks everywhere: --block 32x32, or any power of two", _SQUARE, _SQUARE),
        Method("movement", "single weights: no shape is left that a kernel could skip", Block(1, 1), Block(1, 1)),
        Method(
            "rewind",
            "hybrid twice: the second run starts from the first weights again and keeps the heads that survived",
            _SQUARE,
            Shape.DIM,
            second=Second.REWIND,
        ),
        Method(
            "magnitude",
            "the baseline: keeps the blocks and neurons of the largest norm (needs --target-density)",
            _SQUARE,
            Shape.DIM,
            scoring=Scoring.MAGNITUDE,
        ),
        Method(
            "tuned",
            "trains on the heads and neurons that MODEL has left, and no others; learns from a teacher",
            Shape.HEAD,
            Shape.DIM,
            second=Second.KEEP,
            default_hidden=1.0,
        ),
        Method(
            "dense",
            "plain fine-tuning: nothing is pruned. Makes a teacher",
            Shape.NONE,
            Shape.NONE,
            teacher=False,
        ),
    )
}


def find_method(name: str) -> Method:
    """The method called ``name``.

    Raises:
        UsageError: There is none.
    """
    if name not in METHODS:
        raise UsageError(f"there is no method '{name}'", todo=f"choose one of: {', '.join(METHODS)}")
    return METHODS[name]


def parse_unit(text: str, option: str) -> Unit:
    """``32x32``, ``dim``, ``head`` or ``none``.

    Args:
        text: What was typed.
        option: Where, for the message.

    Raises:
        UsageError: It is none of these.
    """
    name = text.strip().lower()
    if name in {shape.value for shape in Shape}:
        return Shape(name)
    found = re.fullmatch(r"(\d{1,5})x(\d{1,5})", name)
    if found is None or "0" in found.groups():
        raise UsageError(f"{option}: '{text}' is no block", todo="expected ROWSxCOLS such as 32x32, dim, head or none")
    return Block(int(found[1]), int(found[2]))


def unit_text(unit: Unit) -> str:
    """What ``parse_unit`` reads as ``unit``."""
    return unit.value if isinstance(unit, Shape) else str(unit)
