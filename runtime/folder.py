"""Reading the JSON files of a folder that a stranger may have made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .errors import ArtefactError

_MAX_BYTES = 64 * 2**20

MODULES = "modules.json"
"""What makes a folder one of sentence-transformers."""
TRANSFORMER_CONFIGS = tuple(
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
"""Where the settings of its transformer lie; the first that is there and not empty counts."""


def read_object(path: Path, *, missing: str | None = None, todo: str | None = None) -> dict[str, Any]:
    """A JSON object; where the file is missing an empty one, or an error that says ``missing``.

    Raises:
        ArtefactError: The file is damaged, larger than 64 MiB, or missing.
    """
    if not path.is_file():
        if missing is None:
            return {}
        raise ArtefactError(missing, where=str(path.parent), todo=todo)
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ValueError(f"it is larger than {_MAX_BYTES >> 20} MiB")
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it is no JSON object")
    except (ValueError, RecursionError) as error:
        raise ArtefactError(
            f"{path.name} is damaged: {error}", where=str(path), todo="repair it, or export the model again"
        ) from error
    return content


def read_transformer_settings(folder: Path) -> dict[str, Any]:
    """What sentence-transformers is told of a transformer: the first of its files that is there and not empty.

    Raises:
        ArtefactError: A file is damaged.
    """
    return next((found for found in (read_object(folder / name) for name in TRANSFORMER_CONFIGS) if found), {})
