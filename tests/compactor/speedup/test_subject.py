"""What a model is judged by: the vectors that sentence-transformers would make of its states, whatever pools them."""

from __future__ import annotations

import json

import pytest
import torch

from compactor.speedup.subject import Subject
from tests.compactor.trainer.tiny import write_model, write_sentences

TYPE = "sentence_transformers.models."


def write_folder(folder, *modules):
    """A folder of a random BERT and modules, each its kind and config."""
    from transformers import BertModel

    write_model(folder)
    BertModel.from_pretrained(folder).save_pretrained(folder)
    entries = [{"idx": 0, "name": "0", "path": "", "type": f"{TYPE}Transformer"}]
    for number, (kind, config) in enumerate(modules, 1):
        name = f"{number}_{kind}"
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(config))
        entries.append({"idx": number, "name": str(number), "path": name, "type": f"{TYPE}{kind}"})
    (folder / "modules.json").write_text(json.dumps(entries))
    return folder


@pytest.mark.parametrize(
    "modules",
    [
        pytest.param([("Pooling", {"pooling_mode_cls_token": True})], id="first"),
        pytest.param([("Pooling", {"pooling_mode_max_tokens": True})], id="highest"),
        pytest.param([("Pooling", {"pooling_mode_lasttoken": True})], id="last"),
        pytest.param(
            [("Pooling", {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True})],
            id="two-joined",
        ),
        pytest.param([("Pooling", {"pooling_mode_mean_tokens": True}), ("Normalize", {})], id="normalized"),
    ],
)
def test_vectors_are_those_of_sentence_transformers(tmp_path, modules):
    library = pytest.importorskip("sentence_transformers")
    sized = [(kind, {"word_embedding_dimension": 32, **config} if config else config) for kind, config in modules]
    folder = write_folder(tmp_path / "model", *sized)
    data = write_sentences(tmp_path / "texts.tsv", 40)
    subject = Subject.open(folder, data, seed=3)
    made = torch.cat(subject.answers(subject.search))
    with torch.no_grad():
        right = library.SentenceTransformer(str(folder), device="cpu")
        texts = [
            right.tokenizer.decode(row[mask.bool()], skip_special_tokens=True)
            for batch in subject.search
            for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
        ]
        expected = right.encode(texts, convert_to_tensor=True).double()
    torch.testing.assert_close(made, expected, atol=1e-5, rtol=1e-5)


def test_what_no_mask_tells_is_the_mean(tmp_path):
    pooling = ("Pooling", {"word_embedding_dimension": 32, "pooling_mode_cls_token": True, "include_prompt": False})
    folder = write_folder(tmp_path / "model", pooling)
    subject = Subject.open(folder, write_sentences(tmp_path / "texts.tsv", 40), seed=3)
    assert not subject.steps
    (first, *_), batch = subject.answers(subject.search[:1])[0], subject.search[0]
    states = subject.model(**batch)["last_hidden_state"][0][batch["attention_mask"][0].bool()]
    torch.testing.assert_close(first, states.mean(0).double())
