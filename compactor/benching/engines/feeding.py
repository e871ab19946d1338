"""Read a batch, and give a model the inputs it declares, in the types it declares."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compactor.errors import ModelDirectoryError, UsageError


def read_feeds(file: str | Path) -> dict[str, NDArray[Any]]:
    """A batch of a case: every input that some variant may want, by name."""
    with np.load(file) as arrays:
        return dict(arrays)


def choose_inputs(
    feeds: Mapping[str, NDArray[Any]], types: Mapping[str, Any], *, where: str
) -> dict[str, NDArray[Any]]:
    """The arrays named in ``types``, cast to these types and contiguous; the others are left out.

    Args:
        feeds: Everything there is to give, by name.
        types: What the model reads: numpy types by name.
        where: The model, for messages.

    Raises:
        ModelDirectoryError: The model wants an input that is not in ``feeds``.
    """
    for name in types:
        if name not in feeds:
            raise ModelDirectoryError(
                f"the model wants an input '{name}', which cannot be filled",
                where=where,
                todo=f"inputs that can be: {', '.join(sorted(feeds))}",
            )
    return {name: np.asarray(feeds[name], dtype=dtype, order="C") for name, dtype in types.items()}


def check_options(options: Mapping[str, Any], known: tuple[str, ...], *, where: str) -> None:
    """Refuse an option that an engine would otherwise ignore.

    Raises:
        UsageError: An option is not among ``known``.
    """
    for name in options:
        if name not in known:
            raise UsageError(
                f"the engine has no option '{name}'", where=where, todo=f"known options: {', '.join(known) or 'none'}"
            )
