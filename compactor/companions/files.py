"""The files of a model directory, which may be a stranger's: found, read and copied from inside of it only."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from compactor.errors import ModelDirectoryError

_MAX_JSON_BYTES = 16 * 2**20


def matching(source: Path, patterns: tuple[str, ...]) -> list[str]:
    """The names of the files in ``source`` that a pattern fits."""
    return [path.name for pattern in patterns for path in sorted(source.glob(pattern)) if path.is_file()]


def copy_file(source: Path, directory: Path, name: str) -> None:
    """Copy a file that belongs to the model. Raises ModelDirectoryError where it is a link that leads elsewhere."""
    target = directory / name
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(inside(source, name), target)


def inside(source: Path, name: str) -> Path:
    """The real path of ``name``, which may be a link, but only to a file that belongs to the model.

    A model cache keeps a snapshot's files as links to ``../../blobs``; a link to anywhere else could carry a
    private file of this machine into a folder that is meant to be shared.
    """
    root = source.resolve()
    roots = [root, root.parent.parent / "blobs"] if root.parent.name == "snapshots" else [root]
    path = (source / name).resolve()
    if not any(allowed in path.parents for allowed in roots):
        raise ModelDirectoryError(
            f"'{name}' is a link that leads out of the model directory",
            where=str(source / name),
            todo="put the file itself in its place",
        )
    return path


MEND = "repair or remove this file"


def read_json(source: Path, name: str, *, max_bytes: int = _MAX_JSON_BYTES) -> Any:
    """JSON of the model directory. Raises ModelDirectoryError where it is damaged, too large, or leads elsewhere."""
    path = inside(source, name)
    if path.stat().st_size > max_bytes:
        raise ModelDirectoryError(f"larger than {max_bytes >> 20} MiB", where=str(source / name), todo=MEND)
    try:
        return json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelDirectoryError(f"not JSON: {error}", where=str(source / name), todo=MEND) from error


def read_object(source: Path, name: str, *, max_bytes: int = _MAX_JSON_BYTES) -> dict[str, Any]:
    """A JSON object of the model directory. Raises ModelDirectoryError where it is damaged, or leads elsewhere."""
    content = read_json(source, name, max_bytes=max_bytes)
    if not isinstance(content, dict):
        raise ModelDirectoryError("expected a JSON object", where=str(source / name), todo=MEND)
    return content


def write_json(path: Path, content: dict[str, Any] | list[Any]) -> None:
    """Write JSON as the other files of a model are written."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
