"""The masks that ``compactor prune`` leaves beside a model: ``pruning.json`` and ``pruning.safetensors``.

The weights of such a folder have their zeros in place already, so the masks are not needed to read it. They say how the
zeros came about, and whether they still are where training put them.

The JSON holds facts about the run, and for each masked matrix the group of scores that it belongs to and the size of
its blocks. The tensors are ``<group>.scores``, float32, and ``<group>.live``, 0 or 1, both one element a block.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from compactor.checkpoint.config import read_json_object
from compactor.errors import ModelDirectoryError

RECORD_FILE = "pruning.json"
MASKS_FILE = "pruning.safetensors"
_SCHEMA = 1


@dataclasses.dataclass(frozen=True)
class MaskedMatrix:
    """How a group's blocks lie on a stored ``(out, in)`` weight.

    Attributes:
        module: Its name without ``.weight``.
        group: Whose scores.
        rows: Output features of a block.
        cols: Input features of a block.
        transposed: Whether the scores' rows are the matrix's columns.
        start: The first output feature that they lie on: above 0 in a weight that is fused of several.
        stop: The one behind the last; None where they reach to the end.
    """

    module: str
    group: str
    rows: int
    cols: int
    transposed: bool
    start: int = 0
    stop: int | None = None

    def part(self, weight: torch.Tensor) -> torch.Tensor:
        """The output features of ``weight``, or of a bias, that the blocks lie on."""
        return weight[self.start : self.stop]

    def expand(self, blocks: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
        """``blocks`` as a value for each element of a part of ``shape``."""
        blocks = blocks.T if self.transposed else blocks
        spread = blocks.repeat_interleave(self.rows, 0)[: shape[0]]
        return spread.repeat_interleave(self.cols, 1)[:, : shape[1]]


@dataclasses.dataclass(frozen=True)
class PruningRecord:
    """What the two files hold.

    Attributes:
        facts: About the run: ``method``, ``density``, ``threshold``, the settings.
        matrices: The masked ones.
        scores: By group.
        live: By group, bool.
    """

    facts: Mapping[str, Any]
    matrices: tuple[MaskedMatrix, ...]
    scores: Mapping[str, torch.Tensor]
    live: Mapping[str, torch.Tensor]


def write_record(folder: Path, record: PruningRecord) -> None:
    """Write both files into ``folder``."""
    content = {
        "schema": _SCHEMA,
        **record.facts,
        "matrices": [_stated(matrix) for matrix in record.matrices],
    }
    tensors = {f"{name}.scores": scores.float().contiguous() for name, scores in record.scores.items()}
    tensors |= {f"{name}.live": live.to(torch.uint8).contiguous() for name, live in record.live.items()}
    save_file(tensors, folder / MASKS_FILE, metadata={"format": "pt"})
    (folder / RECORD_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _stated(matrix: MaskedMatrix) -> dict[str, Any]:
    """Its fields, without those of a part where it is whole: earlier versions know these alone."""
    whole = {"start": 0, "stop": None}
    return {name: value for name, value in dataclasses.asdict(matrix).items() if (name, value) not in whole.items()}


def read_record_file(folder: Path) -> PruningRecord:
    """Read both files.

    Raises:
        ModelDirectoryError: One is missing or damaged, or they do not belong together.
    """
    path = folder / RECORD_FILE
    content = read_json_object(path)
    try:
        tensors = load_file(folder / MASKS_FILE)
    except (OSError, SafetensorError) as error:
        raise ModelDirectoryError(
            f"the masks cannot be read: {error}", where=str(folder / MASKS_FILE), todo=_TODO
        ) from error
    try:
        matrices = tuple(MaskedMatrix(**matrix) for matrix in content.pop("matrices"))
        groups = sorted({matrix.group for matrix in matrices})
        scores = {name: tensors[f"{name}.scores"] for name in groups}
        live = {name: tensors[f"{name}.live"].bool() for name in groups}
    except (KeyError, TypeError) as error:
        raise ModelDirectoryError(f"its masks are not complete: {error}", where=str(path), todo=_TODO) from error
    if content.pop("schema", None) != _SCHEMA:
        raise ModelDirectoryError("it was written by another version of compactor", where=str(path), todo=_TODO)
    return PruningRecord(content, matrices, scores, live)


_TODO = f"remove {RECORD_FILE} and {MASKS_FILE}: the weights hold their zeros without them"


def describe_record(folder: Path, tensors: Mapping[str, torch.Tensor]) -> str | None:
    """A sentence on how the zeros in ``tensors`` came about, checked against the masks; None without a record.

    Raises:
        ModelDirectoryError: The record is damaged.
    """
    if not (folder / RECORD_FILE).is_file():
        return None
    record = read_record_file(folder)
    changed: set[str] = set()
    compared: set[str] = set()
    for matrix in record.matrices:
        weight = tensors.get(f"{matrix.module}.weight")
        if weight is None or weight.ndim != 2:  # saved under another name
            continue
        compared.add(matrix.module)
        part = matrix.part(weight)
        mask = matrix.expand(record.live[matrix.group], (part.shape[0], part.shape[1]))
        if mask.shape != part.shape or bool((part[~mask] != 0).any()):
            changed.add(matrix.module)
    density = record.facts.get("density")
    left = f", {100 * density:.1f} % of the linear weights left" if isinstance(density, float) else ""
    if changed:
        fit = f"{len(changed)} of {len(compared)} matrices have weights where their mask is zero: changed since"
    else:
        fit = f"its zeros are where the masks of {len(compared)} matrices put them"
    return f"pruned by compactor ({record.facts.get('method')}{left}): {fit}"
