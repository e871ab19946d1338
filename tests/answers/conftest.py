"""What makes many small exports quick."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from compactor.importing.encoder import LoadedModel
from tests.consumers.folders import save_text_model


@pytest.fixture(scope="module")
def traced_once() -> Iterator[None]:
    """Folders of the same weights and config share a trace, which is most of the time of a small export."""
    kept: dict[Any, Any] = {}
    trace = LoadedModel.trace

    def traced(loaded: LoadedModel, beside: Sequence[Any] = ()) -> Any:
        weights = float(sum(tensor.double().abs().sum() for tensor in loaded.module.state_dict().values()))
        key = (loaded.task.name, weights, loaded.module.config.to_json_string(use_diff=False))
        if len(loaded.task.outputs) > 1:  # modules behind the model, which its config does not name
            return trace(loaded)
        if key not in kept:
            kept[key] = trace(loaded)
        return kept[key].clone()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LoadedModel, "trace", traced)
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, example_checkpoint: Path) -> Callable[[str], Path]:
    """A masked model with a tokenizer, by the name of its class."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            made[name] = save_text_model(tmp_path_factory.mktemp(name), name, example_checkpoint)
        return made[name]

    return make
