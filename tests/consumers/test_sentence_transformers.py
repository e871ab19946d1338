"""An artefact of a sentence-transformers folder opens in sentence-transformers as it is."""

from __future__ import annotations

import numpy as np
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

import compactor
from tests.consumers.folders import save_text_model

SENTENCES = [
    "a charming and often affecting journey .",
    "unflinchingly bleak",
    "it is what it is , and no more than that",
]


def test_the_onnx_backend_gives_the_same_embeddings(example_checkpoint, tmp_path):
    bert = save_text_model(tmp_path / "bert", "BertModel", example_checkpoint)
    encoder = Transformer(str(bert), max_seq_length=64)
    masked = SentenceTransformer(modules=[encoder, Pooling(32, pooling_mode="mean"), Normalize()], device="cpu")
    masked.save(str(tmp_path / "masked"))

    artefact = compactor.export(tmp_path / "masked", tmp_path / "compact")
    assert artefact.manifest["task"] == "feature-extraction"

    compact = SentenceTransformer(str(artefact.path), backend="onnx", device="cpu")
    assert [type(module).__name__ for module in compact] == ["Transformer", "Pooling", "Normalize"]
    assert compact.max_seq_length == 64
    np.testing.assert_allclose(compact.encode(SENTENCES), masked.encode(SENTENCES), rtol=1e-4, atol=1e-5)

    int8 = SentenceTransformer(
        str(artefact.path), backend="onnx", device="cpu", model_kwargs={"file_name": "model_quantized.onnx"}
    )
    cosine = (int8.encode(SENTENCES) * masked.encode(SENTENCES)).sum(axis=1)
    assert cosine.min() > 0.99
