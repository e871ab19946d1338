"""Small folders of sentence-transformers, as the library saves them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sentence_transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import (
    Transformer,
)
from torch import nn

import compactor
import compactor.runtime

WIDTH = 32
TEXTS = ["a gripping film", "Two  spaces, and (punctuation)!", "bleak", "it is what it is , and no more than that"]
SIX = pytest.mark.skipif(sentence_transformers.__version__ < "6", reason="came with version 6")


def load(folder: Path, out: Path, **options: Any) -> compactor.runtime.Model:
    compactor.export(folder, out, precision=["fp32"], **options)
    return compactor.runtime.load(out, precision="fp32", threads=1)


def save(folder: Path, base: Path, *modules: nn.Module, **settings: Any) -> SentenceTransformer:
    """A folder of these modules behind the transformer of ``base``."""
    for module in modules:
        for parameter in module.parameters():
            nn.init.normal_(parameter, std=0.3)
    model = SentenceTransformer(modules=[Transformer(str(base)), *modules], device="cpu", **settings)
    model.save(str(folder))
    return SentenceTransformer(str(folder), device="cpu")


def edit(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**content, **changes}))
