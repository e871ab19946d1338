"""The vector of a text: its tokens' states, pooled."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..answers import Answer, Embedded
from ..encoding import Encoded
from ..errors import ArtefactError
from ..folder import read_object
from .shared import Outputs


class VectorReader:
    """Pools as the folder's sentence-transformers modules say; without them, the mean over the tokens."""

    def __init__(self, folder: Path) -> None:
        self._pooling, self._normalize = "mean", False
        path = folder / "modules.json"
        width = read_object(folder / "config_sentence_transformers.json").get("truncate_dim")
        self._width = width if path.is_file() and isinstance(width, int) and width > 0 else None
        for module in json.loads(path.read_text("utf-8")) if path.is_file() else []:
            kind = str(module.get("type")).rsplit(".", 1)[-1]
            if kind == "Pooling":
                self._pooling = _pooling(folder / str(module.get("path")) / "config.json")
            elif kind == "Normalize":
                self._normalize = True
            elif kind != "Transformer":
                raise ArtefactError(
                    f"vectors of this folder go through a '{kind}', which is not known here",
                    where=str(path),
                    todo="open the artefact with sentence-transformers (backend='onnx')",
                )

    def __call__(self, item: Encoded, windows: Sequence[Outputs]) -> Answer:
        """Of one text; its graph gives one state a token, (S, width)."""
        states = next(iter(windows[0].values())).astype(np.float64)
        if self._pooling == "mean":
            vector = states.mean(axis=0)
        else:
            vector = states[0] if self._pooling == "cls" else states.max(axis=0)
        if self._normalize:
            vector = vector / max(float(np.linalg.norm(vector)), 1e-12)
        return Embedded(vector[: self._width].astype(np.float32))


def _pooling(path: Path) -> str:
    """``mean``, ``cls`` or ``max``, by a pooling module's config of any version."""
    content = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    by_flag = {
        "pooling_mode_mean_tokens": "mean",
        "pooling_mode_cls_token": "cls",
        "pooling_mode_max_tokens": "max",
    }
    modes = [mode for flag, mode in by_flag.items() if content.get(flag)]
    if isinstance(content.get("pooling_mode"), str):
        modes = [content["pooling_mode"]]
    others = [name for name, value in content.items() if name.startswith("pooling_mode_") and value is True]
    if len(modes) != 1 or modes[0] not in by_flag.values() or any(name not in by_flag for name in others):
        raise ArtefactError(
            f"this pooling is not known here: {', '.join(modes or others) or 'none is named'}",
            where=str(path),
            todo="open the artefact with sentence-transformers (backend='onnx')",
        )
    return modes[0]
