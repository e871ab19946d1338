"""What stands in the folder of a pruned model: new weights, and all else byte for byte."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file

from compactor.errors import ModelDirectoryError
from compactor.speedup.folders import replace_folder, write_folder
from tests.compactor.speedup import subjects
from tests.compactor.trainer.tiny import write_model

STALE = [
    *("model.onnx", "model.onnx_data", "model.onnx.data", "model_O4.onnx_data_1"),
    *("pytorch_model.bin", "pytorch_model.bin.index.json", "model.safetensors.index.json", "tf_model.h5"),
    *("flax_model.msgpack", "rust_model.ot", "openvino_model.xml", "compactor.json", "training.json", "speedup.json"),
    *("speedup.html", "training.html"),
]
KEPT = ["vocab.txt", "spiece.model", "merges.txt", "README.md", "label.names"]


@pytest.fixture
def model(tmp_path):
    """A model folder with the files that others leave in one."""
    folder = write_model(tmp_path / "model")
    for name in (*STALE, *KEPT):
        (folder / name).write_bytes(f"{name}\r\n".encode())
    for name in ("onnx/model.onnx", "openvino/openvino_model.bin", ".git/config", ".gitattributes"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(name)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "ours": [1]}, indent=5))  # as nobody else writes it
    return folder


def opened(folder, home):
    """A subject whose weights are no longer those of its folder."""
    from transformers import BertForSequenceClassification

    loaded = BertForSequenceClassification.from_pretrained(home).eval().requires_grad_(False)
    loaded.bert.encoder.layer[0].output.dense.weight[:, :7] = 0
    return dataclasses.replace(subjects.subject(loaded), folder=folder, home=home)


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def as_sentences(model, tmp_path, inner):
    """The model as module 0 of a sentence-transformers folder, with two more that have files of their own."""
    folder = tmp_path / "sentences"
    folder.mkdir()
    home = folder / inner
    model.rename(home) if inner else [path.rename(folder / path.name) for path in model.iterdir()]
    modules = [
        {"idx": 0, "name": "0", "path": inner, "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"},
        {"idx": 3, "name": "3", "path": "3_Normalize", "type": "sentence_transformers.models.Normalize"},
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "config_sentence_transformers.json").write_text("{}")
    for name in ("1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors", "2_Dense/old.bin"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return folder, home


def test_files_beside_the_weights_are_copied_as_they_are(model, tmp_path):
    out = tmp_path / "out"
    one = opened(model, model)
    write_folder(one, out)

    plain = {"config.json", "tokenizer.json", "tokenizer_config.json", *KEPT}
    plain |= {"special_tokens_map.json"} & files(model)  # which transformers 4 writes
    assert files(out) == {"model.safetensors", *plain}
    for name in plain:
        assert (out / name).read_bytes() == (model / name).read_bytes()
    saved = load_file(out / "model.safetensors")
    for name, tensor in one.model.state_dict().items():
        if name in saved:
            assert torch.equal(saved[name], tensor)
    assert saved["bert.encoder.layer.0.output.dense.weight"][:, :7].abs().sum() == 0


def test_what_is_written_opens(model, tmp_path):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    one = opened(model, model)
    write_folder(one, tmp_path / "out")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    batch = one.search[0]
    assert torch.equal(again(**batch).logits, one.model(**batch).logits)
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("good film")["input_ids"]


@pytest.mark.parametrize("inner", ["", "0_Transformer"])
def test_modules_of_sentence_transformers_keep_their_weights(model, tmp_path, inner):
    folder, home = as_sentences(model, tmp_path, inner)
    out = tmp_path / "out"
    write_folder(opened(folder, home), out)

    modules = {"1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors", "2_Dense/old.bin"}
    assert modules | {"modules.json", "config_sentence_transformers.json"} <= files(out)
    for name in (*modules, "modules.json"):
        assert (out / name).read_bytes() == (folder / name).read_bytes()
    assert load_file(out / inner / "model.safetensors")
    assert (out / inner / "config.json").read_bytes() == (home / "config.json").read_bytes()
    assert not [name for name in files(out) if "onnx" in name or "openvino" in name]


@pytest.mark.parametrize("path", [".", "./", "0_Transformer", "./0_Transformer", "2_Dense/../0_Transformer", "/etc"])
def test_a_module_that_is_the_model_does_not_bring_the_old_weights_back(model, tmp_path, path):
    folder, home = as_sentences(model, tmp_path, "0_Transformer")
    listed = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps([*listed, {"path": path}, {"path": None}, "odd"]))
    one = opened(folder, home)
    write_folder(one, tmp_path / "out")
    saved = load_file(tmp_path / "out" / "0_Transformer" / "model.safetensors")
    assert saved["bert.encoder.layer.0.output.dense.weight"][:, :7].abs().sum() == 0
    assert not [name for name in files(tmp_path / "out") if "onnx" in name]


@pytest.mark.parametrize("place", ["README.md", "1_Pooling/secret.txt", "0_Transformer/vocab.txt"])
def test_a_link_that_leads_out_is_refused(model, tmp_path, place):
    folder, home = as_sentences(model, tmp_path, "0_Transformer")
    secret = tmp_path / "secret"
    secret.write_text("key")
    (folder / place).unlink(missing_ok=True)
    (folder / place).symlink_to(secret)
    with pytest.raises(ModelDirectoryError, match="leads out of the model directory"):
        write_folder(opened(folder, home), tmp_path / "out")


def test_a_link_within_the_folder_becomes_a_file(model, tmp_path):
    (model / "NOTES.md").symlink_to(model / "README.md")
    write_folder(opened(model, model), tmp_path / "out")
    copied = tmp_path / "out" / "NOTES.md"
    assert not copied.is_symlink() and copied.read_bytes() == (model / "README.md").read_bytes()


def test_a_complete_folder_takes_the_place_of_the_old(tmp_path):
    for name in ("part", "old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text(name)
    replace_folder(tmp_path / "part", tmp_path / "old")
    assert files(tmp_path) == {"old/part"}
    (tmp_path / "part").mkdir()
    replace_folder(tmp_path / "part", tmp_path / "new")
    assert (tmp_path / "new").is_dir()
