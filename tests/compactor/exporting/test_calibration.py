"""The inputs by which int8 is chosen."""

from __future__ import annotations

import json

import numpy as np
import pytest

from compactor.errors import UsageError
from compactor.evaluation.inputs import InputSpec
from compactor.exporting import calibration as module
from compactor.exporting.calibration import LEAST, MOST, read_calibration
from tests.compactor.evaluation.texts import CONFIG, ids, write_tokenizer

WORDS = ("good", "bad", "the film", "not good", "it is bad .")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return write_tokenizer(tmp_path_factory.mktemp("model"))


@pytest.fixture
def read(tmp_path, home):
    def read(rows, task="text-classification"):
        path = tmp_path / "texts.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)), "utf-8")
        return read_calibration(path, InputSpec.from_config(CONFIG, task=task, folder=home))

    return read


def rows_of(found):
    return [
        row[mask == 1].tolist()
        for batch in found.batches
        for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]


def test_texts_and_their_labels(read):
    found = read([{"text": WORDS[i % 5], "label": i % 2} for i in range(40)])
    assert (found.count, found.file) == (40, "texts.jsonl")
    assert found.labels.tolist() == [0, 1] * 20
    assert rows_of(found)[2] == ids("[CLS] the film [SEP]")
    assert read([{"text": WORDS[i % 5]} for i in range(40)]).labels is None


def test_a_long_file_is_looked_at_in_places_that_are_spread_over_it(read, monkeypatch):
    found = read([{"text": "good" if i < 900 else "bad ."} for i in range(1000)])
    assert found.count == MOST and rows_of(found)[-1] == ids("[CLS] bad . [SEP]")
    monkeypatch.setattr(module, "_MOST_TOKENS", 90)
    fewer = read([{"text": "good"} for _ in range(1000)])
    assert LEAST <= fewer.count <= 30


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"text": "good", "label": 1}], "1 texts are too few"),
        ([{"text": "good"}] * (LEAST - 1), "too few"),
        ([{"text": "good", "label": 7}] * 30, "none of the model's"),
        ([{"title": "good"}] * 30, "no column of text"),
    ],
)
def test_what_cannot_be_used_is_refused(read, rows, words):
    with pytest.raises(UsageError, match=words):
        read(rows)


def test_pairs_of_an_embedding_model_are_searches(read):
    rows = [{"query": WORDS[i % 5], "passage": f"{WORDS[i % 4]} {'a ' * (i // 4)}"} for i in range(24)]
    found = read(rows, task="feature-extraction")
    assert len(found.queries) == 24 and len(found.documents) == len({row["passage"] for row in rows})
    assert found.count == len(found.queries) + len(found.documents)
    everything = rows_of(found)
    assert everything[found.queries[1]] == ids("[CLS] bad [SEP]")
    assert everything[found.documents[0]] == ids("[CLS] good [SEP]")


def test_random_inputs_where_there_is_no_file(home):
    found = read_calibration(None, InputSpec.from_config(CONFIG, task="text-classification", folder=home))
    assert found.file is None and found.count == MOST // 2
    assert max(map(len, rows_of(found))) <= CONFIG["max_position_embeddings"]
    images = read_calibration(None, InputSpec(0, image=(3, 8, 8)))
    assert np.concatenate([batch["pixel_values"] for batch in images.batches]).shape == (images.count, 3, 8, 8)
