"""Images as a model takes them: its image processor, and the columns in which tables name their files."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compactor.companions.files import write_json
from compactor.companions.image_processor import read_image_processor
from compactor.errors import ModelDirectoryError
from compactor.runtime.answers import Refused
from compactor.runtime.image_files import read_image
from compactor.runtime.image_steps import CONFIG, ImageSteps

PATHS = ("image", "path", "file", "image_path", "file_name", "filename")


@dataclasses.dataclass(frozen=True)
class ImageReader:
    """What a model's image processor does; transformers' ``Trainer`` saves it as it would save theirs.

    Attributes:
        settings: All of them, as ``preprocessor_config.json`` holds them.
        steps: What they say is done.
    """

    settings: Mapping[str, Any]
    steps: ImageSteps
    model_input_names: tuple[str, ...] = ("pixel_values",)

    @classmethod
    def open(cls, folder: Path) -> ImageReader:
        """That of the model in ``folder``.

        Raises:
            ModelDirectoryError: It has none, it is damaged, or it makes images of another size than the model takes.
        """
        found = read_image_processor(folder)
        if found is None:
            raise ModelDirectoryError(
                f"there is no {CONFIG}, so nothing says how an image becomes the numbers that the model takes",
                where=str(folder),
                todo="put the model's image processor into its folder (save_pretrained)",
            )
        todo = "change the setting; or take another model"
        return cls(found.settings, ImageSteps.read(found.settings, where=found.where, todo=todo))

    def shape(self, item: Any) -> NDArray[np.uint8] | Refused:
        """The pixels of an image, (3, H, W), before they become numbers of the model; or why it is none."""
        image = read_image(item)
        return image if isinstance(image, Refused) else self.steps.shape(image)

    def values(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """``pixel_values`` (B, 3, H, W) of a batch."""
        return self.steps.values(pixels)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the settings."""
        write_json(Path(folder) / CONFIG, dict(self.settings))
