"""Read checkpoints: plain, raw nn_pruning and head-pruned folders, all as one plain model with zeros."""

from __future__ import annotations

from compactor.checkpoint.reader import Checkpoint, read_checkpoint
from compactor.checkpoint.weights import SourceFile

__all__ = ["Checkpoint", "SourceFile", "read_checkpoint"]
