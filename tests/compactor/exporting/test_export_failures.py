"""What cannot be exported ends with its exit code and three clear lines, and leaves nothing behind."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import compactor.passes.pipeline
from compactor.errors import VerificationError
from compactor.exporting.export import export
from compactor.passes.graph import liveness
from compactor.passes.structure import remove_dead_heads
from tests.compactor import families
from tests.compactor.exporting.traces import quantize_small_weights
from tests.compactor.fakes import run


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return families.save(tmp_path_factory.mktemp("pruned") / "bert", "bert")


@pytest.fixture(autouse=True)
def _small_model(monkeypatch: pytest.MonkeyPatch) -> None:
    quantize_small_weights(monkeypatch)


# Numbers


def test_a_pass_that_drops_a_live_head_is_caught(
    bert: Path, ends: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Sabotaged(liveness.HeadLiveness):
        @property
        def heads(self) -> np.ndarray:
            alive = super().heads.copy()
            alive[2:3] = False
            return alive

    real = liveness.head_liveness
    monkeypatch.setattr(
        compactor.passes.graph.blocks,
        "head_liveness",
        lambda *args, **options: Sabotaged(**dataclasses.asdict(real(*args, **options))),
    )
    said = ends(4, bert)
    assert "the compact graph differs from the masked model" in said
    assert "nothing was published" in said
    assert remove_dead_heads.RemoveDeadHeadsPass.name in [str(step) for step in compactor.passes.pipeline.structure()]


def test_int8_beyond_its_budget(bert: Path, ends: Callable[..., str]) -> None:
    said = ends(4, bert, "--int8-budget", "0.000001")
    assert "the int8 graph differs" in said
    assert "--int8-budget" in said


def test_an_operator_that_onnxruntime_would_replace(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Residuals stay Add: ORT fuses them.
    monkeypatch.setattr(compactor.exporting.building, "lowering", lambda *_, **__: [])
    with pytest.raises(VerificationError, match="SkipLayerNormalization"):
        export(bert, tmp_path / "out", precision=["fp32"])
    assert not (tmp_path / "out").exists()


# Model directories


def _change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    path = folder / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def test_a_missing_head_is_named(tmp_path: Path, ends: Callable[..., str]) -> None:
    model = families.save(tmp_path / "model", "bert", "ForMaskedLM")
    said = ends(3, model, "--task", "token-classification")
    assert "the weights lack 'classifier.bias' and 1 more, which 'BertForTokenClassification' needs" in said
    assert "--task" in said


def test_a_task_that_the_family_has_not(tmp_path: Path, ends: Callable[..., str]) -> None:
    said = ends(3, families.save(tmp_path / "model", "vit", "ForImageClassification"), "--task", "fill-mask")
    assert "no 'vit' model for fill-mask" in said


def test_an_unknown_task_is_a_usage_error(bert: Path, ends: Callable[..., str]) -> None:
    assert "'summarization' is not one of" in ends(2, bert, "--task", "summarization")


def test_decoder_only(tmp_path: Path, ends: Callable[..., str]) -> None:
    import transformers

    config = transformers.GPT2Config(vocab_size=30, n_positions=20, n_embd=16, n_layer=1, n_head=2)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "model")
    assert "decoder" in ends(3, tmp_path / "model")


@pytest.mark.parametrize("task", ["feature-extraction", "text-classification"])
def test_decoder_only_whatever_the_task(task: str, tmp_path: Path, ends: Callable[..., str]) -> None:
    import transformers

    config = transformers.GPT2Config(vocab_size=30, n_positions=20, n_embd=16, n_layer=1, n_head=2)
    transformers.GPT2ForSequenceClassification(config).save_pretrained(tmp_path / "model")
    assert "decoder" in ends(3, tmp_path / "model", "--task", task)


def test_encoder_decoder(tmp_path: Path, ends: Callable[..., str]) -> None:
    model = families.save(tmp_path / "model", "bert")
    _change_config(model, model_type="t5", is_encoder_decoder=True)
    assert "encoder-decoder models" in ends(3, model)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"model_type": "mystery"}, "no model type 'mystery'", id="model-type"),
        pytest.param({"architectures": ["BertForNextSentencePrediction"]}, "stands for no task", id="architecture"),
        pytest.param({"architectures": []}, "names no class", id="no-architecture"),
        pytest.param({"is_decoder": True}, "decoder-only", id="decoder"),
        pytest.param({"hidden_act": "mystery"}, "mystery", id="activation"),
        pytest.param({"hidden_dropout_prob": "much"}, "transformers", id="type"),
        pytest.param({"pad_token_id": 10**6}, "adding_idx", id="padding"),
        pytest.param({"vocab_size": 10**7}, "word_embeddings.weight' is 30 x 16", id="vocabulary"),
        pytest.param({"max_position_embeddings": 10**6}, "the config asks for 1000000 x 16", id="positions"),
    ],
)
def test_configs(changes: dict[str, Any], message: str, tmp_path: Path, ends: Callable[..., str]) -> None:
    model = families.save(tmp_path / "model", "bert")
    _change_config(model, **changes)
    assert message in ends(3, model)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(value: float, tmp_path: Path, ends: Callable[..., str]) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors["bert.encoder.layer.2.attention.self.value.weight"][3, 4] = value

    model = families.save(tmp_path / "model", "bert")
    _change_weights(model, spoil)
    assert "attention.self.value.weight' holds NaN or infinity" in ends(3, model)


# Places


def test_what_is_there_already(bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    assert run("export", bert, out, "-q") == 5
    assert run("export", bert, out, "-q", "--overwrite") == 5
    assert "holds no 'compactor.json'" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (out / "mine.txt").read_text() == "mine"


def test_a_failure_keeps_the_old_artefact(bert: Path, tmp_path: Path) -> None:
    export(bert, tmp_path / "out", precision=["fp32"])
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert run("export", bert, tmp_path / "out", "-q", "--overwrite", "--int8-budget", "0.000001") == 4
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert run("export", bert, tmp_path / "out", "-q", "--overwrite", "--precision", "int8") == 0
    assert (tmp_path / "out" / "onnx" / "model_quantized.onnx").is_file()


def test_a_file_on_the_way_to_the_output(bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("mine")
    assert run("export", bert, tmp_path / "file" / "deep" / "out", "-q") == 5
    assert run("export", bert, tmp_path / "file" / "out", "-q") == 5
    said = capsys.readouterr().err
    assert "this is a bug" not in said
    assert "check the path" in said
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_paths_with_spaces_letters_of_all_kinds_and_steps_back(bert: Path, tmp_path: Path) -> None:
    model = shutil.copytree(bert, tmp_path / "a b" / "modèl ☃")
    out = tmp_path / "a b" / "modèl ☃" / ".." / "öut ☃"
    assert run("export", model, out, "-q", "--precision", "fp32") == 0
    assert run("verify", tmp_path / "a b" / "öut ☃", model, "-q") == 0
    assert sorted(path.name for path in (tmp_path / "a b").iterdir()) == ["modèl ☃", "öut ☃"]


def test_inside_the_model_directory(bert: Path) -> None:
    before = sorted(bert.iterdir())
    assert run("export", bert, bert / "onnx", "-q") == 2
    assert sorted(bert.iterdir()) == before


def test_keys_that_run_code_or_choose_a_kernel_are_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = families.save(tmp_path / "model", "bert")
    ran = tmp_path / "ran"
    (model / "evil.py").write_text(f"open({str(ran)!r}, 'w')")
    _change_config(
        model,
        auto_map={"AutoConfig": "evil.Config", "AutoModelForSequenceClassification": "evil.Model"},
        _attn_implementation="flash_attention_2",
        _attn_implementation_internal="evil",
        attn_implementation="flash_attention_2",
    )
    result = export(model, tmp_path / "out", precision=["fp32"])
    config = json.loads((result.path / "config.json").read_text())
    assert not any("attn_implementation" in key or key == "auto_map" for key in config)
    assert config["compactor"]["manifest"] == "compactor.json"
    assert not ran.exists()
    assert not (result.path / "evil.py").exists()
