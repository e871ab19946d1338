"""Where the matrices of a model lie in the file that it was saved as.

transformers may write a model under other names than its modules have, and several matrices as one: what it reads into
``q_proj``, ``k_proj`` and ``v_proj`` it may save as one ``qkv_proj``. The masks beside a model speak of its file, so
each matrix is looked for there: under its own name first, and else by its content.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from compactor.checkpoint.pruning_record import MaskedMatrix

_SUFFIX = ".weight"


def place(
    matrices: Sequence[MaskedMatrix], state: Mapping[str, Tensor], saved: Mapping[str, Tensor]
) -> tuple[MaskedMatrix, ...]:
    """``matrices`` as they lie in a file; one that is not found in it keeps the name of its module.

    Args:
        matrices: By the names of modules.
        state: The model's tensors by the names of its modules, zeros in place.
        saved: The file's tensors.
    """
    own = {name for name, tensor in state.items() if name in saved and saved[name].shape == tensor.shape}
    left = [matrix for matrix in matrices if f"{matrix.module}{_SUFFIX}" not in own]
    others = {name: tensor for name, tensor in saved.items() if name.endswith(_SUFFIX) and name not in own}
    parts = {matrix: matrix.part(state[f"{matrix.module}{_SUFFIX}"]).cpu() for matrix in left}
    where = _index(others, {part.shape for part in parts.values()})
    return tuple(_placed(matrix, parts[matrix], where) if matrix in parts else matrix for matrix in matrices)


def _index(saved: Mapping[str, Tensor], shapes: set[torch.Size]) -> dict[bytes, list[tuple[str, int, int]]]:
    """Name, first row and number of rows in all, of every matrix of one of ``shapes``, by its content."""
    found: dict[bytes, list[tuple[str, int, int]]] = defaultdict(list)
    for name in sorted(saved, key=lambda name: [int(part) for part in re.findall(r"\d+", name)]):
        weight = saved[name]
        for rows, columns in shapes:
            if weight.ndim == 2 and weight.shape[1] == columns and weight.shape[0] % rows == 0:
                for start in range(0, weight.shape[0], rows):
                    found[_digest(weight[start : start + rows])].append((name, start, weight.shape[0]))
    return found


def _placed(matrix: MaskedMatrix, part: Tensor, where: dict[bytes, list[tuple[str, int, int]]]) -> MaskedMatrix:
    places = where.get(_digest(part))
    if not places:
        return matrix
    name, start, rows = places.pop(0)  # of equal ones the first: both have layers in their order
    whole = start == 0 and rows == part.shape[0]
    stop = None if whole else start + part.shape[0]
    return dataclasses.replace(matrix, module=name.removesuffix(_SUFFIX), start=start, stop=stop)


def _digest(matrix: Tensor) -> bytes:
    return hashlib.blake2b(matrix.contiguous().view(torch.uint8).numpy().data, digest_size=16).digest()
