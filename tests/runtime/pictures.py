"""Images of every kind that people have, as Pillow makes them."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from compactor.exporting.export import export
from tests.compactor import families

MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB", "I;16", "I", "F")


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> Any:
    """(height, width, channels) uint8, with a slope, so that turning it is seen."""
    random = np.random.default_rng(seed)
    slope = np.linspace(0, 150, height)[:, None, None] + np.linspace(0, 50, width)[None, :, None]
    return (slope + random.integers(0, 56, (height, width, channels))).astype(np.uint8)


def picture(height: int, width: int, mode: str = "RGB", seed: int = 0) -> Any:
    """An image in ``mode``."""
    pixels = noise(height, width, seed=seed)
    if mode == "I;16":
        return PIL.Image.fromarray(pixels[..., 0].astype(np.uint16) * 2)  # Pillow cuts off what is above 255
    if mode == "LA":
        return PIL.Image.merge("LA", [PIL.Image.fromarray(pixels[..., each]) for each in (0, 1)])
    if mode == "LAB":
        return PIL.Image.merge("LAB", [PIL.Image.fromarray(pixels[..., each]) for each in range(3)])
    image = PIL.Image.fromarray(pixels)
    if mode in ("1", "I", "F"):
        return image.convert("L").convert(mode)
    if mode == "RGBA":
        image.putalpha(PIL.Image.fromarray(pixels[..., 1]))
        return image
    return image.convert(mode)


def encoded(image: Any, kind: str, **options: Any) -> bytes:
    """The bytes of a file of it."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def image_artefact(folder: Path) -> Path:
    """A small ViT with its image processor, exported into ``folder``."""
    families.build("vit", "ForImageClassification").save_pretrained(folder / "model")
    size = {"height": families.IMAGE, "width": families.IMAGE}
    settings = {"image_processor_type": "ViTImageProcessor", "size": size}
    (folder / "model" / "preprocessor_config.json").write_text(json.dumps(settings))
    return export(folder / "model", folder / "out", precision=["fp32"]).path
