"""Find the folder that holds config and weights: the model's own, or a module of a sentence-transformers folder."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from compactor.checkpoint.config import read_json
from compactor.checkpoint.foreign import refuse_adapters
from compactor.errors import ModelDirectoryError


def find_model_folder(path: Path) -> Path:
    """The folder with ``config.json``: where ``modules.json`` says that module 0 lies, else ``path``.

    Raises:
        ModelDirectoryError: ``path`` is no folder, holds no model, or ``modules.json`` points outside of it.
    """
    if not path.is_dir():
        problem = "is a file" if path.exists() else "does not exist"
        raise ModelDirectoryError(f"the model directory {problem}", where=str(path), todo="pass a folder on this disk")
    if (path / "modules.json").is_file():
        return _first_module(path)
    if (path / "config.json").is_file():
        return path
    refuse_adapters(path)
    raise ModelDirectoryError("the model directory has no config.json", where=str(path))


def _first_module(path: Path) -> Path:
    where = str(path / "modules.json")
    modules = read_json(path / "modules.json")
    if not isinstance(modules, list) or not modules or not isinstance(modules[0], dict):
        raise ModelDirectoryError("modules.json lists no modules", where=where)
    name = modules[0].get("path")
    parts = PurePosixPath(name).parts if isinstance(name, str) and "\\" not in name else ("..",)
    if isinstance(name, str) and not parts:  # the root, as all folders have it since version 2
        if not (path / "config.json").is_file():
            raise ModelDirectoryError("the model directory has no config.json", where=str(path))
        return path
    if not parts or ".." in parts or PurePosixPath(*parts).is_absolute():
        raise ModelDirectoryError(f"modules.json gives {str(name)[:80]!r} as the model's folder", where=where)
    folder = path.joinpath(*parts)
    if not (folder / "config.json").is_file():
        refuse_adapters(folder)
        raise ModelDirectoryError(f"'{name}' of modules.json has no config.json", where=where)
    return folder
