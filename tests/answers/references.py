"""Small folders of every kind, what their own stacks answer, and what their artefacts answer, in one flat form."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import transformers
from sentence_transformers import CrossEncoder, SentenceTransformer, SparseEncoder
from sentence_transformers.sentence_transformer.modules import Dense, LayerNorm, Normalize, Pooling, Transformer
from sentence_transformers.sparse_encoder.modules import MLMTransformer, SpladePooling
from torch import nn

import compactor
import compactor.runtime
from compactor.runtime.answers import Classified, Embedded, Filled, Sparse, Tagged, TokenVectors

WIDTH = 32
TEXTS = ["a gripping film", "Two  spaces, 東京 and (Ünïcode) zanzibar!", "it is what it is , and no more than that"]
PAIRS = [{"text": "is it good ?", "text_pair": TEXTS[0]}, {"text": "Who", "text_pair": TEXTS[2]}]
MASKED = ["a [MASK] film", "it is [MASK] , and no more [MASK] that", "a film [MASK]"]

Flat = list[tuple[list[str], list[float]]]


def save_roberta(folder: Path, tokenizer: Path) -> None:
    config = transformers.RobertaConfig(
        vocab_size=13458,
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=90,
        pad_token_id=1,
    )
    model = transformers.RobertaForSequenceClassification(config)
    _shake(model)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer / name, folder / name)


def save_scorer(folder: Path) -> None:
    config = transformers.BertConfig.from_pretrained(folder, num_labels=1)
    model = transformers.BertForSequenceClassification(config)
    _shake(model)
    model.save_pretrained(folder)


def _shake(*modules: nn.Module) -> None:
    for module in modules:
        for parameter in module.parameters():
            nn.init.normal_(parameter, std=0.4)


def _save_sentences(plain: Path, folder: Path) -> None:
    dense, norm = Dense(WIDTH, 12), LayerNorm(12)
    _shake(dense, norm)
    modules = [Transformer(str(plain)), Pooling(WIDTH, pooling_mode="mean"), dense, norm, Normalize()]
    prompts = {"query": "search : ", "document": "text : "}
    SentenceTransformer(modules=modules, device="cpu", prompts=prompts).save(str(folder))


def _save_cross_encoder(plain: Path, folder: Path) -> None:
    CrossEncoder(str(plain), device="cpu").save_pretrained(str(folder))


def _save_sparse(plain: Path, folder: Path) -> None:
    SparseEncoder(modules=[MLMTransformer(str(plain)), SpladePooling("max")], device="cpu").save_pretrained(str(folder))


def _save_token_vectors(plain: Path, folder: Path) -> None:
    from sentence_transformers import MultiVectorEncoder
    from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask

    modules = [Transformer(str(plain)), MultiVectorMask(), Normalize(module_input_name="token_embeddings")]
    MultiVectorEncoder(modules=modules, device="cpu").save_pretrained(str(folder))


SENTENCE_FOLDERS: dict[str, tuple[str, Callable[[Path, Path], None]]] = {
    "vectors": ("BertModel", _save_sentences),
    "scores": ("one output", _save_cross_encoder),
    "sparse": ("BertForMaskedLM", _save_sparse),
    "token vectors": ("BertModel", _save_token_vectors),
}


def reference(kind: str, folder: Path) -> Flat:
    """What the folder's own stack answers."""
    if kind == "vectors":
        encode = SentenceTransformer(str(folder), device="cpu").encode
        return [([], vector.tolist()) for vector in encode(TEXTS)]
    if kind in ("scores", "one output by CrossEncoder"):
        pairs = [tuple(pair.values()) for pair in PAIRS]
        return [([], [float(score)]) for score in CrossEncoder(str(folder), device="cpu").predict(pairs)]
    if kind == "sparse":
        return [_nonzero(row) for row in SparseEncoder(str(folder), device="cpu").encode(TEXTS).to_dense().numpy()]
    if kind == "token vectors":
        from sentence_transformers import MultiVectorEncoder

        model = MultiVectorEncoder(str(folder), device="cpu")
        found = [
            *model.encode_query(TEXTS, convert_to_numpy=True),
            *model.encode_document(TEXTS, convert_to_numpy=True),
        ]
        return [([str(vectors.shape)], vectors.ravel().tolist()) for vectors in found]
    pipe = transformers.pipeline(_TASKS[kind], model=str(folder), tokenizer=str(folder), device="cpu", dtype="float32")
    if kind == "BertForTokenClassification":
        found = pipe(TEXTS, aggregation_strategy="average")
        return [
            ([f"{e['entity_group']} {e['start']} {e['end']}" for e in each], [float(e["score"]) for e in each])
            for each in found
        ]
    if kind == "BertForMaskedLM":
        return [_flat_fills([fills] if isinstance(fills[0], dict) else fills) for fills in pipe(MASKED)]
    pairs = pipe(PAIRS, top_k=None)
    return [_sorted({each["label"]: each["score"] for each in one}) for one in pairs]


