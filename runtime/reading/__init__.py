"""From a graph's outputs to answers: one reader a task, on numpy arrays.

A reader is made once for a model, and then called with items and the outputs of their windows; it keeps nothing, so
threads may share it.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..answers import (
    Answer,
    Answered,
    Classified,
    Embedded,
    Filled,
    Sparse,
    Tagged,
    TokenVectors,
    Written,
)
from ..artefacts import Artefact
from ..encoding import QUESTIONS, TextEncoder
from ..errors import ArtefactError
from ..images import IMAGE_VECTORS, IMAGES, ImageEncoder
from ..reading_options import AGGREGATIONS, ReadingOptions
from ..sentences import SentenceSettings, read_chain
from ..sentences.settings import SPARSE, TOKEN_VECTORS
from ..tokenizer import special_token
from .entities import EntityReader
from .fills import FillReader
from .labels import LabelReader
from .shared import Outputs, Reader
from .spans import AnswerReader
from .sparse import SparseReader
from .token_vectors import TokenVectorReader
from .vectors import IMAGE_VECTOR, TEXT_TOWER, TEXT_VECTOR, VectorReader

__all__ = ["AGGREGATIONS", "Outputs", "Reader", "ReadingOptions", "answer_type", "make_reader"]


_BY_TASK: Mapping[str, type[Answer]] = {
    "text-classification": Classified,
    IMAGES: Classified,
    "token-classification": Tagged,
    QUESTIONS: Answered,
    "fill-mask": Filled,
    "feature-extraction": Embedded,
    IMAGE_VECTORS: Embedded,
}
_BY_KIND: Mapping[str, type[Answer]] = {SPARSE: Sparse, TOKEN_VECTORS: TokenVectors}


def answer_type(artefact: Artefact) -> type[Answer]:
    """The record that an artefact answers with.

    Raises:
        ArtefactError: No text has an answer by this task, or the folder is a sentence-transformers one of another.
    """
    if artefact.generates:
        return Written
    sentences = SentenceSettings.read(artefact.folder)
    if sentences is not None and sentences.task != artefact.task:
        raise ArtefactError(
            f"this folder is a {sentences.kind}, and its graph was exported for {artefact.task}",
            where=str(artefact.folder),
            todo="export the model again, without --task",
        )
    kind = _BY_KIND.get(sentences.kind) if sentences is not None else None
    kind = kind or _BY_TASK.get(artefact.task)
    if kind is None:
        raise ArtefactError(
            f"models for {artefact.task} answer no texts",
            where=str(artefact.folder),
            todo="run the graph with compactor.runtime.sessions.open_session",
        )
    return kind


def make_reader(artefact: Artefact, encoder: TextEncoder | ImageEncoder, options: ReadingOptions) -> Reader:
    """What reads answers off the outputs of an artefact's graph.

    Raises:
        ArtefactError: No text has an answer by this task, or the folder's pooling is none of those known here.
    """
    kind = answer_type(artefact)
    if kind is Classified:
        return LabelReader(artefact)
    if isinstance(encoder, ImageEncoder):
        return VectorReader(None, None, pooled=IMAGE_VECTOR)
    if kind is Tagged:
        return EntityReader(artefact, encoder, options)
    if kind is Answered:
        return AnswerReader(options, context_first=encoder.context_first, classifier=_classifier(artefact, encoder))
    sentences = SentenceSettings.read(artefact.folder)
    if sentences is None:
        if kind is Filled:
            return FillReader(artefact, encoder, options)
        return VectorReader(None, None, pooled=TEXT_TOWER if _is_tower(artefact) else TEXT_VECTOR)
    chain = read_chain(artefact.folder, sentences, encoder.tokenizer)
    if kind is Sparse:
        return SparseReader(chain, sentences.active)
    return TokenVectorReader(chain) if kind is TokenVectors else VectorReader(chain, sentences.width)


def _is_tower(artefact: Artefact) -> bool:
    """Whether it is the half of CLIP, SigLIP and the like that reads texts: trained by its pooled output alone."""
    return str(artefact.config.get("model_type")).endswith("_text_model") or "text_config" in artefact.config


def _classifier(artefact: Artefact, encoder: TextEncoder) -> int | None:
    token = special_token(artefact.folder, "cls_token")
    number: int | None = encoder.tokenizer.token_to_id(token) if token else None
    return number
