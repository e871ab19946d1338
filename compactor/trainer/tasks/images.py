"""One label for an image.

Images are opened when their batch is made: a folder of them may be larger than memory. What a file says it is, is
looked at before anything is trained; one that cannot be decoded later ends the run with its name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch

from compactor.errors import UsageError
from compactor.evaluation.datafiles import Table
from compactor.evaluation.images import PATHS, ImageReader
from compactor.runtime.answers import Refused
from compactor.runtime.image_files import pillow
from compactor.trainer.tasks.base import require_column
from compactor.trainer.tasks.labels import LabelledData, read_labels


class Images(Sequence[dict[str, Any]]):
    """Features that are made when they are asked for: ``pixel_values`` (3, H, W) uint8, and ``labels``.

    Args:
        items: What ``read_image`` takes, one an example.
        places: Where each is, for messages.
        labels: Their ids.
        reader: The model's.
        where: The table.
    """

    def __init__(
        self, items: Sequence[Any], places: Sequence[str], labels: Sequence[int], reader: ImageReader, where: str
    ) -> None:
        self._items, self._places, self._labels = items, places, labels
        self._reader, self._where = reader, where

    def __len__(self) -> int:
        return len(self._items)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...

    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...

    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        """One feature, or several.

        Raises:
            UsageError: The image cannot be read.
        """
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        pixels = self._reader.shape(self._items[index])
        if isinstance(pixels, Refused):
            raise _unreadable(pixels.reason, self._places[index], self._where)
        return {"pixel_values": pixels, "labels": self._labels[index]}


@dataclasses.dataclass(frozen=True)
class ImageData(LabelledData):
    """Images and their labels; ``TaskData`` says what the names mean."""

    reader: ImageReader
    task: str = dataclasses.field(default="image-classification", init=False)

    def collate(self, features: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """``pixel_values`` (B, 3, H, W) and ``labels`` (B,)."""
        pixels = self.reader.values(np.stack([feature["pixel_values"] for feature in features]))
        labels = torch.tensor([feature["labels"] for feature in features])
        return {"pixel_values": torch.from_numpy(pixels), "labels": labels}


def open_images(train: Table, evaluation: Table, reader: ImageReader, *, labels: Sequence[str] | None) -> ImageData:
    """Images with their labels.

    Args:
        train: What is learned.
        evaluation: What is scored.
        reader: The model's image processor.
        labels: The names of the model's labels by id; None takes those of the training data.

    Raises:
        UsageError: There are no images or labels, a file is missing or no image, a label is unknown, or all of the
            training data's are the same.
    """
    found = read_labels(train, evaluation, labels)
    sets = [
        Images(_items(table), table.places, ids, reader, str(table.path))
        for table, ids in ((train, found.learned), (evaluation, found.references))
    ]
    return ImageData(sets[0], sets[1], found.references, found.names, found.notes, reader)


def find_image_column(table: Table) -> str | None:
    """The column of the images, or of their paths."""
    return table.find(*PATHS)


def _items(table: Table) -> list[Any]:
    """The images of a table: paths count from its folder. What is in the files is looked at, and not decoded."""
    column = require_column(table, find_image_column(table), f"paths of images: none of {', '.join(PATHS)}")
    items = [table.path.parent / value if isinstance(value, str) else value for value in table.column(column)]
    for item, place in zip(items, table.places, strict=True):
        if not isinstance(item, Path):
            continue
        try:
            with pillow().open(item):
                pass
        except OSError as error:  # Pillow's own for what is no image is one as well
            reason = "there is no such file" if isinstance(error, FileNotFoundError) else "it is no image"
            raise _unreadable(f"{reason}: {item}", place, str(table.path)) from error
    return items


def _unreadable(reason: str, place: str, where: str) -> UsageError:
    return UsageError(f"the image of {place} cannot be read: {reason}", where=where, todo="repair or remove it")
