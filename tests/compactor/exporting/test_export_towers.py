"""Image classifiers whose image tower has a config of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import transformers

from compactor.exporting.export import export
from tests.slow import slow_after_first

SIZE, IMAGE = 8, 16
TOWER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": IMAGE,
    "patch_size": 8,
}


def make(family: str) -> Any:
    """A random model of which head 2 and five neurons of every layer are dead."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(vision_config=TOWER, num_labels=3)
    model = getattr(transformers, f"{family}ForImageClassification")(config).eval().requires_grad_(False)
    for name, tensor in model.named_parameters():
        if name.endswith("bias"):
            tensor.normal_(0, 0.05)
        if ".v_proj." in name:
            tensor[2 * SIZE : 3 * SIZE] = 0
        if name.endswith("fc2.weight"):
            tensor[:, :5] = 0
    return model


@pytest.mark.parametrize("family", slow_after_first(["Siglip", "CLIP"]))
def test_the_size_of_images_is_found_in_the_towers_config(family: str, tmp_path: Path) -> None:
    model = make(family)
    model.save_pretrained(tmp_path / "model")
    result = export(tmp_path / "model", tmp_path / "out")
    layers = result.manifest["layers"]
    assert [layer["heads"] for layer in layers if layer["kind"] == "attention"] == [[4, 3]] * 2
    assert [layer["width"] for layer in layers if layer["kind"] == "feed_forward"] == [[48, 43]] * 2
    session = onnxruntime.InferenceSession(result.path / "onnx" / "model.onnx", providers=["CPUExecutionProvider"])
    for batch in (1, 5):
        pixels = np.random.default_rng(batch).standard_normal((batch, 3, IMAGE, IMAGE)).astype(np.float32)
        found = session.run(None, {"pixel_values": pixels})[0]
        expected = model(torch.from_numpy(pixels)).logits.numpy()
        np.testing.assert_allclose(found, expected, atol=1e-5)
