"""Artefacts of the example and of tiny models, one a task, exported once for all tests of this folder."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.consumers.folders import save_text_model

TextArtefact = Callable[[str], tuple[Path, Path]]


@pytest.fixture(scope="session")
def text_artefact(tmp_path_factory: pytest.TempPathFactory, example_checkpoint: Path) -> TextArtefact:
    """By the name of a class of transformers: a masked model, and its artefact in fp32 and int8. Change neither."""
    from compactor.exporting.export import export

    @functools.cache
    def make(class_name: str) -> tuple[Path, Path]:
        if class_name == "BertForSequenceClassification":  # a trained one: its answers depend on the text
            return example_checkpoint, export(example_checkpoint, tmp_path_factory.mktemp("example") / "compact").path
        folder = tmp_path_factory.mktemp(class_name)
        save_text_model(folder / "masked", class_name, example_checkpoint)
        return folder / "masked", export(folder / "masked", folder / "compact").path

    return make
