"""An image, wherever it comes from, as upright RGB: what cannot be one is refused with its reason.

As transformers' pipeline reads images: turned as their EXIF data say, the first frame of several, transparency dropped
and every other mode converted by Pillow. Unlike there, nothing is fetched from the web.
"""

from __future__ import annotations

import base64
import binascii
import io
import types
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .answers import Refused
from .errors import ArtefactError

_PROGRAMS = ("EPS", "PS")  # Pillow has Ghostscript run them
_CHANNELS = (1, 3, 4)  # the sizes of an axis that the reference takes for the channels


def pillow() -> types.ModuleType:
    """``PIL.Image``, imported on first use: answering texts needs no Pillow.

    Raises:
        ArtefactError: It is not installed.
    """
    try:
        import PIL.Image
        import PIL.ImageOps
    except ImportError as error:
        raise ArtefactError(
            "images are opened and resized by Pillow, which is not installed", todo="pip install pillow"
        ) from error
    return PIL.Image


def is_image(item: Any) -> bool:
    """Whether ``item`` is one image, and not a sequence of them."""
    if isinstance(item, np.ndarray):
        return item.ndim not in (1, 4)  # a list of anything, and a batch
    return isinstance(item, str | bytes | bytearray | PurePath | pillow().Image)


def read_image(item: Any) -> NDArray[np.uint8] | Refused:
    """The pixels of ``item`` as RGB, (H, W, 3).

    Args:
        item: An image of Pillow; an array (H, W), (H, W, 1) or (H, W, 3) of uint8; the bytes of an image file; or the
            path of one.
    """
    if isinstance(item, np.ndarray):
        return _of_array(item)
    if isinstance(item, bytes | bytearray):
        return _opened(io.BytesIO(item)) if item else Refused("the image is empty: no bytes are in it")
    if isinstance(item, str | PurePath):
        path = _existing(item)
        return path if isinstance(path, Refused) else _opened(path)
    if isinstance(item, pillow().Image):
        return _upright(item)
    return Refused(f"expected an image, got {'nothing' if item is None else type(item).__name__}")


def from_base64(item: Any) -> bytes | Refused:
    """The bytes that a text of base64, or a ``data:`` URL of it, stands for: how a client sends an image."""
    if not isinstance(item, str):
        return Refused(f"expected an image as base64, got {'nothing' if item is None else type(item).__name__}")
    head, comma, body = item.partition(",")
    if comma and not (head.startswith("data:") and head.endswith(";base64")):
        return Refused("expected an image as base64, or as a data: URL in base64")
    try:
        return base64.b64decode("".join((body if comma else item).split()), validate=True)
    except (binascii.Error, ValueError) as error:
        return Refused(f"expected an image as base64: {error}")


def _of_array(array: NDArray[Any]) -> NDArray[np.uint8] | Refused:
    if array.dtype != np.uint8:
        return Refused(f"expected an array of uint8, from 0 to 255, got {array.dtype}")
    if array.ndim not in (2, 3) or 0 in array.shape:
        return Refused(f"expected an array of shape (H, W, 3), (H, W, 1) or (H, W), got {array.shape}")
    if array.ndim == 2:
        array = array[..., None]
    elif array.shape[0] in _CHANNELS:
        return Refused(
            f"of an array of shape {array.shape} the first axis may be the channels: give an image of Pillow"
        )
    if array.shape[2] not in (1, 3):
        return Refused(f"expected 1 or 3 channels as the last axis, got an array of shape {array.shape}")
    return np.ascontiguousarray(np.broadcast_to(array, (*array.shape[:2], 3)))


def _existing(item: str | PurePath) -> Path | Refused:
    """A file that can be opened. Raises nothing, whatever the name."""
    name = str(item)
    shown = repr(name if len(name) <= 80 else f"{name[:77]}...")
    if not name:
        return Refused("the path is empty")
    if isinstance(item, str) and name.lower().startswith(("http://", "https://")):
        return Refused(f"{shown} is a URL, and images are not fetched: give a file, or its bytes")
    if isinstance(item, str) and name.startswith("data:"):
        return Refused("it is a data: URL, where a path was expected: give the bytes that it stands for")
    path = Path(item)
    try:
        if path.is_file():
            return path
        return Refused(f"{shown} is a folder" if path.is_dir() else f"there is no file {shown}")
    except (OSError, ValueError) as error:  # a name that no file can have
        return Refused(f"{shown} is no path: {getattr(error, 'strerror', None) or error}")


def _opened(source: Path | io.BytesIO) -> NDArray[np.uint8] | Refused:
    try:
        with pillow().open(source) as image:
            return _upright(image)
    except Exception as error:  # of a damaged file Pillow's decoders raise what they like
        return _unreadable(error)


def _upright(image: Any) -> NDArray[np.uint8] | Refused:
    import PIL.ImageOps

    if image.format in _PROGRAMS:
        return Refused("it is PostScript, a program, and is not run: save it as PNG")
    if 0 in image.size:
        return Refused("the image has no pixels")
    limit = pillow().MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        return Refused(f"the image has {image.width} x {image.height} pixels, and Pillow's limit is {limit}")
    try:
        upright = PIL.ImageOps.exif_transpose(image)
        return np.array(upright.convert("RGB"))
    except Exception as error:  # many are decoded only here
        return _unreadable(error)


def _unreadable(error: Exception) -> Refused:
    import PIL.Image

    if isinstance(error, PIL.Image.DecompressionBombError | PIL.Image.DecompressionBombWarning):
        return Refused(f"the image has more pixels than Pillow's limit: {str(error).partition(',')[0]}")
    if isinstance(error, PIL.UnidentifiedImageError):
        return Refused("it is no image, or of a kind that Pillow does not read")
    lines = str(error).strip().splitlines()
    return Refused(f"the image cannot be read: {lines[0] if lines else type(error).__name__}")
