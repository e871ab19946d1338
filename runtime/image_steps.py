"""What a checkpoint's image processor does to an image, by its ``preprocessor_config.json``.

    RGB ─▶ resize ─▶ centre crop ─▶ rescale ─▶ normalise ─▶ flip channels
           Pillow    zeros where    float64,    float32      RGB to BGR
                     too small      then float32

The numbers are those of the processors of transformers that work with Pillow. They share the steps; how large an image
becomes, and what else a class does, is its own. An export writes every setting out, and tries what is built here
against the checkpoint's processor.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .answers import Refused
from .errors import ArtefactError
from .image_files import pillow

CONFIG = "preprocessor_config.json"

# What each class does, beside converting to RGB.
_STEPS = frozenset({"do_resize", "do_rescale", "do_normalize"})
_CROPPING = _STEPS | {"do_center_crop"}
_TYPES: Mapping[str, frozenset[str]] = {
    "BeitImageProcessor": _CROPPING,
    "BitImageProcessor": _CROPPING,
    "CLIPImageProcessor": _CROPPING,
    "ConvNextImageProcessor": _STEPS,
    "DeiTImageProcessor": _CROPPING,
    "EfficientNetImageProcessor": _CROPPING,
    "LevitImageProcessor": _CROPPING,
    "MobileNetV1ImageProcessor": _CROPPING,
    "MobileNetV2ImageProcessor": _CROPPING,
    "MobileViTImageProcessor": (_CROPPING | {"do_flip_channel_order"}) - {"do_normalize"},
    "PoolFormerImageProcessor": _CROPPING,
    "PvtImageProcessor": _CROPPING,
    "SegformerImageProcessor": _STEPS,
    "SiglipImageProcessor": _CROPPING,
    "ViTImageProcessor": _CROPPING,
}
# Pixels are RGB before a processor gets them; reducing labels is for maps of them, which no pipeline gives.
_WITHOUT_EFFECT = frozenset({"do_convert_rgb", "do_reduce_labels"})

_FILTERS = range(6)  # Pillow's numbers: nearest, Lanczos, bilinear, bicubic, box, Hamming
_BILINEAR = 2
_WARPED = 384  # ConvNeXT's: an image of at least this many pixels is not cropped
_LARGEST = 1 << 12  # of an edge: more fills the memory with one image
_LEVIT = 256 / 224

Size = tuple[int, int]
"""Height and width."""


@dataclasses.dataclass(frozen=True)
class ImageSteps:
    """The steps of one processor.

    Attributes:
        size: Of every image that comes out.
        target: The size that an image of a size is resized to; None where it is not.
        resample: Pillow's number of the filter.
        crop: What is cut out of its middle; None where nothing is.
        scale: What pixels are multiplied with; None where they are not.
        offset: What is added then.
        norms: Means and deviations of the three channels, in the order in which they are applied.
        flip: Whether the channels change from RGB to BGR.
    """

    size: Size
    target: Callable[[int, int], Size] | None
    resample: int
    crop: Size | None
    scale: float | None
    offset: float
    norms: tuple[tuple[NDArray[np.float32], NDArray[np.float32]], ...]
    flip: bool

    @classmethod
    def read(cls, settings: Mapping[str, Any], *, where: str, todo: str) -> ImageSteps:
        """The steps of a processor whose settings are all written out.

        Args:
            settings: The content of ``preprocessor_config.json``.
            where: The file, for messages.
            todo: What one does about a setting that is not built, likewise.

        Raises:
            ArtefactError: A setting is none of those that are built, or damaged.
        """
        try:
            return _read(settings)
        except _Unknown as error:
            raise ArtefactError(str(error), where=where, todo=todo) from error

    def shape(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8] | Refused:
        """The first half, (H, W, 3) to (3, *size): what can be done in whole numbers, which take little memory."""
        if self.target is not None:
            height, width = self.target(*pixels.shape[:2])
            limit = pillow().MAX_IMAGE_PIXELS
            if min(height, width) < 1 or (limit is not None and height * width > limit):
                return Refused(f"the image is too narrow: resized it would have {height} x {width} pixels")
            image = pillow().fromarray(pixels)
            pixels = np.asarray(image.resize((width, height), resample=self.resample))
        if self.crop is not None:
            pixels = _cropped(pixels, self.crop)
        return np.ascontiguousarray(np.moveaxis(pixels, -1, 0))

    def values(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The second half, on (..., 3, H, W)."""
        if self.scale is None:
            values = pixels.astype(np.float32)
        else:
            values = (pixels.astype(np.float64) * self.scale).astype(np.float32) + np.float32(self.offset)
        for mean, deviation in self.norms:
            values = (values - mean[:, None, None]) / deviation[:, None, None]
        return np.ascontiguousarray(values[..., ::-1, :, :]) if self.flip else values