_TASKS = {
    "BertForSequenceClassification": "text-classification",
    "RobertaForSequenceClassification": "text-classification",
    "one output": "text-classification",
    "BertForTokenClassification": "token-classification",
    "BertForMaskedLM": "fill-mask",
}


def _sorted(scores: dict[str, float]) -> tuple[list[str], list[float]]:
    return sorted(scores), [scores[name] for name in sorted(scores)]


def _flat_fills(fills: list[list[dict[str, Any]]]) -> tuple[list[str], list[float]]:
    return [each["token_str"] for row in fills for each in row], [each["score"] for row in fills for each in row]


def _nonzero(row: np.ndarray) -> tuple[list[str], list[float]]:
    return [str(index) for index in np.flatnonzero(row > 1e-4)], row[row > 1e-4].tolist()


def ours(kind: str, folder: Path, out: Path) -> Flat:
    """What an artefact of the folder answers."""
    compactor.export(folder, out, precision=["fp32"])
    model = compactor.runtime.load(out, precision="fp32", threads=1, aggregation="average", truncate=True)
    if kind == "token vectors":
        answers = [*model(TEXTS, role="query"), *model(TEXTS, role="document")]
    elif kind in ("vectors", "sparse", "BertForTokenClassification"):
        answers = model(TEXTS)
    else:
        answers = model(MASKED if kind == "BertForMaskedLM" else PAIRS)
    return [_flatten(answer, kind) for answer in answers]


def _flatten(answer: Any, kind: str) -> tuple[list[str], list[float]]:
    if isinstance(answer, Classified) and kind in ("scores", "one output by CrossEncoder"):
        return [], [answer.score]
    if isinstance(answer, Classified):
        return _sorted(answer.to_json()["scores"])
    if isinstance(answer, Tagged):
        named = [f"{entity.label} {entity.start} {entity.end}" for entity in answer.entities]
        return named, [entity.score for entity in answer.entities]
    if isinstance(answer, Filled):
        return [fill.token for row in answer.fills for fill in row], [
            fill.score for row in answer.fills for fill in row
        ]
    if isinstance(answer, Embedded):
        return [], answer.vector.tolist()
    if isinstance(answer, TokenVectors):
        return [str(answer.vectors.shape)], answer.vectors.ravel().tolist()
    assert isinstance(answer, Sparse), answer
    kept = answer.weights > 1e-4
    return [str(index) for index in answer.indices[kept]], answer.weights[kept].tolist()


def agree(found: Flat, expected: Flat, tolerance: float) -> bool:
    return len(found) == len(expected) and all(
        words == others and len(numbers) == len(wanted) and np.allclose(numbers, wanted, atol=tolerance, rtol=1e-3)
        for (words, numbers), (others, wanted) in zip(found, expected, strict=True)
    )
