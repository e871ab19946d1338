"""CrossEncoders, SparseEncoders and MultiVectorEncoders answer as sentence-transformers does."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from sentence_transformers import CrossEncoder, SparseEncoder
from sentence_transformers.sentence_transformer.modules import (
    Dense,
    Normalize,
    Transformer,
)
from sentence_transformers.sparse_encoder.modules import SpladePooling
from torch import nn

import compactor
import compactor.runtime
from compactor.errors import UsageError
from compactor.runtime.answers import Classified, Refused, Sparse, TokenVectors
from tests.answers.sentences import SIX, TEXTS, WIDTH, load
from tests.slow import slow_after_first

PAIRS = [("is it good ?", TEXTS[0]), ("Who", TEXTS[3]), (TEXTS[1], "no")]


# CrossEncoder


@pytest.mark.parametrize("labels", [1, 3])
@pytest.mark.parametrize(
    "activation", slow_after_first([None, nn.Identity(), nn.Sigmoid(), nn.Tanh(), nn.ReLU(), nn.Softmax(dim=-1)])
)
def test_cross_encoders(base, tmp_path, example_checkpoint, labels, activation):
    if labels == 1 and isinstance(activation, nn.Softmax):
        pytest.skip("of one number it is always 1")
    masked = base("BertForSequenceClassification")
    folder = tmp_path / "base"
    shutil.copytree(masked, folder)
    if labels != 2:
        _relabel(folder, labels)
    made = CrossEncoder(str(folder), device="cpu", **({} if activation is None else {"activation_fn": activation}))
    made.save_pretrained(str(tmp_path / "masked"))
    if isinstance(activation, nn.Softmax):  # it is saved by its class alone
        activation = nn.Softmax(dim=-1)
    reference = CrossEncoder(str(tmp_path / "masked"), device="cpu")
    model = load(tmp_path / "masked", tmp_path / "out")
    assert model.task == "text-classification"
    with _implicit_dimension():
        expected = reference.predict(PAIRS)
    answers = model(PAIRS)
    assert all(isinstance(answer, Classified) for answer in answers)
    found = np.array([answer.scores for answer in answers])
    np.testing.assert_allclose(found.squeeze(-1) if labels == 1 else found, expected, atol=1e-4)


@contextlib.contextmanager
def _implicit_dimension() -> Iterator[None]:
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Implicit dimension")
        yield


def _relabel(folder: Path, labels: int) -> None:

    torch.manual_seed(labels)
    config = transformers.AutoConfig.from_pretrained(folder, num_labels=labels)
    model = transformers.BertForSequenceClassification(config)
    for parameter in model.classifier.parameters():
        nn.init.normal_(parameter)
    for name, parameter in model.named_parameters():
        if "classifier" not in name and parameter.dim() == 2:
            parameter.data.mul_(4)
    model.save_pretrained(folder)


def test_the_default_prompt_of_a_cross_encoder(base, tmp_path):
    folder = tmp_path / "base"
    shutil.copytree(base("BertForSequenceClassification"), folder)
    _relabel(folder, 1)
    made = CrossEncoder(str(folder), device="cpu", prompts={"ask": "is it so that "}, default_prompt_name="ask")
    made.save_pretrained(str(tmp_path / "masked"))
    if not (tmp_path / "masked/modules.json").is_file():
        pytest.skip("this version saves no prompts of a CrossEncoder")
    model = load(tmp_path / "masked", tmp_path / "out")
    reference = CrossEncoder(str(tmp_path / "masked"), device="cpu")
    for options in ({}, {"prompt": ""}):
        found = [answer.score for answer in model(PAIRS, **options)]
        np.testing.assert_allclose(found, reference.predict(PAIRS, **options), atol=1e-4)


# SparseEncoder


@pytest.mark.parametrize("strategy", ["max", "sum"])
@pytest.mark.parametrize("activation", slow_after_first(["log1p_relu", "relu"]))
@pytest.mark.parametrize("active", slow_after_first([7, None]))
def test_sparse_vectors(base, tmp_path, strategy, activation, active):
    from sentence_transformers.sparse_encoder.modules import MLMTransformer

    transformer = MLMTransformer(str(base("BertForMaskedLM")))
    pooling = SpladePooling(strategy, activation)
    made = SparseEncoder(modules=[transformer, pooling], device="cpu", max_active_dims=active)
    made.save_pretrained(str(tmp_path / "masked"))
    reference = SparseEncoder(str(tmp_path / "masked"), device="cpu")
    model = load(tmp_path / "masked", tmp_path / "out")
    expected = reference.encode(TEXTS).to_dense().numpy()
    for answer, row in zip(model(TEXTS), expected, strict=True):
        assert isinstance(answer, Sparse)
        dense = np.zeros_like(row)
        dense[answer.indices] = answer.weights
        np.testing.assert_allclose(dense, row, atol=2e-4)
        assert (np.diff(answer.indices) > 0).all() and (answer.weights > 0).all()
        assert reference.max_active_dims is None or len(answer.indices) == active


# MultiVectorEncoder


@SIX
@pytest.mark.parametrize(
    "expansion",
    [
        None,
        {"strategy": "fixed", "length": 24},
        {"strategy": "fixed", "length": 24, "attend": True},
        {"strategy": "min", "length": 8, "token": "film"},
        {"strategy": "fixed", "length": 6},
    ],
    ids=str,
)
def test_one_vector_a_token(base, tmp_path, expansion):
    from sentence_transformers import MultiVectorEncoder
    from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask

    dense = Dense(WIDTH, 12, bias=False, activation_function=nn.Identity(), module_input_name="token_embeddings")
    made = MultiVectorEncoder(
        modules=[
            Transformer(str(base("BertModel")), document_length=40, query_expansion=expansion),
            dense,
            MultiVectorMask(["(", ")", ",", "!", "film"]),
            Normalize(module_input_name="token_embeddings"),
        ],
        prompts={"query": "ask : ", "document": "read : "},
        device="cpu",
    )
    made.save_pretrained(str(tmp_path / "masked"))
    reference = MultiVectorEncoder(str(tmp_path / "masked"), device="cpu")
    compactor.export(tmp_path / "masked", tmp_path / "out", precision=["fp32"])
    model = compactor.runtime.load(tmp_path / "out", precision="fp32", threads=1, truncate=True)
    for role, encode in (
        ("query", reference.encode_query),
        ("document", reference.encode_document),
        (None, reference.encode),
    ):
        for answer, expected in zip(model(TEXTS, role=role), encode(TEXTS, convert_to_numpy=True), strict=True):
            assert isinstance(answer, TokenVectors)
            np.testing.assert_allclose(answer.vectors, expected, atol=2e-4)
    long = "film and more " * 30
    strict = compactor.runtime.load(tmp_path / "out", precision="fp32", threads=1)
    assert isinstance(strict([long], role="document")[0], Refused)
    expected = reference.encode_document([long], convert_to_numpy=True)[0]
    np.testing.assert_allclose(model([long], role="document")[0].vectors, expected, atol=2e-4)


@SIX
def test_expansion_that_is_not_looked_at_cannot_be_packed(base, tmp_path):
    from sentence_transformers import MultiVectorEncoder
    from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask

    expansion = {"strategy": "fixed", "length": 24}
    made = MultiVectorEncoder(
        modules=[Transformer(str(base("BertModel")), query_expansion=expansion), MultiVectorMask()], device="cpu"
    )
    made.save_pretrained(str(tmp_path / "masked"))
    with pytest.raises(UsageError, match="--pack"):
        compactor.export(tmp_path / "masked", tmp_path / "out", pack=True)
