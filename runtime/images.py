"""Images to batches of pixels, item by item: what cannot be answered is refused with its reason, the rest goes on.

Uses Pillow, and neither torch nor transformers. It stands where ``encoding`` stands for texts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .answers import Refused
from .encoding import Encoded
from .errors import ArtefactError
from .folder import read_object
from .image_files import pillow, read_image
from .image_steps import CONFIG, ImageSteps

IMAGES, IMAGE_VECTORS = "image-classification", "image-feature-extraction"
IMAGE_TASKS = (IMAGES, IMAGE_VECTORS)
_PATCH = 16  # pixels a side, where a config does not say
_TYPES: Mapping[str, type[np.generic]] = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


@dataclasses.dataclass(frozen=True)
class ImageWindow:
    """One image as the model takes it, less the arithmetic, which waits for its batch: bytes are small.

    Attributes:
        pixels: (3, H, W) uint8.
        positions: How many the model makes of it, which is what a batch is measured by.
    """

    pixels: NDArray[np.uint8]
    positions: int

    def __len__(self) -> int:
        return self.positions


class ImageEncoder:
    """A model's image processor. It is never changed once it is open, so threads may share it.

    Args:
        folder: Where its settings lie.
        config: The model's config, which says how large its patches are.

    Raises:
        ArtefactError: There are no settings, they are damaged or not built, or Pillow is not installed.
    """

    limit = None

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        pillow()
        settings = read_object(
            folder / CONFIG,
            missing=f"there is no {CONFIG}: nothing says how an image becomes the numbers that the graph takes",
            todo="put the checkpoint's image processor into its folder (save_pretrained), and export it again",
        )
        self.steps = ImageSteps.read(
            settings,
            where=str(folder / CONFIG),
            todo="export the model again; or run the graph with pixels of your own",
        )
        patch = config.get("patch_size")
        side = patch if type(patch) is int and patch > 0 else _PATCH
        height, width = self.steps.size
        self._positions = max(1, height // side) * max(1, width // side)

    def encode(self, items: Sequence[Any], *, prompt: str = "", role: str | None = None) -> list[Encoded | Refused]:
        """One entry an item, in their order.

        Args:
            items: What ``read_image`` takes. A ``Refused`` stays one.
            prompt: None: it is for texts.
            role: None: likewise.

        Raises:
            ValueError: A prompt or a role was asked for.
        """
        if prompt or role is not None:
            raise ValueError("prompts and roles are for texts, and this model takes images")
        return [item if isinstance(item, Refused) else self._encode(item) for item in items]

    def _encode(self, item: Any) -> Encoded | Refused:
        image = read_image(item)
        pixels = image if isinstance(image, Refused) else self.steps.shape(image)
        if isinstance(pixels, Refused):
            return pixels
        windows: tuple[Any, ...] = (ImageWindow(pixels, self._positions),)
        return Encoded(windows, "")


class ImageCollator:
    """Stacks images to one batch.

    Args:
        inputs: Those of the graph, as a session describes them.
        steps: What the processor does.

    Raises:
        ArtefactError: The graph takes something else than these images.
    """

    def __init__(self, inputs: Sequence[Any], steps: ImageSteps) -> None:
        self._steps = steps
        foreign = [entry.name for entry in inputs if entry.name != "pixel_values"]
        if foreign or not inputs:
            raise ArtefactError(
                f"the graph takes '{foreign[0] if foreign else 'nothing'}', which no image gives",
                todo="run the graph with compactor.runtime.sessions",
            )
        self._name, self._type = inputs[0].name, _TYPES.get(inputs[0].type, np.float32)
        wanted = tuple(inputs[0].shape)[1:]
        made = (3, *steps.size)
        if len(wanted) != 3 or any(
            type(size) is int and size not in (-1, made[axis]) for axis, size in enumerate(wanted)
        ):
            raise ArtefactError(
                f"{CONFIG} makes images of {_told(made)}, and the graph takes {_told(wanted)}",
                todo="export the model again",
            )

    def __call__(self, windows: Sequence[ImageWindow]) -> dict[str, NDArray[Any]]:
        """``pixel_values`` of shape (B, 3, H, W)."""
        pixels = np.stack([window.pixels for window in windows])
        return {self._name: self._steps.values(pixels).astype(self._type, copy=False)}


def _told(sizes: Sequence[Any]) -> str:
    return " x ".join(str(size) for size in sizes)