class _Unknown(Exception):
    """A setting that is not built; its text says which."""


def _read(settings: Mapping[str, Any]) -> ImageSteps:
    kind = settings.get("image_processor_type")
    if not isinstance(kind, str) or kind not in _TYPES:
        raise _Unknown(f"the image processor {kind!r} is not built: there are {', '.join(sorted(_TYPES))}")
    steps = {name: settings[name] for name in settings if name.startswith("do_")}
    for name, value in steps.items():
        if value is not None and not isinstance(value, bool):
            raise _Unknown(f"'{name}' is {value!r}, neither true nor false")
        if value and name not in _TYPES[kind] | _WITHOUT_EFFECT:
            raise _Unknown(f"'{name}' is true, which is not built for {kind}")
    missing = [name for name in sorted(_TYPES[kind]) if name not in steps]
    if missing:  # defaults differ from one version of transformers to the next: an export writes them out
        raise _Unknown(f"'{missing[0]}' is missing, and what it is then depends on who reads it")

    target, fixed = _target(kind, settings) if steps["do_resize"] else (None, None)
    crop = _exact("crop_size", settings.get("crop_size")) if steps.get("do_center_crop") else None
    if kind == "ConvNextImageProcessor" and steps["do_resize"]:
        crop = fixed
    size = crop or fixed
    if size is None:
        what = f"'size' is {settings.get('size')!r}" if steps["do_resize"] else "'do_resize' is false"
        raise _Unknown(f"{what}, so that images keep their shapes, and the graph takes images of one size")

    scale = _number("rescale_factor", settings.get("rescale_factor")) if steps["do_rescale"] else None
    efficient = kind == "EfficientNetImageProcessor"
    norms = []
    if steps.get("do_normalize"):
        norms.append((_channels(settings, "image_mean"), _channels(settings, "image_std")))
    if efficient and settings.get("include_top"):
        norms.append((np.zeros(3, np.float32), _channels(settings, "image_std")))
    resample = settings.get("resample")
    if steps["do_resize"] and resample is not None and (type(resample) is not int or resample not in _FILTERS):
        raise _Unknown(f"'resample' is {resample!r}, which is no filter: Pillow has 0 to {_FILTERS[-1]}")
    return ImageSteps(
        size=size,
        target=target,
        resample=_BILINEAR if resample is None else resample,
        crop=crop,
        scale=scale,
        offset=-1.0 if efficient and settings.get("rescale_offset") else 0.0,
        norms=tuple(norms),
        flip=bool(steps.get("do_flip_channel_order")),
    )


def _target(kind: str, settings: Mapping[str, Any]) -> tuple[Callable[[int, int], Size], Size | None]:
    """How large an image becomes; and that size, where it is the same for all (of ConvNeXT also what is cropped)."""
    size = settings.get("size")
    if not isinstance(size, Mapping):
        raise _Unknown(f"'size' is {size!r}, and names no edge")
    given = {str(name): value for name, value in size.items() if value is not None}
    keys = set(given)
    edges = {name: _pixels(f"size.{name}", value) for name, value in given.items()}
    if kind == "ConvNextImageProcessor":
        if keys != {"shortest_edge"}:
            raise _Unknown(f"'size' is {given!r}, and {kind} takes 'shortest_edge' alone")
        edge = edges["shortest_edge"]
        if edge >= _WARPED:
            return _always(edge, edge), (edge, edge)
        return _shortest(int(edge / _fraction(settings))), (edge, edge)
    if kind == "PoolFormerImageProcessor" and settings.get("crop_pct") is not None:
        fraction = _fraction(settings)
        if keys == {"height", "width"} and edges["height"] != edges["width"]:
            enlarged = int(edges["height"] / fraction), int(edges["width"] / fraction)
            return _always(*enlarged), enlarged
        if keys in ({"height", "width"}, {"shortest_edge"}):
            return _shortest(int(next(iter(edges.values())) / fraction)), None
    if keys == {"height", "width"}:
        return _always(edges["height"], edges["width"]), (edges["height"], edges["width"])
    if kind == "LevitImageProcessor" and keys == {"shortest_edge"}:
        return _shortest(int(_LEVIT * edges["shortest_edge"])), None
    if keys == {"shortest_edge"}:
        return _shortest(edges["shortest_edge"]), None
    if keys == {"shortest_edge", "longest_edge"}:
        return _between(edges["shortest_edge"], edges["longest_edge"]), None
    if keys == {"max_height", "max_width"}:
        return _within(edges["max_height"], edges["max_width"]), None
    raise _Unknown(f"'size' is {given!r}, which is not built for {kind}")


