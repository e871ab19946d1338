"""Judge embeddings: what a text's vector finds among others, and how far it is from the baseline's.

Vectors are compared by their cosine, whatever similarity a folder states. A hit is the document with the highest one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compactor.errors import MeasurementError
from compactor.evaluation.answers import Outputs, Predictions
from compactor.evaluation.inputs import InputSpec
from compactor.evaluation.texts import VectorTexts
from compactor.runtime.answers import Embedded
from compactor.runtime.errors import ArtefactError
from compactor.runtime.reading.vectors import VectorReader
from compactor.runtime.sentences import SentenceSettings, read_chain

Vectors = NDArray[np.float64]

RECALL, SPEARMAN, SAME_HIT, COSINE = "recall@1", "spearman", "same_first_hit", "cosine"
BESIDE_BASELINE = (SAME_HIT, COSINE)
"""The metrics that compare a model's vectors with the baseline's, and not with what the file says."""

_ROWS = 1024  # queries whose cosines are in memory at a time


def usable_metrics(texts: VectorTexts) -> tuple[str, ...]:
    """The metrics that a file has the references for; scores say more of its pairs than which belong together."""
    if texts.right is None:
        return BESIDE_BASELINE
    return (RECALL if texts.scores is None else SPEARMAN, *BESIDE_BASELINE)


def read_vectors(spec: InputSpec, texts: VectorTexts, outputs: Iterable[Outputs]) -> Vectors:
    """(N, W) vectors of length one, as ``runtime.load`` gives them.

    Args:
        spec: The model, with its folder, whose modules make vectors of states.
        texts: The texts.
        outputs: What the model gave on them, batch by batch, in their order.

    Raises:
        MeasurementError: The outputs are no vectors, not finite, or not of all texts.
    """
    reader = _reader(spec)
    found: list[NDArray[Any]] = []
    for batch in outputs:
        for row in range(len(next(iter(batch.values())))):
            if len(found) == len(texts.items):
                raise MeasurementError(f"expected outputs of {len(found)} texts, and there are more")
            item = texts.items[len(found)]
            own = {name: array[row][: item.tokens] if array.ndim == 3 else array[row] for name, array in batch.items()}
            answer = reader(item, [own])
            if not isinstance(answer, Embedded):
                raise MeasurementError("the outputs are not finite numbers, so they are no vectors")
            found.append(answer.vector.astype(np.float64))
    if len(found) != len(texts.items):
        raise MeasurementError(f"expected outputs of {len(texts.items)} texts, got {len(found)}")
    vectors = np.stack(found)
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12))


def _reader(spec: InputSpec) -> VectorReader:
    settings = None if spec.folder is None else SentenceSettings.read(spec.folder)
    if settings is None or spec.folder is None:
        return VectorReader(None, None)
    try:
        return VectorReader(read_chain(spec.folder, settings), settings.width)
    except ArtefactError as error:
        raise MeasurementError(f"the folder's modules make no vectors here: {error.what}") from error


def first_hits(vectors: Vectors, texts: VectorTexts) -> list[int]:
    """For each query the place of the most similar document; where a file has texts alone, of another text."""
    documents = vectors[texts.documents]
    hits: list[int] = []
    for start in range(0, len(texts.queries), _ROWS):
        cosines = vectors[texts.queries[start : start + _ROWS]] @ documents.T
        if texts.right is None:
            places = np.arange(len(cosines))
            cosines[places, start + places] = -np.inf
        hits.extend(int(place) for place in cosines.argmax(axis=1))
    return hits


def predict_vectors(
    metric: str, vectors: Vectors, texts: VectorTexts, baseline: Vectors | None
) -> tuple[Predictions, Predictions] | None:
    """What a metric compares: predictions and references, one each a query; None where there is no baseline to ask.

    Args:
        metric: Of ``usable_metrics``.
        vectors: (N, W), of length one.
        texts: The texts.
        baseline: The baseline's vectors; of another width, their cosine with ``vectors`` is not defined.
    """
    return _PREDICTORS[metric](vectors, texts, baseline)


def _recall(vectors: Vectors, texts: VectorTexts, baseline: Vectors | None) -> tuple[Predictions, Predictions] | None:
    return None if texts.right is None else (first_hits(vectors, texts), texts.right.tolist())


def _spearman(vectors: Vectors, texts: VectorTexts, baseline: Vectors | None) -> tuple[Predictions, Predictions] | None:
    if texts.right is None or texts.scores is None:
        return None
    cosines = (vectors[texts.queries] * vectors[texts.documents[texts.right]]).sum(axis=1)
    return cosines.tolist(), texts.scores.tolist()


def _same_hit(vectors: Vectors, texts: VectorTexts, baseline: Vectors | None) -> tuple[Predictions, Predictions] | None:
    return None if baseline is None else (first_hits(vectors, texts), first_hits(baseline, texts))


def _cosine(vectors: Vectors, texts: VectorTexts, baseline: Vectors | None) -> tuple[Predictions, Predictions] | None:
    if baseline is None or baseline.shape != vectors.shape:
        return None
    cosines: Sequence[float] = (vectors * baseline).sum(axis=1).tolist()
    return cosines, [1.0] * len(cosines)


_PREDICTORS: Mapping[str, Callable[..., tuple[Predictions, Predictions] | None]] = {
    RECALL: _recall,
    SPEARMAN: _spearman,
    SAME_HIT: _same_hit,
    COSINE: _cosine,
}
