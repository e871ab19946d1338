"""What makes small models fit for tests of an export: saved once, and treated as large ones are."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import compactor.exporting.serialization
import compactor.passes.pipeline
from compactor.passes.finishing.share_transposed_weights import ShareTransposedWeightsPass
from compactor.passes.precision.quantize_embeddings import QuantizeEmbeddingsPass
from compactor.passes.precision.quantize_linears import QuantizeLinearsPass
from compactor.passes.precision.quantize_linears_by_token import QuantizeLinearsByTokenPass


def save_once(
    make: Callable[[str], Any], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Any, Path]]:
    """A function that makes and saves each model when it is first asked for, and gives it with its folder."""
    made: dict[str, tuple[Any, Path]] = {}

    def save(name: str) -> tuple[Any, Path]:
        if name not in made:
            model, folder = make(name), tmp_path_factory.mktemp(name)
            model.save_pretrained(folder)
            made[name] = model, folder
        return made[name]

    return save


def quantize_small_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make int8 take every linear layer, where an export of a real model leaves the smallest in float32."""
    for pass_class in (QuantizeLinearsPass, QuantizeLinearsByTokenPass):
        everything = functools.partial(pass_class, min_elements=0)
        monkeypatch.setattr(compactor.passes.pipeline, pass_class.__name__, everything)


def treat_small_as_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make int8 take every linear layer and table, let tied tables be kept once, and matrices be shared by graphs."""
    quantize_small_weights(monkeypatch)
    for pass_class in (QuantizeEmbeddingsPass, ShareTransposedWeightsPass):
        monkeypatch.setattr(
            compactor.passes.pipeline, pass_class.__name__, functools.partial(pass_class, min_elements=0)
        )
    monkeypatch.setattr(compactor.exporting.serialization, "_SMALLEST_EXTERNAL", 100)
