"""An artefact opens in optimum as it is, whatever the task and layout, and gives the masked model's outputs."""

from __future__ import annotations

import numpy as np
import optimum.onnxruntime
import pytest
import torch
import transformers

import compactor
import compactor.runtime
from tests.consumers.folders import save_image_model, save_text_model

SENTENCES = [
    "a charming and often affecting journey .",
    "unflinchingly bleak",
    "it is what it is , and no more than that",
]

TASKS = [
    ("BertForSequenceClassification", "ORTModelForSequenceClassification", ["logits"]),
    ("BertForTokenClassification", "ORTModelForTokenClassification", ["logits"]),
    ("BertForQuestionAnswering", "ORTModelForQuestionAnswering", ["start_logits", "end_logits"]),
    ("BertForMaskedLM", "ORTModelForMaskedLM", ["logits"]),
    ("BertModel", "ORTModelForFeatureExtraction", ["last_hidden_state"]),
]


def heads_left(manifest):
    return [layer["heads"][1] for layer in manifest["layers"] if layer["kind"] == "attention"]


@pytest.mark.parametrize(("class_name", "consumer", "outputs"), TASKS, ids=[task[1] for task in TASKS])
def test_text_tasks_open_and_agree(class_name, consumer, outputs, example_checkpoint, tmp_path):
    folder = save_text_model(tmp_path / "masked", class_name, example_checkpoint)
    artefact = compactor.export(folder, tmp_path / "compact", precision=["fp32"])
    assert heads_left(artefact.manifest) == [2, 2]

    tokenizer = transformers.AutoTokenizer.from_pretrained(artefact.path)
    feeds = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    with torch.inference_mode():
        expected = getattr(transformers, class_name).from_pretrained(folder).eval()(**feeds)
    model = getattr(optimum.onnxruntime, consumer).from_pretrained(artefact.path)
    got = model(**feeds)

    real = feeds["attention_mask"].bool().numpy()
    for name in outputs:
        want, have = expected[name].numpy(), np.asarray(got[name])
        assert have.shape == want.shape
        if want.shape[:2] == real.shape:  # a token's output counts where there is a token
            want, have = want[real], have[real]
        np.testing.assert_allclose(have, want, rtol=1e-4, atol=1e-4)


def test_images_open_and_agree(tmp_path):
    folder = save_image_model(tmp_path / "masked")
    artefact = compactor.export(folder, tmp_path / "compact", precision=["fp32"])
    assert heads_left(artefact.manifest) == [2, 2]

    pixels = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = transformers.ViTForImageClassification.from_pretrained(folder).eval()(pixel_values=pixels).logits
    model = optimum.onnxruntime.ORTModelForImageClassification.from_pretrained(artefact.path)
    np.testing.assert_allclose(np.asarray(model(pixel_values=pixels).logits), expected.numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layout", ["hf", "flat"])
def test_a_pipeline_reads_both_layouts_and_both_precisions(layout, example_checkpoint, root, tmp_path):
    artefact = compactor.export(example_checkpoint, tmp_path / "compact", layout=layout).path
    lines = (root / "examples" / "sst2.tsv").read_text(encoding="utf-8").split("\n")[1:33]
    sentences = [line.rsplit("\t", 1)[0] for line in lines]
    tokenizer = transformers.AutoTokenizer.from_pretrained(artefact)
    answers = {}
    for file_name in ("model.onnx", "model_quantized.onnx"):
        model = optimum.onnxruntime.ORTModelForSequenceClassification.from_pretrained(artefact, file_name=file_name)
        classify = transformers.pipeline("text-classification", model=model, tokenizer=tokenizer)
        found = classify(sentences, batch_size=8)
        answers[file_name] = [answer["label"] for answer in found]
        if file_name == "model.onnx":  # and what ``runtime.load`` answers, without transformers
            loaded = compactor.runtime.load(artefact, precision="fp32")(sentences)
            assert [answer.label for answer in loaded] == answers[file_name]
            np.testing.assert_allclose(
                [answer.score for answer in loaded], [answer["score"] for answer in found], atol=1e-5
            )

    assert set(answers["model.onnx"]) == {"positive", "negative"}
    assert sum(a != b for a, b in zip(*answers.values(), strict=True)) <= 2  # int8 may change a close call
