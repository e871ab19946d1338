"""The image processor of a checkpoint, as its own library opens it; its settings, written so that nobody need guess.

What a processor does is spread over a file and the defaults of its class, and those differ from one version of
transformers to the next. So transformers opens the folder, an artefact gets every setting that came of that, and what
``runtime`` makes of them is tried against the checkpoint's own processor: on images of odd shapes, pixel by pixel.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compactor.companions.files import read_object, write_json
from compactor.errors import ModelDirectoryError
from compactor.quiet import quiet
from compactor.runtime.answers import Refused
from compactor.runtime.errors import RuntimeSetupError
from compactor.runtime.image_files import pillow, read_image
from compactor.runtime.image_steps import CONFIG, ImageSteps

_WHOLE = "processor_config.json"  # may hold the image processor's settings
_PIXELS = "pixel_values"
_GRAPH = "model.onnx"  # fp32, which every export writes
_INSTEAD = "remove the processor's file to export the graph alone, and give it pixels of your own"
_CLOSE = 1e-6  # as a share of the largest value: float32, computed in the same order
# By mode of Pillow, width and height: wide, high, square, smaller and larger than the usual models' images.
_TRIED = (("RGB", 97, 23), ("L", 31, 75), ("RGBA", 60, 60), ("P", 9, 7), ("RGB", 401, 530))


@dataclasses.dataclass(frozen=True)
class ImageProcessor:
    """A checkpoint's image processor.

    Attributes:
        settings: Every setting, those included that its file leaves to the defaults of its class.
        size: Channels, height and width of the images that it makes.
        where: The file that names it, for messages.
    """

    settings: dict[str, Any]
    size: tuple[int, int, int]
    where: str

    def write(self, directory: Path) -> list[str]:
        """Write its settings beside the graphs in ``directory``, and return the name of the file.

        Raises:
            ModelDirectoryError: The graph takes images of another size.
        """
        size = _image_size(directory)
        if size is None:
            return []
        if self.size != size:
            raise ModelDirectoryError(
                f"the image processor makes images of {_told(self.size)}, and the graph takes {_told(size)}",
                where=self.where,
                todo=f"let its sizes and the config's 'image_size' agree, or {_INSTEAD}",
            )
        write_json(directory / CONFIG, self.settings)
        return [CONFIG]


def read_image_processor(home: Path) -> ImageProcessor | None:
    """Open the image processor of a checkpoint's model, and try it against what is built here; None where it has none.

    Args:
        home: The folder of the checkpoint's model.

    Raises:
        ModelDirectoryError: The processor cannot be opened, or does what is not built.
    """
    stated = _stated(home)
    if stated is None:
        return None
    name, content = stated
    where = str(home / name)
    reference = _open(home, where)
    settings = _resolved(reference, content)
    try:
        steps = ImageSteps.read(settings, where=where, todo=f"change the setting, or {_INSTEAD}")
    except RuntimeSetupError as error:
        raise ModelDirectoryError(error.what, where=where, todo=error.todo) from error
    _try(reference, steps, settings.get("size"), where)
    return ImageProcessor(settings, (3, *steps.size), where)


def _stated(home: Path) -> tuple[str, dict[str, Any]] | None:
    """The file that holds the processor's settings, and what it says of them; None where none does.

    Raises:
        ModelDirectoryError: Two files do, and differ.
    """
    found: dict[str, dict[str, Any]] = {}
    for name in (CONFIG, _WHOLE):
        if (home / name).is_file():
            content = read_object(home, name)
            inner = content if name == CONFIG else content.get("image_processor")
            if isinstance(inner, dict):
                found[name] = {key: value for key, value in inner.items() if key != "processor_class"}
    if len(found) > 1 and found[CONFIG] != found[_WHOLE]:
        raise ModelDirectoryError(
            f"{CONFIG} and {_WHOLE} differ in the image processor, and which of them counts depends on transformers",
            where=str(home),
            todo="remove the one that is wrong",
        )
    return next(iter(found.items()), None)


def _image_size(directory: Path) -> tuple[Any, ...] | None:
    """Channels, height and width of the images that the graph takes; None where it takes none."""
    graph = next((path for path in (directory / "onnx" / _GRAPH, directory / _GRAPH) if path.is_file()), None)
    if graph is None:
        return None
    import onnx

    inputs = onnx.load(graph, load_external_data=False).graph.input
    shape = next((entry.type.tensor_type.shape.dim for entry in inputs if entry.name == _PIXELS), None)
    return None if shape is None else tuple(size.dim_value or size.dim_param for size in shape)[1:]


def _open(home: Path, where: str) -> Any:
    """The processor that works with Pillow, also where torchvision is installed."""
    from transformers import AutoImageProcessor

    _require_pillow(where)
    try:
        with quiet():
            return AutoImageProcessor.from_pretrained(
                str(home), local_files_only=True, trust_remote_code=False, use_fast=False
            )
    except Exception as error:  # transformers raises what it likes for a damaged folder
        raise ModelDirectoryError(
            f"transformers cannot open the image processor: {_line(error)}",
            where=where,
            todo=f"repair the file; or {_INSTEAD}",
        ) from error


def _require_pillow(where: str) -> None:
    """Raises ModelDirectoryError where Pillow is not installed."""
    try:
        pillow()
    except RuntimeSetupError as error:
        raise ModelDirectoryError(error.what, where=where, todo=error.todo) from error


def _resolved(reference: Any, stated: dict[str, Any]) -> dict[str, Any]:
    """Every setting, without pointers to code; a step that is not taken is written as such.

    A step that the file states and the class drops is kept, so that it is refused by its name.
    """
    settings: dict[str, Any] = json.loads(reference.to_json_string())
    settings.pop("auto_map", None)
    settings = {name: value for name, value in stated.items() if name.startswith("do_") and value} | settings
    steps = [name for name in dir(reference) if name.startswith("do_") and getattr(reference, name) is None]
    settings |= dict.fromkeys(steps, False)
    for name in ("do_resize", "do_center_crop", "do_rescale", "do_normalize"):
        settings.setdefault(name, False)  # an attribute that a class lacks is a step that it lacks
    return settings


def _try(reference: Any, steps: ImageSteps, size: Any, where: str) -> None:
    """Raises ModelDirectoryError where an image becomes other pixels here than in the reference."""
    from transformers.image_utils import load_image

    name = type(reference).__name__
    for mode, width, height in (*_TRIED, *_narrow(size)):
        image = _picture(mode, width, height)
        what = f"an image of {width} x {height} pixels in mode {mode}"
        own = read_image(image)
        shaped = own if isinstance(own, Refused) else steps.shape(own)
        if isinstance(shaped, Refused):
            raise ModelDirectoryError(f"{what} is refused: {shaped.reason}", where=where, todo=_INSTEAD)
        try:
            with quiet():
                made = reference(images=load_image(image), return_tensors="np")
        except Exception as error:  # what a processor raises for settings that it cannot follow
            raise ModelDirectoryError(
                f"{name} of transformers fails on {what}: {_line(error)}", where=where, todo=f"repair it; or {_INSTEAD}"
            ) from error
        if not _same(np.asarray(made[_PIXELS])[0], steps.values(shaped)):
            raise ModelDirectoryError(
                f"{name} cannot be carried over: {what} becomes other pixels than in the checkpoint",
                where=where,
                todo=f"remove settings that this version of transformers does not follow; or {_INSTEAD}",
            )


def _narrow(size: Any) -> list[tuple[str, int, int]]:
    """An image whose longer edge is bounded, where one is: a bound that only some versions of transformers keep."""
    edges = size if isinstance(size, dict) else {}
    shortest, longest = edges.get("shortest_edge"), edges.get("longest_edge")
    return [("RGB", 4 * longest // shortest + 4, 2)] if shortest and longest else []


def _same(expected: NDArray[Any], found: NDArray[np.float32]) -> bool:
    if expected.shape != found.shape:
        return False
    largest = max(1.0, float(np.abs(expected).max()))
    return float(np.abs(expected.astype(np.float64) - found).max()) <= _CLOSE * largest


def _picture(mode: str, width: int, height: int) -> Any:
    """Noise over a slope: every filter, crop and channel leaves its trace."""
    random = np.random.default_rng(width)
    channels = {"RGB": 3, "RGBA": 4}.get(mode, 1)
    slope = np.linspace(0, 160, width)[None, :, None] + np.arange(channels) * 20
    pixels = (slope + random.integers(0, 50, (height, width, channels))).astype(np.uint8)
    image = pillow().fromarray(pixels if channels > 1 else pixels[..., 0])
    return image.convert(mode)


def _told(sizes: tuple[Any, ...]) -> str:
    return " x ".join(str(size) for size in sizes)


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [repr(error)])[0]
