"""Vectors of images and of texts by models of their own kind: towers of CLIP and SigLIP, DINOv2."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import compactor
import compactor.runtime
from compactor.runtime.answers import Embedded, Refused
from compactor.runtime.serving import protocol
from tests.consumers.folders import TOKENIZER_FILES
from tests.runtime.pictures import picture
from tests.slow import slow_after_first

TEXTS = ["a gripping film", "Two  spaces, and (punctuation)!", "bleak", "it is what it is , and no more than that"]
SIZES = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32}
SEPARATOR = "[SEP]"


def build(class_name: str, config: Any, folder: Path) -> Any:
    """A random model with biases, as transformers saves it."""
    torch.manual_seed(1)
    model = getattr(transformers, class_name)(config).eval().requires_grad_(False)
    for name, tensor in model.named_parameters():
        if name.endswith("bias") or "position" in name:
            tensor.normal_(0, 0.2)
    model.save_pretrained(folder)
    return model


def load(folder: Path) -> compactor.runtime.Model:
    out = folder.with_name("out")
    compactor.export(folder, out, precision=["fp32"])
    return compactor.runtime.load(out, precision="fp32", threads=1)


def with_tokenizer(folder: Path, source: Path) -> Any:
    for name in TOKENIZER_FILES:
        shutil.copy(source / name, folder / name)
    return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("class_name", slow_after_first(["CLIPTextModelWithProjection", "CLIPTextModel"]))
def test_a_text_of_clip(class_name: str, tmp_path: Path, example_checkpoint: Path) -> None:
    """Its vector is made at the token that ends a text: the projected one, else the pooled one."""
    ending = transformers.AutoTokenizer.from_pretrained(example_checkpoint).convert_tokens_to_ids(SEPARATOR)
    config = transformers.CLIPTextConfig(
        vocab_size=13458, intermediate_size=48, max_position_embeddings=40, eos_token_id=ending, pad_token_id=0, **SIZES
    )
    model = build(class_name, config, tmp_path / "model")
    tokenizer = with_tokenizer(tmp_path / "model", example_checkpoint)
    loaded = load(tmp_path / "model")
    given = tokenizer(TEXTS, padding=True, return_tensors="pt")
    result = model(input_ids=given.input_ids, attention_mask=given.attention_mask)
    expected = result.text_embeds if class_name.endswith("WithProjection") else result.pooler_output
    for answer, vector in zip(loaded(TEXTS), expected.numpy(), strict=True):
        assert isinstance(answer, Embedded)
        np.testing.assert_allclose(answer.vector, vector, atol=1e-5)


def test_a_text_of_siglip_is_filled_up(tmp_path: Path, example_checkpoint: Path) -> None:
    """Its vector is the state of the last position, of texts that are all padded to the longest that the model takes.

    SigLIP's processor makes no mask, so the padding is read. A text's vector must not depend on its neighbours.
    """
    config = transformers.SiglipTextConfig(
        vocab_size=13458, intermediate_size=48, max_position_embeddings=24, pad_token_id=1, **SIZES
    )
    model = build("SiglipTextModel", config, tmp_path / "model")
    tokenizer = with_tokenizer(tmp_path / "model", example_checkpoint)
    loaded = load(tmp_path / "model")
    given = tokenizer(TEXTS, padding="max_length", max_length=24, return_tensors="pt")
    expected = model(input_ids=given.input_ids).pooler_output.numpy()
    for answer, vector, text in zip(loaded(TEXTS), expected, TEXTS, strict=True):
        assert isinstance(answer, Embedded)
        np.testing.assert_allclose(answer.vector, vector, atol=1e-5)
        np.testing.assert_allclose(loaded(text).vector, vector, atol=1e-5)


def test_images_of_another_size_than_in_training(tmp_path: Path) -> None:
    """DINOv2's processor makes smaller images than its config says, here of another shape too."""
    config = transformers.Dinov2WithRegistersConfig(
        mlp_ratio=2, image_size=40, patch_size=8, num_register_tokens=2, **SIZES
    )
    model = build("Dinov2WithRegistersModel", config, tmp_path / "model")
    settings = {
        "image_processor_type": "BitImageProcessor",
        "size": {"shortest_edge": 30},
        "crop_size": {"height": 16, "width": 24},
        "do_center_crop": True,
        "resample": 3,
    }
    (tmp_path / "model" / "preprocessor_config.json").write_text(json.dumps(settings))
    loaded = load(tmp_path / "model")
    assert (loaded.task, loaded.answer_type) == ("image-feature-extraction", Embedded)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "model", use_fast=False)
    images = [picture(33, 50), picture(97, 45)]
    *found, refused = loaded([*images, b"no image"])
    for answer, image in zip(found, images, strict=True):
        expected = model(**processor(images=image, return_tensors="pt")).pooler_output[0].numpy()
        np.testing.assert_allclose(answer.vector, expected, atol=1e-5)
    assert isinstance(refused, Refused)
    described = protocol.describe_model("dino", loaded.task, loaded.answer_type, loaded.labels)
    assert [entry["name"] for entry in described["inputs"]] == ["image"]


def test_a_model_that_pools_nothing_gives_the_mean_of_its_states(tmp_path: Path) -> None:
    config = transformers.ViTConfig(intermediate_size=48, image_size=16, patch_size=8, **SIZES)
    model = build("ViTForImageClassification", config, tmp_path / "model")
    settings = {"image_processor_type": "ViTImageProcessor", "size": {"height": 16, "width": 16}, "resample": 3}
    (tmp_path / "model" / "preprocessor_config.json").write_text(json.dumps(settings))
    compactor.export(tmp_path / "model", tmp_path / "out", precision=["fp32"], task="feature-extraction")
    loaded = compactor.runtime.load(tmp_path / "out", precision="fp32", threads=1)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "model", use_fast=False)
    expected = model.vit(**processor(images=picture(33, 50), return_tensors="pt")).last_hidden_state[0].mean(0).numpy()
    np.testing.assert_allclose(loaded(picture(33, 50)).vector, expected, atol=1e-5)
