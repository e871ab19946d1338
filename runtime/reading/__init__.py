"""From a graph's outputs to answers: one reader a task, on numpy arrays.

A reader is made once for a model, and then called with items and the outputs of their windows; it keeps nothing, so
threads may share it.
"""

from __future__ import annotations

from ..artefacts import Artefact
from ..encoding import QUESTIONS, TextEncoder
from ..errors import ArtefactError
from ..images import ImageEncoder
from .entities import EntityReader
from .fills import FillReader
from .labels import LabelReader
from .shared import Outputs, Reader
from .spans import AnswerReader
from .vectors import VectorReader

__all__ = ["Outputs", "Reader", "make_reader"]


def make_reader(artefact: Artefact, encoder: TextEncoder | ImageEncoder, aggregation: str = "simple") -> Reader:
    """What reads answers off the outputs of an artefact's graph.

    Raises:
        ArtefactError: No text has an answer by this task, or the folder's pooling is none of those known here.
    """
    if artefact.task == "text-classification" or isinstance(encoder, ImageEncoder):
        return LabelReader(artefact)
    if artefact.task == "token-classification":
        return EntityReader(artefact, encoder, aggregation)
    if artefact.task == QUESTIONS:
        return AnswerReader(context_first=encoder.context_first)
    if artefact.task == "fill-mask":
        return FillReader(artefact, encoder)
    if artefact.task == "feature-extraction":
        return VectorReader(artefact.folder)
    raise ArtefactError(
        f"models for {artefact.task} answer no texts",
        where=str(artefact.folder),
        todo="run the graph with compactor.runtime.sessions.open_session",
    )
