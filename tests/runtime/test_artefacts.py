"""What a folder says of itself, and which of its graphs is chosen on which machine."""

from __future__ import annotations

import dataclasses
import json

import pytest

from compactor.runtime import artefacts
from compactor.runtime.artefacts import Artefact
from compactor.runtime.errors import ArtefactError
from compactor.runtime.machine import describe_machine


@pytest.fixture
def folder(tmp_path):
    manifest = {
        "task": "text-classification",
        "target": "cpu",
        "stages": [
            {"name": "masked", "file": None},
            {"name": "compact", "file": "onnx/model.onnx"},
            {"name": "int8", "file": "onnx/model_quantized.onnx"},
        ],
    }
    (tmp_path / "compactor.json").write_text(json.dumps(manifest))
    (tmp_path / "config.json").write_text(json.dumps({"id2label": {"1": "good", "0": "bad"}}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 128}))
    return tmp_path


def change(folder, **fields):
    path = folder / "compactor.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def machine(*isa):
    return dataclasses.replace(describe_machine(), isa=isa)


def test_what_a_folder_says(folder):
    found = Artefact.open(folder)
    assert found.labels == ("bad", "good")
    assert found.graphs == {"fp32": "onnx/model.onnx", "int8": "onnx/model_quantized.onnx"}
    assert found.max_tokens == 128 and not found.generates


def test_the_shorter_limit_counts(folder):
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 64}))
    assert Artefact.open(folder).max_tokens == 128  # sentence-transformers' file, in a folder that is none of its own
    (folder / "modules.json").write_text("[]")
    assert Artefact.open(folder).max_tokens == 64


@pytest.mark.parametrize(
    ("isa", "precision", "words"),
    [
        (("avx2", "avx512f", "avx512_vnni"), "int8", "VNNI"),
        (("avx2", "avx_vnni"), "int8", "VNNI"),
        (("amx_int8", "avx512_vnni"), "int8", "AMX"),
        (("asimddp", "i8mm"), "int8", "i8mm"),
        (("avx2",), "fp32", "saturate"),  # an artefact of an earlier version, whose weights fill 8 bits
        ((), "fp32", "prefer fp32"),
        (None, "fp32", "unknown"),
    ],
)
def test_int8_is_chosen_where_its_products_are_exact(folder, isa, precision, words):
    here = dataclasses.replace(describe_machine(), isa=isa)
    choice = Artefact.open(folder).choose(machine=here)
    assert (choice.precision, choice.provider) == (precision, "cpu")
    assert words in choice.reason


@pytest.mark.parametrize(
    ("isa", "precision"),
    [(("avx2",), "int8"), (("avx2", "avx512f"), "int8"), (("avx512_vnni",), "int8"), ((), "fp32"), (None, "fp32")],
)
def test_weights_that_cannot_saturate_are_chosen_without_vnni(folder, isa, precision):
    stages = json.loads((folder / "compactor.json").read_text())["stages"]
    stages[-1]["int8"] = {"scales": "tensor", "saturates": False}
    change(folder, stages=stages)
    here = dataclasses.replace(describe_machine(), isa=isa)
    assert Artefact.open(folder).choose(machine=here).precision == precision


@pytest.mark.parametrize("stated", ["no", {"saturates": True}, {"saturates": 0}, {}])
def test_what_a_stage_does_not_say_clearly_is_not_believed(folder, stated):
    stages = json.loads((folder / "compactor.json").read_text())["stages"]
    stages[-1]["int8"] = stated
    change(folder, stages=stages)
    assert Artefact.open(folder).saturates


def test_what_is_asked_for_is_taken(folder):
    choice = Artefact.open(folder).choose("fp32", machine=machine("avx512_vnni"))
    assert (choice.precision, choice.reason) == ("fp32", "as asked")
    with pytest.raises(ArtefactError, match="holds no fp16 graph, only fp32, int8"):
        Artefact.open(folder).choose("fp16")


def test_a_gpu_artefact_goes_to_the_gpu_if_there_is_one(folder, monkeypatch):
    stages = [{"name": "compact", "file": "model.onnx"}, {"name": "fp16", "file": "model_fp16.onnx"}]
    change(folder, target="cuda", stages=stages)
    monkeypatch.setattr(artefacts, "not_run_reason", lambda name: "not run: no CUDA device")
    choice = Artefact.open(folder).choose()
    assert (choice.precision, choice.provider) == ("fp32", "cpu") and "no CUDA device" in choice.reason
    monkeypatch.setattr(artefacts, "not_run_reason", lambda name: None)
    choice = Artefact.open(folder).choose()
    assert (choice.precision, choice.provider) == ("fp16", "cuda")
    assert Artefact.open(folder).choose(provider="cpu").provider == "cpu"


def test_an_encoder_decoder_is_told_by_its_graphs(folder):
    stages = [
        {"name": "compact", "file": f"onnx/{graph}.onnx", "graph": graph}
        for graph in ("encoder_model", "decoder_model", "decoder_with_past_model")
    ]
    change(folder, stages=stages)
    found = Artefact.open(folder)
    assert found.generates and found.graphs == {"fp32": "onnx/encoder_model.onnx"}


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: (folder / "compactor.json").unlink(), "no compactor.json"),
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (lambda folder: (folder / "compactor.json").write_text("{"), "damaged"),
        (lambda folder: (folder / "compactor.json").write_text("[]"), "no JSON object"),
        (lambda folder: (folder / "config.json").write_text("[" * 100_000), "damaged"),
        (lambda folder: (folder / "config.json").write_text('{"id2label": {"x": "y"}}'), "id2label"),
        (lambda folder: change(folder, stages=[]), "names no graph"),
        (lambda folder: change(folder, stages="all"), "names no graph"),
        (lambda folder: change(folder, stages=[{"name": "compact", "file": "../../secret"}]), "outside"),
        (lambda folder: change(folder, stages=[{"name": "compact", "file": "/etc/passwd"}]), "outside"),
    ],
)
def test_what_is_no_artefact(folder, spoil, words):
    spoil(folder)
    with pytest.raises(ArtefactError, match=words):
        Artefact.open(folder)


def test_no_folder(tmp_path):
    with pytest.raises(ArtefactError, match="no such folder"):
        Artefact.open(tmp_path / "nothing")
