"""The files that travel with a model are the right ones, and come from inside the model directory only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from compactor.companions.copying import copy_companions
from compactor.errors import ModelDirectoryError
from compactor.positions import max_tokens

BERT = {"model_type": "bert", "max_position_embeddings": 128}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    return folder


@pytest.fixture
def target(tmp_path: Path) -> Path:
    folder = tmp_path / "target"
    folder.mkdir()
    return folder


def _write(folder: Path, **contents: object) -> None:
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))


def test_copies_what_consumers_read_and_nothing_else(source: Path, target: Path) -> None:
    wanted = ["preprocessor_config.json", "generation_config.json"]
    unwanted = ["README.md", "model.safetensors", "pytorch_model.bin", "modeling_custom.py", "training_args.bin"]
    _write(source, **{name: {} for name in [*wanted, *unwanted]})
    names = copy_companions(source, target, {"model_type": "bert", "compactor": {"schema": 1}})
    assert sorted(names) == sorted(["config.json", *wanted])
    assert sorted(path.name for path in target.iterdir()) == sorted(names)
    assert json.loads((target / "config.json").read_text())["compactor"] == {"schema": 1}


def test_a_model_without_a_tokenizer_gets_none(source: Path, target: Path) -> None:
    assert copy_companions(source, target, {"model_type": "vit"}) == ("config.json",)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (BERT, 128),
        ({"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1}, 512),
        ({"model_type": "mpnet", "max_position_embeddings": 514}, 512),
        ({"model_type": "vit"}, None),
        ({"model_type": "clip", "text_config": {"max_position_embeddings": 77}, "vision_config": {}}, 77),
        ({"max_position_embeddings": -1}, None),
    ],
)
def test_max_tokens_counts_what_fits(config: dict[str, Any], expected: int | None) -> None:
    assert max_tokens(config) == expected


def test_copies_the_modules_of_sentence_transformers(source: Path, target: Path) -> None:
    modules = [{"idx": i, "path": path} for i, path in enumerate(["", "1_Pooling", "2_Dense", "3_Normalize"])]
    _write(
        source,
        **{
            "modules.json": modules,
            "sentence_bert_config.json": {"max_seq_length": 128},
            "config_sentence_transformers.json": {},
            "1_Pooling/config.json": {"pooling_mode_mean_tokens": True},
            "2_Dense/config.json": {},
            "2_Dense/pytorch_model.bin": "pickle",
            "2_Dense/code.py": "print()",
            "unnamed/config.json": {},
        },
    )
    weight = torch.randn(2, 3, dtype=torch.float16)
    save_file({"linear.weight": weight}, source / "2_Dense/model.safetensors")
    names = copy_companions(source, target, BERT)
    assert torch.equal(load_file(target / "2_Dense/model.safetensors")["linear.weight"], weight.float())
    assert {"1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors"} <= set(names)
    assert {path.name for path in (target / "2_Dense").iterdir()} == {"config.json", "model.safetensors"}
    assert (target / "3_Normalize").is_dir()  # the source has none, as git keeps no empty folders
    assert not (target / "unnamed").exists()


def test_pickled_module_weights_need_permission(source: Path, target: Path) -> None:
    _write(source, **{"modules.json": [{"path": "2_Dense"}], "2_Dense/pytorch_model.bin": "pickle"})
    with pytest.raises(ModelDirectoryError, match="pickled"):
        copy_companions(source, target, BERT)
    with pytest.raises(ModelDirectoryError, match="cannot be read"):
        copy_companions(source, target, BERT, allow_pickle=True)
    weight = torch.randn(2, 3)
    torch.save({"linear.weight": weight}, source / "2_Dense/pytorch_model.bin")
    assert "2_Dense/model.safetensors" in copy_companions(source, target, BERT, allow_pickle=True)
    assert torch.equal(load_file(target / "2_Dense/model.safetensors")["linear.weight"], weight)


@pytest.mark.parametrize("path", ["../secret", "/etc", "a/../../b", "..\\x", 3])
def test_refuses_module_paths_that_lead_out(source: Path, target: Path, path: object) -> None:
    _write(source, **{"modules.json": [{"path": path}]})
    with pytest.raises(ModelDirectoryError, match="leads out of the model directory"):
        copy_companions(source, target, BERT)


@pytest.mark.parametrize("name", ["generation_config.json", "modules.json"])
def test_refuses_links_that_lead_out(source: Path, target: Path, name: str, tmp_path: Path) -> None:
    (tmp_path / "id_rsa").write_text("private")
    (source / name).symlink_to(tmp_path / "id_rsa")
    with pytest.raises(ModelDirectoryError, match="leads out of the model directory"):
        copy_companions(source, target, BERT)


def test_refuses_a_module_folder_that_is_a_link_out(source: Path, target: Path, tmp_path: Path) -> None:
    _write(tmp_path / "private", **{"config.json": {}})
    (source / "1_Pooling").symlink_to(tmp_path / "private")
    _write(source, **{"modules.json": [{"path": "1_Pooling"}]})
    with pytest.raises(ModelDirectoryError, match="leads out of the model directory"):
        copy_companions(source, target, BERT)


def test_follows_the_links_of_a_model_cache(tmp_path: Path, target: Path) -> None:
    blobs, snapshot = tmp_path / "models--x" / "blobs", tmp_path / "models--x" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (blobs / "123").write_text("{}\n")
    (snapshot / "generation_config.json").symlink_to("../../blobs/123")
    copy_companions(snapshot, target, BERT)
    assert (target / "generation_config.json").read_text() == "{}\n"
    assert not (target / "generation_config.json").is_symlink()


@pytest.mark.parametrize(("name", "content"), [("modules.json", "["), ("modules.json", "{}")])
def test_refuses_damaged_files(source: Path, target: Path, name: str, content: str) -> None:
    (source / name).write_text(content)
    with pytest.raises(ModelDirectoryError) as caught:
        copy_companions(source, target, BERT)
    assert caught.value.where == str(source / name)


def test_moves_the_transformer_of_an_old_sentence_transformers_folder_to_the_root(tmp_path):
    source, out = tmp_path / "source", tmp_path / "out"
    for folder in (source / "0_Transformer", source / "1_Pooling", out):
        folder.mkdir(parents=True)
    modules = [{"idx": 0, "path": "0_Transformer"}, {"idx": 1, "path": "1_Pooling"}]
    (source / "modules.json").write_text(json.dumps(modules))
    (source / "0_Transformer" / "generation_config.json").write_text("{}")
    (source / "0_Transformer" / "model.safetensors").write_bytes(b"the masked weights, which the graph replaces")
    (source / "1_Pooling" / "config.json").write_text("{}")

    names = copy_companions(source, out, {"model_type": "bert"}, model_folder=source / "0_Transformer")

    assert set(names) == {"config.json", "generation_config.json", "modules.json", "1_Pooling/config.json"}
    assert [module["path"] for module in json.loads((out / "modules.json").read_text())] == ["", "1_Pooling"]
    assert {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()} == set(names)
