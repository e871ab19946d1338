"""Encoder-decoders that cannot be exported: other families, damaged folders, settings that the graphs cannot honour."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from compactor.errors import ModelDirectoryError
from compactor.exporting.export import export
from tests.compactor import families
from tests.compactor.exporting import traces
from tests.conftest import PrunedBart


@pytest.fixture(autouse=True)
def _small_model(monkeypatch: pytest.MonkeyPatch) -> None:
    traces.treat_small_as_large(monkeypatch)


@pytest.fixture
def bart(pruned_bart: PrunedBart, tmp_path: Path) -> Path:
    """A copy of the checkpoint, to be spoiled."""
    return Path(shutil.copytree(pruned_bart.folder, tmp_path / "model"))


def change_json(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    path = folder / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize("task", [[], ["--task", "text2text-generation"]])
def test_decoder_only(task: list[str], tmp_path: Path, ends: Callable[..., str]) -> None:
    config = transformers.GPT2Config(vocab_size=30, n_positions=20, n_embd=16, n_layer=1, n_head=2)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "model")
    assert "decoder" in ends(3, tmp_path / "model", *task)


def test_t5_and_why(tmp_path: Path, ends: Callable[..., str]) -> None:
    config = transformers.T5Config(vocab_size=30, d_model=16, d_kv=4, d_ff=24, num_layers=1, num_heads=4)
    transformers.T5ForConditionalGeneration(config).save_pretrained(tmp_path / "model")
    said = ends(3, tmp_path / "model")
    assert "'t5' are not supported: its position bias depends on how many tokens are cached" in said


def test_an_encoder_decoder_for_images(tmp_path: Path, ends: Callable[..., str]) -> None:
    encoder = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=8, patch_size=4
    )
    decoder = transformers.BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    transformers.VisionEncoderDecoderModel(config).save_pretrained(tmp_path / "model")
    assert "'vision-encoder-decoder' are not supported" in ends(3, tmp_path / "model")


@pytest.mark.parametrize(
    ("head", "task", "options"),
    [
        ("ForSequenceClassification", "text-classification", []),
        ("ForQuestionAnswering", "question-answering", []),
        ("Model", "feature-extraction", []),
        ("ForConditionalGeneration", "feature-extraction", ["--task", "feature-extraction"]),
    ],
)
def test_half_of_an_encoder_decoder_is_not_exported(
    head: str, task: str, options: list[str], tmp_path: Path, ends: Callable[..., str]
) -> None:
    model = families.save_encoder_decoder(tmp_path / "model", "bart", head)
    said = ends(3, model, *options)
    assert "is an encoder-decoder, which is exported for text2text-generation" in said
    assert f"not {task}" in said


def test_another_head_than_the_weights_have(bart: Path, ends: Callable[..., str]) -> None:
    said = ends(3, bart, "--task", "text-classification")
    assert "which 'BartForSequenceClassification' needs" in said


def test_an_encoder_is_not_exported_for_generation(tmp_path: Path, ends: Callable[..., str]) -> None:
    model = families.save(tmp_path / "model", "bert")
    assert "no 'bert' model for text2text-generation" in ends(3, model, "--task", "text2text-generation")


@pytest.mark.parametrize("name", ["lm_head.weight", "model.encoder.embed_tokens.weight"])
def test_tied_tables_that_differ(name: str, bart: Path, ends: Callable[..., str]) -> None:
    def untie(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name] = tensors["model.shared.weight"].clone()
        tensors[name][3, 4] = 0

    change_weights(bart, untie)
    said = ends(3, bart)
    assert name in said and "'model.shared.weight'" in said
    assert "differ, but config.json says that they are one tensor" in said


def test_tied_tables_that_are_stored_twice(bart: Path, tmp_path: Path) -> None:
    def store_again(tensors: dict[str, torch.Tensor]) -> None:
        for name in ("lm_head", "model.encoder.embed_tokens", "model.decoder.embed_tokens"):
            tensors[f"{name}.weight"] = tensors["model.shared.weight"].clone()

    change_weights(bart, store_again)
    from compactor.checkpoint import read_checkpoint
    from compactor.importing.encoder_decoder import load_encoder_decoder
    from compactor.tasks import GENERATION, TASKS

    load_encoder_decoder(read_checkpoint(bart), TASKS[GENERATION])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(lambda t: t.pop("model.decoder.layers.1.encoder_attn.k_proj.weight"), "weights lack", id="lack"),
        pytest.param(lambda t: t["model.decoder.layers.0.fc1.weight"].fill_(float("nan")), "NaN", id="nan"),
        pytest.param(
            lambda t: t.update({"model.decoder.layers.0.fc1.weight": torch.ones(7, families.WIDTH)}),
            "'model.decoder.layers.0.fc1.weight' does not have the config's shape",
            id="shape",
        ),
    ],
)
def test_damaged_weights(
    change: Callable[[dict[str, torch.Tensor]], Any], message: str, bart: Path, ends: Callable[..., str]
) -> None:
    change_weights(bart, change)
    assert message in ends(3, bart)


def test_a_file_of_weights_that_ends_early(bart: Path, ends: Callable[..., str]) -> None:
    path = bart / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    ends(3, bart)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decoder_attention_heads": 3}, "not divisible by 3 attention heads"),
        ({"decoder_layers": 3}, "states 3 layers, but the weights hold 2 under 'model.decoder.layers'"),
        ({"decoder_layers": 1}, "states 1 layers, but the weights hold 2 under 'model.decoder.layers'"),
        ({"encoder_layers": 1, "num_hidden_layers": 1}, "hold 2 under 'model.encoder.layers'"),
        ({"decoder_ffn_dim": 10**6}, "decoder's feed-forward size"),
        ({"is_encoder_decoder": "yes"}, "must be true or false"),
        ({"is_encoder_decoder": False}, "no encoder and decoder"),
        ({"activation_function": "mystery"}, "mystery"),
    ],
)
def test_damaged_configs(changes: dict[str, Any], message: str, bart: Path, ends: Callable[..., str]) -> None:
    change_json(bart / "config.json", **changes)
    assert message in ends(3, bart)


# Generation settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cache_implementation": "static"}, "'cache_implementation' is \"static\""),
        ({"cache_implementation": "quantized"}, "'cache_implementation' is \"quantized\""),
        ({"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5}, "'num_beam_groups' is 2"),
        ({"force_words_ids": [[5]], "num_beams": 2}, "'force_words_ids' is [[5]]"),
        ({"constraints": []}, "'constraints' is []"),
        ({"penalty_alpha": 0.6, "top_k": 4}, "'penalty_alpha' is 0.6"),
        ({"dola_layers": "low"}, "'dola_layers' is \"low\""),
        ({"prompt_lookup_num_tokens": 3}, "'prompt_lookup_num_tokens' is 3"),
        ({"assistant_early_exit": 2}, "'assistant_early_exit' is 2"),
        ({"guidance_scale": 1.5}, "'guidance_scale' is 1.5"),
        ({"prefill_chunk_size": 4}, "'prefill_chunk_size' is 4"),
        ({"output_attentions": True, "return_dict_in_generate": True}, "'output_attentions' is true"),
        ({"output_hidden_states": True, "return_dict_in_generate": True}, "'output_hidden_states' is true"),
    ],
)
def test_settings_that_the_graphs_cannot_honour(
    changes: dict[str, Any], message: str, bart: Path, ends: Callable[..., str]
) -> None:
    change_json(bart / "generation_config.json", **changes)
    said = ends(3, bart)
    assert f"{message} in generation_config.json, which the export cannot honour: " in said
    assert "or remove it" in said


def test_without_a_file_the_settings_are_those_of_the_config(bart: Path, ends: Callable[..., str]) -> None:
    (bart / "generation_config.json").unlink()
    change_json(bart / "config.json", num_beam_groups=2, num_beams=4, diversity_penalty=0.5)
    assert "'num_beam_groups' is 2 in config.json" in ends(3, bart)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"forced_bos_token_id": 99}, "'forced_bos_token_id' is 99"),
        ({"eos_token_id": [2, -1]}, "'eos_token_id' is -1"),
        ({"decoder_start_token_id": "start"}, "'decoder_start_token_id' is \"start\""),
    ],
)
def test_special_tokens_that_are_none(
    changes: dict[str, Any], message: str, bart: Path, ends: Callable[..., str]
) -> None:
    change_json(bart / "generation_config.json", **changes)
    assert f"{message} in generation_config.json, which is no token of the model's 30" in ends(3, bart)


def test_a_damaged_file_of_settings(bart: Path, ends: Callable[..., str]) -> None:
    (bart / "generation_config.json").write_text('{"num_beams": ')
    assert "generation_config.json is not valid JSON" in ends(3, bart)


def test_settings_that_transformers_itself_rejects(bart: Path, ends: Callable[..., str]) -> None:
    change_json(bart / "generation_config.json", max_new_tokens=-3)
    assert "transformers rejects generation_config.json: `max_new_tokens` must be greater than 0" in ends(3, bart)


def test_what_leaves_the_text_alone_is_no_reason_to_refuse(bart: Path) -> None:
    from compactor.checkpoint import read_checkpoint
    from compactor.companions.generation_settings import check_generation_settings

    change_json(
        bart / "generation_config.json",
        **{"use_cache": False, "num_beams": 4, "num_beam_groups": 1, "diversity_penalty": 0.0, "penalty_alpha": None},
        **{"guidance_scale": 1.0, "forced_bos_token_id": 0, "eos_token_id": [2, 3], "no_repeat_ngram_size": 3},
        **{"length_penalty": 2.0, "early_stopping": True, "suppress_tokens": [5], "cache_implementation": "dynamic"},
    )
    check_generation_settings(read_checkpoint(bart))


def test_settings_are_read_before_anything_slow_begins(bart: Path, tmp_path: Path) -> None:
    change_json(bart / "generation_config.json", cache_implementation="static")
    said: list[str] = []
    with pytest.raises(ModelDirectoryError):
        export(bart, tmp_path / "out", progress=said.append)
    assert said == ["reading the checkpoint"]
