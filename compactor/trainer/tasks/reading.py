"""Read training data: files that ``compactor bench`` reads, folders of the ``datasets`` library, folders of images.

Of a folder with several splits one is named behind a colon: ``data/squad:train``. Images lie in a folder for each
label, ``train/cat/1.jpg``.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

from compactor.errors import UsageError
from compactor.evaluation.datafiles import FORMATS, Table, read_table

_IMAGES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
_SPLITS = "dataset_dict.json"  # what the library writes for a folder of splits
_STATE = "state.json"  # and for a single data set


def read_examples(path: Path) -> Table:
    """The rows of a file, or of a folder of the ``datasets`` library, or of one of its splits, or of images.

    Args:
        path: The file, ``FOLDER`` or ``FOLDER:SPLIT``; a folder of images gives rows of ``image`` and ``label``.

    Raises:
        UsageError: It cannot be read, holds no rows, or the split is missing or unknown; or the library is missing.
    """
    folder, split = path, ""
    if not path.exists() and ":" in path.name:
        before, _, split = str(path).rpartition(":")
        folder = Path(before)
    if not folder.is_dir():
        return read_table(path)
    if (folder / _SPLITS).is_file():
        folder = folder / _choose_split(folder, split)
    elif not (folder / _STATE).is_file():
        if not split and (images := _read_images(folder)) is not None:
            return images
        raise UsageError(
            "is a folder, but not one that the datasets library saved, nor one of images in a folder for each label",
            where=str(folder),
            todo=f"save it with save_to_disk, or give a file: {FORMATS}",
        )
    elif split:
        raise UsageError(f"there is no split '{split}': it is one data set", where=str(folder), todo=f"give {folder}")
    return _read_folder(folder, path)


def _read_images(folder: Path) -> Table | None:
    """Images by the folders they lie in, whose names are their labels; None where there are none."""
    found = [
        path
        for label in sorted(folder.iterdir())
        if label.is_dir() and not label.name.startswith(".")
        for path in sorted(label.rglob("*"))
        if path.suffix.lower() in _IMAGES and path.is_file()
    ]
    if not found:
        return None
    places = [str(path.relative_to(folder)) for path in found]
    rows = [{"image": str(path.absolute()), "label": path.relative_to(folder).parts[0]} for path in found]
    return Table(folder, rows, places)


def _choose_split(folder: Path, split: str) -> str:
    """``split``, if the folder has it."""
    try:
        splits = json.loads((folder / _SPLITS).read_text(encoding="utf-8"))["splits"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{_SPLITS} does not name the splits: {error}", where=str(folder), todo=_AGAIN) from error
    if split not in splits:
        raise UsageError(
            f"there is no split '{split}'" if split else "the folder has several splits",
            where=str(folder),
            todo=f"give one of: {', '.join(f'{folder}:{name}' for name in splits)}",
        )
    return split


_AGAIN = "save it again with save_to_disk"


def _read_folder(folder: Path, path: Path) -> Table:
    if importlib.util.find_spec("datasets") is None:
        raise UsageError(
            "to read a folder of the datasets library takes that library",
            where=str(folder),
            todo="pip install 'compactor[train]', or save the data as JSON lines with to_json",
        )
    import datasets

    try:
        rows = datasets.load_from_disk(str(folder)).to_list()
    except Exception as error:  # what a damaged file raises depends on the file and on the version
        reason = (str(error).strip().splitlines() or [repr(error)])[0]
        raise UsageError(f"the data set cannot be read: {reason}", where=str(folder), todo=_AGAIN) from error
    if not rows:
        raise UsageError("there are no examples in it", where=str(path), todo="give a split that has some")
    return Table(path, rows, [f"entry {i + 1}" for i in range(len(rows))])
