"""Encoders of many more families, one dead head and half of the neurons in every layer: all of that goes, exactly."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import transformers

from compactor.exporting.export import export
from compactor.runtime.verification import text_cases
from tests.compactor.exporting.traces import quantize_small_weights
from tests.independence import assert_independent_of_mates
from tests.slow import slow_unless

HEADS, POSITIONS = 4, 40
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": HEADS, "intermediate_size": 48}
TEXT = {**SIZES, "vocab_size": 60, "max_position_embeddings": POSITIONS, "pad_token_id": 0}
TOWER = {**SIZES, "image_size": 16, "patch_size": 8}
GEMMA = {**TEXT, "head_dim": 8, "use_bidirectional_attention": True, "sliding_window": 6}
T5 = {"vocab_size": 60, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": HEADS}
SWIN = {"image_size": 16, "patch_size": 2, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}

# Class, settings, and whether its tokens are packed.
FAMILIES: dict[str, tuple[str, dict[str, Any], bool]] = {
    "t5": ("T5EncoderModel", T5, True),
    "t5-gated": ("MT5EncoderModel", {**T5, "feed_forward_proj": "gated-gelu"}, True),
    "gemma3": ("Gemma3TextModel", GEMMA, True),
    "gemma3-grouped": ("Gemma3TextModel", {**GEMMA, "num_key_value_heads": 2}, True),
    "ultrabert": ("UltrabertForSequenceClassification", TEXT, True),
    "roformer": ("RoFormerForSequenceClassification", TEXT, True),
    "roformer-values": ("RoFormerModel", {**TEXT, "rotary_value": False, "embedding_size": 32}, True),
    "flaubert": (
        "FlaubertForSequenceClassification",
        {"vocab_size": 60, "emb_dim": 32, "n_layers": 2, "n_heads": HEADS, "max_position_embeddings": POSITIONS},
        True,
    ),
    "siglip-text": ("SiglipTextModel", TEXT, False),
    "clip-vision": ("CLIPVisionModel", TOWER, False),
    "dinov2": ("Dinov2Model", {**TOWER, "mlp_ratio": 2}, False),
    "dinov2-registers": ("Dinov2WithRegistersModel", {**TOWER, "mlp_ratio": 2, "num_register_tokens": 3}, False),
    "dinov3": ("DINOv3ViTModel", TOWER, False),
    "swin": ("SwinForImageClassification", SWIN, False),
    "beit": ("BeitForImageClassification", {**TOWER, "use_relative_position_bias": True}, False),
    "vit-oblong": ("ViTForImageClassification", {**TOWER, "image_size": [16, 24]}, False),
}
SETTINGS_OF_ANOTHER = {"t5-gated", "gemma3-grouped", "roformer-values", "dinov2-registers", "vit-oblong"}
ATTENTION_OUTPUT = re.compile(
    r"(attention\.output\.dense|(self_attn|attn|attention)\.(out_proj|o_proj|Wo|o)|SelfAttention\.o|out_lin)\.weight$"
)


def make(family: str) -> Any:
    """A random model, never with a bias of zero."""
    name, settings, _ = FAMILIES[family]
    model_class = getattr(transformers, name, None)
    if model_class is None:
        pytest.skip("this transformers lacks the family")
    if family == "swin" and transformers.__version__.startswith("4."):
        pytest.skip("windows that are shifted are told apart by another Reshape there, and stay")
    torch.manual_seed(0)
    model = model_class(model_class.config_class(**settings)).eval().requires_grad_(False)
    planted = 0
    for key, tensor in model.named_parameters():
        if "bias" in key:
            tensor.normal_(0, 0.2)
        elif tensor.ndim == 2:
            tensor.normal_(0, 0.2)
        if ATTENTION_OUTPUT.search(key):
            heads = tensor.shape[1] // 8
            tensor[:, (heads - 1) * 8 :] = 0
            planted += 1
        elif tensor.ndim == 2 and re.search(r"(fc2|down_proj|wo|lin2|output\.dense)\.weight$", key):
            tensor[:, : tensor.shape[1] // 2] = 0
            planted += 1
    assert planted in (4, 8)
    return model


def expected(layer: dict[str, Any]) -> bool:
    """Whether a sublayer lost what is dead in it."""
    before, after = layer["heads"] if layer["kind"] == "attention" else layer["width"]
    return bool(after == (before - 1 if layer["kind"] == "attention" else before - before // 2))


@pytest.mark.parametrize("family", slow_unless(lambda family: family not in SETTINGS_OF_ANOTHER, FAMILIES))
def test_all_that_is_dead_goes_and_nothing_changes(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, packed = make(family), FAMILIES[family][2]
    model.save_pretrained(tmp_path / "model")
    model = type(model).from_pretrained(tmp_path / "model").eval()  # transformers 4 halves Gemma's window in reading
    quantize_small_weights(monkeypatch)
    result = export(tmp_path / "model", tmp_path / "out", int8="token")

    assert result.manifest["unrecognised"] == []
    layers = result.manifest["layers"]
    assert len(layers) == 2 * sum(layer["kind"] == "attention" for layer in layers) >= 4
    assert all(map(expected, layers)), layers
    assert result.manifest["recipe"]["pack"] == packed

    session = onnxruntime.InferenceSession(tmp_path / "out" / "onnx" / "model.onnx", providers=["CPUExecutionProvider"])
    names = {entry.name for entry in session.get_inputs()}
    compare = compare_images if "pixel_values" in names else compare_texts
    compare(model, session)
    lengths = (9, 9, 9) if family == "siglip-text" else (9, 3, 1, 17, 6)  # which reads the last place, padded or not
    quantized = tmp_path / "out" / "onnx" / "model_quantized.onnx"
    assert_independent_of_mates(quantized, vocabulary=60, lengths=lengths)


def compare_texts(model: Any, session: onnxruntime.InferenceSession) -> None:
    """On every padding, batches of 1 to 8, lengths from 1 to the limit; hidden states where tokens are real."""
    names = tuple(entry.name for entry in session.get_inputs())
    for lengths in ((1,), (2,), (7,), (POSITIONS,)):
        options = {"vocab_size": 60, "max_length": POSITIONS, "pad_token_id": 0, "type_vocab_size": 1}
        for case in text_cases(names, lengths=lengths, **options):
            with torch.no_grad():
                wanted = model(**{name: torch.from_numpy(array) for name, array in case.feeds.items()})
            for output, array in zip(session.get_outputs(), session.run(None, case.feeds), strict=True):
                right = wanted[output.name].numpy()
                real = case.feeds["attention_mask"].astype(bool)
                if right.ndim == 3:
                    array, right = array[real], right[real]
                assert np.abs(array - right).max(initial=0) <= 5e-5 * max(np.abs(right).max(initial=0), 1), case.name


def compare_images(model: Any, session: onnxruntime.InferenceSession) -> None:
    shape = session.get_inputs()[0].shape[1:]
    for batch in (1, 3, 8):
        pixels = torch.randn(batch, *shape, generator=torch.Generator().manual_seed(batch))
        with torch.no_grad():
            wanted = model(pixel_values=pixels)
        for output, array in zip(
            session.get_outputs(), session.run(None, {"pixel_values": pixels.numpy()}), strict=True
        ):
            right = wanted[output.name].numpy()
            assert np.abs(array - right).max() <= 5e-5 * max(np.abs(right).max(), 1)
