"""From a graph's outputs to answers: one reader a task, on numpy arrays.

A reader is made once for a model, and then called with items and the outputs of their windows; it keeps nothing, so
threads may share it.
"""

from __future__ import annotations

from ..artefacts import Artefact
from ..encoding import QUESTIONS, TextEncoder
from ..errors import ArtefactError
from ..images import ImageEncoder
from ..sentences import SentenceSettings, read_chain
from ..sentences.settings import SCORES, SPARSE, TOKEN_VECTORS
from ..tokenizer import special_token
from .entities import EntityReader
from .fills import FillReader
from .labels import LabelReader
from .options import AGGREGATIONS, ReadingOptions
from .shared import Outputs, Reader
from .spans import AnswerReader
from .sparse import SparseReader
from .token_vectors import TokenVectorReader
from .vectors import VectorReader

__all__ = ["AGGREGATIONS", "Outputs", "Reader", "ReadingOptions", "make_reader"]


def make_reader(artefact: Artefact, encoder: TextEncoder | ImageEncoder, options: ReadingOptions) -> Reader:
    """What reads answers off the outputs of an artefact's graph.

    Raises:
        ArtefactError: No text has an answer by this task, or the folder's pooling is none of those known here.
    """
    if isinstance(encoder, ImageEncoder):
        return LabelReader(artefact)
    sentences = SentenceSettings.read(artefact.folder)
    if sentences is not None and sentences.task == artefact.task and sentences.kind != SCORES:
        chain = read_chain(artefact.folder, sentences, encoder.tokenizer)
        if sentences.kind == SPARSE:
            return SparseReader(chain, sentences.active)
        if sentences.kind == TOKEN_VECTORS:
            return TokenVectorReader(chain)
        return VectorReader(chain, sentences.width)
    if artefact.task == "text-classification":
        return LabelReader(artefact)
    if artefact.task == "token-classification":
        return EntityReader(artefact, encoder, options)
    if artefact.task == QUESTIONS:
        return AnswerReader(options, context_first=encoder.context_first, classifier=_classifier(artefact, encoder))
    if artefact.task == "fill-mask":
        return FillReader(artefact, encoder, options)
    if artefact.task == "feature-extraction":
        return VectorReader(None, None)
    raise ArtefactError(
        f"models for {artefact.task} answer no texts",
        where=str(artefact.folder),
        todo="run the graph with compactor.runtime.sessions.open_session",
    )


def _classifier(artefact: Artefact, encoder: TextEncoder) -> int | None:
    token = special_token(artefact.folder, "cls_token")
    number: int | None = encoder.tokenizer.token_to_id(token) if token else None
    return number
