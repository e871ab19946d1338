from __future__ import annotations

import json

import numpy as np
import pytest

from compactor.errors import MeasurementError
from compactor.evaluation import vectors as module
from compactor.evaluation.inputs import InputSpec
from compactor.evaluation.texts import VectorTexts
from compactor.evaluation.vectors import (
    COSINE,
    RECALL,
    SAME_HIT,
    SPEARMAN,
    first_hits,
    predict_vectors,
    read_vectors,
    usable_metrics,
)
from compactor.runtime.encoding import Encoded

SPEC = InputSpec(vocabulary=9, task="feature-extraction")


class Tokens:
    """A window of ``count`` real tokens."""

    def __init__(self, count):
        self.ids = self.attention_mask = [1] * count
        self.type_ids = self.special_tokens_mask = [0] * count
        self.offsets = [(0, 0)] * count

    def __len__(self):
        return len(self.ids)


def items(*lengths):
    return [Encoded((Tokens(length),), "") for length in lengths]


def of_pairs(right, documents, scores=None):
    queries = np.arange(len(right))
    places = len(right) + np.arange(documents)
    return VectorTexts(items(*[2] * (len(right) + documents)), queries, places, np.array(right), scores)


def of_texts(count):
    rows = np.arange(count)
    return VectorTexts(items(*[2] * count), rows, rows)


def test_a_vector_is_the_mean_of_the_states_of_its_tokens():
    texts = VectorTexts(items(1, 2), np.arange(2), np.arange(2))
    states = np.zeros((2, 3, 2), np.float32)
    states[0, 0], states[0, 1:] = (3, 4), 99  # behind the end of the text
    states[1, :2] = [[1, 0], [0, 1]]
    found = read_vectors(SPEC, texts, [{"last_hidden_state": states[:1]}, {"last_hidden_state": states[1:]}])
    np.testing.assert_allclose(found, [[0.6, 0.8], [0.5**0.5, 0.5**0.5]], atol=1e-7)


def test_a_graph_that_pools_is_believed():
    outputs = {"last_hidden_state": np.ones((2, 2, 2), np.float32), "sentence_embedding": np.eye(2, dtype=np.float32)}
    np.testing.assert_array_equal(read_vectors(SPEC, of_texts(2), [outputs]), np.eye(2))


def test_the_modules_of_the_folder_make_the_vector(tmp_path):
    modules = [("Transformer", ""), ("Pooling", "1_Pooling")]
    (tmp_path / "modules.json").write_text(
        json.dumps([{"path": path, "type": f"sentence_transformers.models.{name}"} for name, path in modules])
    )
    (tmp_path / "1_Pooling").mkdir()
    settings = {"word_embedding_dimension": 2, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(settings))
    spec = InputSpec(vocabulary=9, task="feature-extraction", folder=tmp_path)
    states = np.array([[[1, 0], [5, 5]], [[0, 2], [5, 5]]], np.float32)
    np.testing.assert_array_equal(read_vectors(spec, of_texts(2), [{"last_hidden_state": states}]), np.eye(2))


@pytest.mark.parametrize(
    ("states", "words"),
    [
        (np.full((2, 2, 2), np.nan, np.float32), "not finite"),
        (np.ones((1, 2, 2), np.float32), "expected outputs of 2 texts, got 1"),
        (np.ones((3, 2, 2), np.float32), "and there are more"),
    ],
)
def test_outputs_that_are_no_vectors_of_the_texts_are_refused(states, words):
    with pytest.raises(MeasurementError, match=words):
        read_vectors(SPEC, of_texts(2), [{"last_hidden_state": states}])


def test_hits_of_queries_and_of_texts_alone(monkeypatch):
    monkeypatch.setattr(module, "_ROWS", 2)  # in several pieces
    vectors = np.array([[1.0, 0], [0, 1], [0.6, 0.8], [0, 1], [1, 0]])
    assert first_hits(vectors, of_pairs([1, 0, 0], 2)) == [1, 0, 0]
    assert first_hits(vectors, of_texts(5)) == [4, 3, 1, 1, 0]  # never itself


def test_which_metrics_a_file_is_good_for():
    assert usable_metrics(of_texts(3)) == (SAME_HIT, COSINE)
    assert usable_metrics(of_pairs([0, 1], 2)) == (RECALL, SAME_HIT, COSINE)
    assert usable_metrics(of_pairs([0, 1], 2, np.array([1.0, 2]))) == (SPEARMAN, SAME_HIT, COSINE)


def test_what_each_metric_compares():
    vectors = np.array([[1.0, 0], [0, 1], [0, 1], [1, 0]])
    texts, base = of_pairs([1, 1], 2, np.array([5.0, 1.0])), np.eye(2)[[0, 0, 1, 0]]
    assert predict_vectors(RECALL, vectors, texts, None) == ([1, 0], [1, 1])
    assert predict_vectors(SPEARMAN, vectors, texts, None) == ([1.0, 0.0], [5.0, 1.0])
    assert predict_vectors(SAME_HIT, vectors, texts, base) == ([1, 0], [1, 1])
    assert predict_vectors(COSINE, vectors, texts, base) == ([1.0, 0.0, 1.0, 1.0], [1.0] * 4)
    assert predict_vectors(COSINE, vectors, texts, base[:, :1]) is None  # another width
    assert predict_vectors(SAME_HIT, vectors, texts, None) is None
    assert predict_vectors(RECALL, vectors, of_texts(4), base) is None
