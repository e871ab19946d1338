"""Adapters, computed weights and weights for other tools: refused by name, with what to do, by export and inspect."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import compactor
from compactor.checkpoint import read_checkpoint
from compactor.errors import ModelDirectoryError
from tests.compactor.checkpoints import config, tensors, write

QUERY = "bert.encoder.layer.0.attention.self.query"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("adapter_config.json", "PEFT adapter"),
        ("adapter_model.safetensors", "PEFT adapter"),
        ("adapter_model.bin", "PEFT adapter"),
        ("pytorch_adapter.bin", "adapters library"),
        ("adapter_fusion_config.json", "adapter fusion"),
        ("head_config.json", "prediction head of the adapters library"),
    ],
)
def test_an_adapter_beside_the_weights_is_refused(name: str, message: str, tmp_path: Path) -> None:
    write(tmp_path, tensors())
    read_checkpoint(tmp_path)
    (tmp_path / name).write_text("{}")
    for read in (read_checkpoint, compactor.inspect):
        with pytest.raises(ModelDirectoryError, match=message) as error:
            read(tmp_path)
        assert name in error.value.what
        assert error.value.todo and "merge" in error.value.todo


def test_a_folder_with_nothing_but_an_adapter_is_told_from_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    with pytest.raises(ModelDirectoryError, match="PEFT adapter") as error:
        read_checkpoint(tmp_path)
    assert "merge_and_unload()" in str(error.value)


@pytest.mark.parametrize(
    ("names", "message", "todo"),
    [
        ([f"{QUERY}.lora_A.default.weight", f"{QUERY}.lora_B.default.weight"], "PEFT", "merge_and_unload"),
        (["base_model.model." + QUERY + ".lora_A.weight"], "PEFT", "merge_and_unload"),
        ([f"{QUERY}.base_layer.weight"], "PEFT", "merge_and_unload"),
        (["classifier.modules_to_save.default.weight"], "PEFT", "merge_and_unload"),
        (["classifier.original_module.weight"], "PEFT", "merge_and_unload"),
        (["bert.encoder.layer.0.output.adapters.sst.adapter_down.0.weight"], "adapter", "merge_adapter"),
        ([f"{QUERY}.parametrizations.weight.original0"], "weight_norm", "remove_parametrizations"),
        ([f"{QUERY}.weight_g", f"{QUERY}.weight_v"], "weight_norm", "remove_weight_norm"),
        ([f"{QUERY}.weight_u"], "spectral_norm", "remove_spectral_norm"),
        ([f"{QUERY}.weight_orig", f"{QUERY}.weight_mask"], "torch.nn.utils.prune", "prune.remove"),
        ([f"{QUERY}.qweight", f"{QUERY}.qzeros", f"{QUERY}.scales"], "quantized", "fp32"),
        ([f"{QUERY}.SCB"], "quantized", "fp32"),
        ([f"{QUERY}.weight.absmax", f"{QUERY}.weight.quant_map"], "quantized", "fp32"),
        ([f"{QUERY}.weight_scale"], "quantized", "fp32"),
        ([f"{QUERY}.delta_bias"], "differences", "add them"),
        (["_fsdp_wrapped_module._flat_param"], "FSDP flattened", "full state dict"),
    ],
)
@pytest.mark.parametrize("pickled", [False, True], ids=["safetensors", "pickle"])
def test_tensors_that_change_others_are_refused(
    names: list[str], message: str, todo: str, pickled: bool, tmp_path: Path
) -> None:
    weights = {**tensors(), **{name: torch.ones(2, 2) for name in names}}
    (tmp_path / "config.json").write_text(json.dumps(config()))
    if pickled:
        torch.save(weights, tmp_path / "pytorch_model.bin")
    else:
        save_file(weights, tmp_path / "model.safetensors")
    for read in (read_checkpoint, compactor.inspect):
        with pytest.raises(ModelDirectoryError, match=message) as error:
            read(tmp_path, allow_pickle=True)
        assert names[0] in error.value.what
        assert error.value.todo and todo in error.value.todo


def test_a_quantized_matrix_is_told_as_such_before_its_type(tmp_path: Path) -> None:
    write(tmp_path, {**tensors(), f"{QUERY}.qweight": torch.ones(2, 2, dtype=torch.int32)})
    with pytest.raises(ModelDirectoryError, match="quantized model"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("name", "message", "todo"),
    [
        ("tf_model.h5", "TensorFlow", "from_tf=True"),
        ("flax_model.msgpack", "Flax", "from_flax=True"),
        ("zero_to_fp32.py", "DeepSpeed", "zero_to_fp32"),
        ("openvino_model.xml", "OpenVINO", "made from"),
        ("last.ckpt", "training checkpoint", "save_pretrained"),
        ("weights.safetensors", "another name", "model.safetensors"),
    ],
)
def test_weights_for_something_else_are_told_from_none(name: str, message: str, todo: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config()))
    with pytest.raises(ModelDirectoryError, match=r"no weights: neither model\.safetensors nor"):
        read_checkpoint(tmp_path)
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ModelDirectoryError, match=message) as error:
        read_checkpoint(tmp_path)
    assert name in error.value.what
    assert error.value.todo and todo in error.value.todo


def test_other_weights_beside_ours_are_left_alone(tmp_path: Path) -> None:
    write(tmp_path, tensors())
    for name in ("tf_model.h5", "flax_model.msgpack", "pytorch_model.bin", "old.ckpt"):
        (tmp_path / name).write_bytes(b"x")
    assert [file.name for file in read_checkpoint(tmp_path).files] == ["config.json", "model.safetensors"]


def test_a_training_checkpoint_as_the_weights_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config()))
    torch.save({"epoch": {}, "state_dict": tensors()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelDirectoryError, match="as training checkpoints do"):
        read_checkpoint(tmp_path, allow_pickle=True)


def test_code_that_is_not_run_gets_a_note(tmp_path: Path) -> None:
    write(tmp_path, tensors(), config(auto_map={"AutoModel": "modeling.MyModel"}))
    (note,) = read_checkpoint(tmp_path).notes
    assert "'auto_map'" in note
    assert "transformers' own 'bert'" in note


def test_a_config_that_names_another_file_is_refused(tmp_path: Path) -> None:
    write(tmp_path, tensors(), config(transformers_weights="other.safetensors"))
    with pytest.raises(ModelDirectoryError, match=r"'transformers_weights' names a file of its own, 'other\.saf"):
        read_checkpoint(tmp_path)
