"""Read checkpoints: plain, raw nn_pruning and head-pruned folders, all as one plain model with zeros.

What this module names loads with its first use: its weights take torch, and who only looks at a config has none.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compactor.checkpoint.reader import Checkpoint, read_checkpoint
    from compactor.checkpoint.weights import SourceFile

__all__ = ["Checkpoint", "SourceFile", "read_checkpoint"]

_HOMES = {"Checkpoint": "reader", "SourceFile": "weights", "read_checkpoint": "reader"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module '{__name__}' has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
