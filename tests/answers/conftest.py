"""What makes many small exports quick."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.consumers.folders import save_text_model


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, example_checkpoint: Path) -> Callable[[str], Path]:
    """A masked model with a tokenizer, by the name of its class."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            made[name] = save_text_model(tmp_path_factory.mktemp(name), name, example_checkpoint)
        return made[name]

    return make