def _always(height: int, width: int) -> Callable[[int, int], Size]:
    return lambda *_: (height, width)


def _shortest(edge: int) -> Callable[[int, int], Size]:
    """The shorter edge becomes ``edge``, and the shape stays."""

    def target(height: int, width: int) -> Size:
        longer = int(edge * max(height, width) / min(height, width))
        return (longer, edge) if width <= height else (edge, longer)

    return target


def _between(edge: int, longest: int) -> Callable[[int, int], Size]:
    """The same, or less where the longer edge would become longer than ``longest``."""

    def target(height: int, width: int) -> Size:
        short, long = min(height, width), max(height, width)
        exact: float = edge
        if float(long) / float(short) * edge > longest:
            exact = longest * float(short) / float(long)
        rounded = round(exact)
        if short == rounded:
            return height, width
        if width < height:
            return int(exact * height / width), rounded
        return rounded, int(exact * width / height)

    return target


def _within(height: int, width: int) -> Callable[[int, int], Size]:
    """As large as fits into ``height`` and ``width``, and the shape stays."""

    def target(from_height: int, from_width: int) -> Size:
        ratio = min(height / from_height, width / from_width)
        return int(from_height * ratio), int(from_width * ratio)

    return target


def _cropped(pixels: NDArray[np.uint8], size: Size) -> NDArray[np.uint8]:
    """The middle of (H, W, 3), with zeros around it where it is too small."""
    found = np.zeros((*size, pixels.shape[2]), pixels.dtype)
    (rows, to_rows), (columns, to_columns) = (_middle(*each) for each in zip(pixels.shape[:2], size, strict=True))
    found[to_rows, to_columns] = pixels[rows, columns]
    return found


def _middle(there: int, wanted: int) -> tuple[slice, slice]:
    """What is taken of an axis, and where it goes: of an odd rest the larger half stands before."""
    first = (there - wanted) // 2
    if first >= 0:
        return slice(first, first + wanted), slice(0, wanted)
    before = math.ceil((wanted - there) / 2)
    return slice(0, there), slice(before, before + there)


def _exact(name: str, size: Any) -> Size:
    given = {key: value for key, value in size.items() if value is not None} if isinstance(size, Mapping) else None
    if given is None or set(given) != {"height", "width"}:
        raise _Unknown(f"'{name}' is {size!r}: it must name 'height' and 'width'")
    return _pixels(f"{name}.height", given["height"]), _pixels(f"{name}.width", given["width"])


def _pixels(name: str, value: Any) -> int:
    if type(value) is not int or not 1 <= value <= _LARGEST:
        raise _Unknown(f"'{name}' is {value!r}, which is no number of pixels from 1 to {_LARGEST}")
    return value


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _Unknown(f"'{name}' is {value!r}, which is no number")
    return float(value)


def _fraction(settings: Mapping[str, Any]) -> float:
    value = _number("crop_pct", settings.get("crop_pct"))
    if not 0.01 <= value <= 100:
        raise _Unknown(f"'crop_pct' is {value:g}, which is no share of an image")
    return value


def _channels(settings: Mapping[str, Any], name: str) -> NDArray[np.float32]:
    """(3,) One number for all channels, or one each."""
    value = settings.get(name)
    values = value if isinstance(value, list | tuple) else [value] * 3
    if len(values) != 3:
        raise _Unknown(f"'{name}' has {len(values)} numbers, and images have 3 channels")
    numbers = np.array([_number(name, each) for each in values], np.float32)
    if name == "image_std" and not numbers.all():
        raise _Unknown("'image_std' holds 0, and pixels are divided by it")
    return numbers
