"""The machine card: what a reader must know of the machine and the software to judge a number.

Versions are those of this environment, and the commit that of the checkout that compactor runs from. Nothing on the
card says where on the disk anything lies, or what the machine is called.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import compactor
from compactor.runtime.machine import describe_gpus, describe_machine

# Distributions whose version may move a number; those that are not installed are left out.
PACKAGES = (
    *("compactor", "numpy", "onnx", "onnx-ir", "onnxruntime", "onnxruntime-gpu", "onnxscript", "tensorrt-cu13"),
    *("torch", "transformers", "safetensors", "tokenizers"),
    *("openvino", "nncf", "ctranslate2", "optimum", "optimum-onnx"),
)

# Folders of the checkout that the ``compactor`` package is made of.
_SOURCES = ("compactor", "passes", "runtime")


def machine_card() -> dict[str, Any]:
    """The report's ``machine`` block, from this process and this moment.

    Call it before anything is measured: the load is that of the last minute.
    """
    machine = describe_machine().to_json()
    del machine["affinity_physical_cores"]  # it explains the number of threads, and the settings say that in words
    gpus = describe_gpus()
    try:
        load = os.getloadavg()[0]  # processes that ran or wanted to, over the last minute
    except (AttributeError, OSError):  # the system does not count them
        load = None
    return {
        **machine,
        "gpus": None if gpus is None else [dataclasses.asdict(gpu) for gpu in gpus],
        "load_before": load,
        "versions": versions(),
        **describe_commit(),
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the installed packages that matter, by the name of their distribution."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def describe_commit(package: Path | None = None) -> dict[str, Any]:
    """``commit``, abbreviated, and ``dirty``: whether the sources of compactor differ from it, new files included.

    Both are None for an installed wheel, also one inside somebody else's repository: the checkout counts only where
    git tracks the package's own file.

    Args:
        package: The folder of the ``compactor`` package; the one that runs when left out.
    """
    folder = package or Path(compactor.__file__).resolve().parent
    unknown = {"commit": None, "dirty": None}
    root = _git(folder, "rev-parse", "--show-toplevel")
    if not root or folder.resolve().parent != Path(root).resolve():
        return unknown
    if _git(folder, "ls-files", "--error-unmatch", "__init__.py") is None:
        return unknown
    top = Path(root)
    commit = _git(top, "rev-parse", "--short", "HEAD")
    changes = _git(top, "status", "--porcelain", "--", *_SOURCES)
    return {"commit": commit or None, "dirty": None if changes is None else bool(changes)}


def _git(folder: Path, *arguments: str) -> str | None:
    """What git says in ``folder``; None where it is not installed or refuses."""
    try:
        command = ["git", "--no-optional-locks", *arguments]  # reading must not hold up somebody's commit
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
