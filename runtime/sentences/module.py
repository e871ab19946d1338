"""One entry of ``modules.json``: its settings, its weights, and how they are refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ArtefactError
from ..folder import read_object

WEIGHTS = "model.safetensors"


@dataclasses.dataclass(frozen=True)
class Module:
    """A module of a folder.

    Attributes:
        kind: The name of its class, such as ``Pooling``.
        folder: Where its files lie.
        config: The content of its ``config.json``; empty where there is none.
    """

    kind: str
    folder: Path
    config: Mapping[str, Any]

    @classmethod
    def read(cls, kind: str, folder: Path) -> Module:
        """With its settings. Raises ArtefactError where they are damaged."""
        return cls(kind, folder, read_object(folder / "config.json"))

    def allow(self, *known: str) -> None:
        """Raises ArtefactError where there is a setting that is none of ``known``."""
        unknown = next((key for key in self.config if key not in known), None)
        if unknown is not None:
            raise self.refusal(f"'{unknown}' of {self.kind} is not known here", "remove it, or use another model")

    def weights(self, **shapes: tuple[int, ...]) -> dict[str, NDArray[np.float32]]:
        """Its arrays by name, with ``__`` for a dot.

        Raises:
            ArtefactError: There is no file of them, it is damaged, or they are others.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        path = self.folder / WEIGHTS
        try:
            found = {name.replace(".", "__"): array for name, array in load_file(path).items()}
        except FileNotFoundError as error:
            raise self.refusal(f"the weights of {self.kind} are missing", f"put {WEIGHTS} there") from error
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise self.refusal(f"the weights of {self.kind} cannot be read: {error}", "repair the file") from error
        stated = {name: tuple(array.shape) for name, array in found.items()}
        if stated != shapes:
            name = next(name for name in (*shapes, *stated) if stated.get(name) != shapes.get(name))
            raise self.refusal(
                f"'{name.replace('__', '.')}' of {self.kind} should have the shape {shapes.get(name)}, "
                f"and has {stated.get(name)}",
                "save the model again",
            )
        return {name: array.astype(np.float32) for name, array in found.items()}

    def size(self, key: str) -> int:
        """A setting that counts something. Raises ArtefactError where it is none."""
        value = self.config.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self.refusal(f"'{key}' of {self.kind} is {value!r}, which is no positive number", "repair it")
        return value

    def refusal(self, what: str, todo: str) -> ArtefactError:
        """An error about this module."""
        return ArtefactError(what, where=str(self.folder), todo=todo)


def require(holds: bool, module: Module, key: str, value: object, choices: str) -> None:
    """Raises ArtefactError where a setting is none of ``choices``."""
    if not holds:
        raise module.refusal(f"'{key}' of {module.kind} is {value!r}, which is not built", f"choose {choices}")
