"""Names of variants: short, and unique within a report."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from pathlib import Path


class Names:
    """Makes names and ids unique: the second ``compact int8`` is ``compact int8 (2)``."""

    def __init__(self) -> None:
        self._names: set[str] = set()
        self._ids: set[str] = set()

    def new(self, name: str) -> tuple[str, str]:
        """The name and the id of one more variant."""
        name = _first_free(name, "{} ({})", self._names)
        return name, _first_free(re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-.") or "variant", "{}-{}", self._ids)


def _first_free(name: str, numbered: str, taken: set[str]) -> str:
    candidates = itertools.chain([name], (numbered.format(name, number) for number in itertools.count(2)))
    free = next(candidate for candidate in candidates if candidate not in taken)
    taken.add(free)
    return free


def short_labels(paths: Sequence[Path]) -> list[str]:
    """A short name for each path: its last part, with as many folders before it as tell different paths apart."""
    parts = [path.resolve().parts for path in paths]
    labels = []
    for own in parts:
        others = {other for other in parts if other != own}
        length = next((n for n in range(1, len(own)) if all(own[-n:] != other[-n:] for other in others)), len(own))
        labels.append("/".join(own[-length:]) or str(Path(*own)))
    return labels
