"""Which graphs an artefact holds, and what each is made of: all in which encoders and encoder-decoders differ here."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

from compactor.importing.parts import DECODER, ENCODER, WHOLE
from compactor.passes.caching.attach_caches import Step
from compactor.runtime import decoding
from compactor.tasks import Task

STAGES = {"fp32": "compact", "int8": "int8", "fp16": "fp16"}
"""What the manifest calls the graphs of a precision."""


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where a graph comes from.

    Attributes:
        part: The part of the model; see ``importing.parts``.
        step: Of a decoder, which step of generation the graph is; None for all that is no decoder.
    """

    part: str
    step: Step | None = None


_ONE = {"": Origin(WHOLE)}
_THREE = {
    decoding.ENCODER: Origin(ENCODER),
    decoding.FIRST: Origin(DECODER, "first"),
    decoding.NEXT: Origin(DECODER, "next"),
}


_MERGED = {decoding.ENCODER: Origin(ENCODER), decoding.MERGED: Origin(DECODER)}


def graphs_of(task: Task) -> Mapping[str, Origin]:
    """The graphs that a model for ``task`` is built as, by name; the only graph of a model has none."""
    return _THREE if task.generates else _ONE


def files_of(task: Task, written: Iterable[str]) -> Mapping[str, Origin]:
    """The same of the graphs that an artefact holds.

    Args:
        task: What the model is for.
        written: Names of graphs that are there, perhaps not all: one tells whether a decoder's two are merged.
    """
    return _MERGED if decoding.MERGED in written else graphs_of(task)
