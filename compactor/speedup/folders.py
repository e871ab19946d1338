"""A pruned model as a folder like the one it came from: other weights, with zeros in place, and all else as it was."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from compactor.companions.files import copy_file
from compactor.speedup.subject import Subject

_WEIGHTS = (".safetensors", ".bin", ".h5", ".msgpack", ".onnx", ".ot", ".pt", ".pth", ".ckpt", ".gguf", ".npz")
_STALE = (
    "compactor.json",
    "training.json",
    "training.html",
    "run.json",
    "pruning.json",
    "speedup.json",
    "speedup.html",
)
_OTHER = (".onnx", "openvino_")  # in the names of graphs, and of files that hold their weights or structure
_MODULES = "modules.json"


def write_folder(subject: Subject, folder: Path) -> None:
    """Write ``subject`` with the weights that its model has now.

    Files beside the weights are copied as they are: config, tokenizer, the modules of sentence-transformers with
    weights of their own. What else has weights (ONNX, OpenVINO) is of the whole model, and left out.

    Args:
        subject: The model.
        folder: Made here; it must not exist.

    Raises:
        ModelDirectoryError: A file is a link that leads out of the model directory.
    """
    folder.mkdir(parents=True)
    source, home = subject.folder, subject.home
    inner = home.relative_to(source)
    subject.model.save_pretrained(folder / inner)
    for place in dict.fromkeys((source, home)):
        for path in sorted(place.iterdir()):
            if path.is_file() and not _is_left_out(path):
                copy_file(source, folder, str(path.relative_to(source)))
    for module in _modules(source)[1:]:
        if (source / module) in (source, home):  # the model again: what is there is written
            continue
        for path in sorted((source / module).rglob("*")):
            if path.is_file():
                copy_file(source, folder, str(path.relative_to(source)))


def replace_folder(part: Path, folder: Path) -> None:
    """Let ``part``, which is complete, be ``folder``."""
    if folder.exists():
        shutil.rmtree(folder)
    part.rename(folder)


def _is_left_out(path: Path) -> bool:
    """Whether it is weights, is of another form of the model, or tells of how it came to be."""
    name = path.name
    if name.startswith(".") or name in _STALE or name.endswith(".index.json"):
        return True
    return path.suffix in _WEIGHTS or any(part in name for part in _OTHER)


def _modules(source: Path) -> list[str]:
    path = source / _MODULES
    if not path.is_file():
        return []
    listed: Any = json.loads(path.read_text(encoding="utf-8"))  # find_model_folder has read it, and found a list
    paths = [str(entry.get("path") or "") for entry in listed if isinstance(entry, dict)]
    return [name for name in paths if ".." not in Path(name).parts and not Path(name).is_absolute()]
