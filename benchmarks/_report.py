"""What the benchmarks record: the machine, the versions, raw samples as JSON, and the table made from them."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compactor.runtime.machine import describe_machine

PACKAGES = ("compactor", "numpy", "onnx", "onnx-ir", "onnxruntime", "torch", "transformers", "openvino", "nncf")
NOISY = 0.1  # spread beyond which a table warns
BUSY = 0.5  # load average before a start beyond which the numbers are not worth keeping
_ROOT = Path(__file__).resolve().parents[1]


def describe_run(argv: Sequence[str]) -> dict[str, Any]:
    """Command, commit, machine and versions, for the head of a result."""
    return {
        "command": " ".join(
            [
                "python",
                *(
                    Path(argv[0]).relative_to(_ROOT).as_posix()
                    if Path(argv[0]).is_relative_to(_ROOT)
                    else Path(argv[0]).name,
                    *argv[1:],
                ),
            ]
        ),
        "commit": _git("rev-parse", "--short", "HEAD"),
        "changed_files": sum(
            line[3:].split("/")[0] in ("compactor", "passes", "runtime")
            for line in _git("status", "--porcelain").splitlines()
        ),
        "load_before": os.getloadavg()[0],
        "machine": describe_machine().to_json(),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that matter, in this environment."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def warn_if_busy(load: float) -> None:
    """Say on stderr that the machine has other work."""
    if load > BUSY:
        say(f"warning: load average {load:.1f} before the start: the numbers will not be worth keeping")


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; every column but the first is aligned right.

    Raises:
        ValueError: A row has another number of cells than the header.
    """
    for row in rows:
        if len(row) != len(header):
            raise ValueError(f"expected {len(header)} cells, got {len(row)}: {row}")
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rule, *rows))


def machine_line(result: Mapping[str, Any]) -> str:
    """One sentence: machine, threads, versions, commit."""
    run = result["run"]
    machine = run["machine"]
    isa = ", ".join(
        name for name in machine["isa"] or () if name.startswith(("avx512_vnni", "avx_vnni", "amx", "avx512_bf16"))
    )
    packages = ", ".join(f"{name} {version}" for name, version in run["versions"].items() if name != "compactor")
    changed = f" with {run['changed_files']} changed files" if run["changed_files"] else ""
    busy = (
        f" **Load average before the start: {run['load_before']:.1f}: a busy machine.**"
        if run["load_before"] > BUSY
        else ""
    )
    return (
        f"{machine['cpu_model']} ({isa or 'no int8 dot products'}), {machine['physical_cores']} cores"
        f"{', virtual' if machine['virtualised'] else ''}, {machine['kernel']}; "
        f"{packages}; commit {run['commit']}{changed}.{busy}"
    )


def write_result(path: Path, result: Mapping[str, Any], markdown: str) -> None:
    """Write the result as JSON, and the table beside it as Markdown."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(compact_json(result) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(markdown + "\n", encoding="utf-8")
    say(f"wrote {path} and {path.with_suffix('.md').name}")


def compact_json(value: Any, indent: int = 0) -> str:
    """JSON with a line for each entry, except that lists of plain values stay on one line."""
    if isinstance(value, Mapping) and value:
        inner = ",\n".join(
            f"{' ' * (indent + 1)}{json.dumps(str(key))}: {compact_json(entry, indent + 1)}"
            for key, entry in value.items()
        )
    elif isinstance(value, list | tuple) and any(isinstance(entry, Mapping | list | tuple) for entry in value):
        inner = ",\n".join(f"{' ' * (indent + 1)}{compact_json(entry, indent + 1)}" for entry in value)
    else:
        return json.dumps(value)
    opening, closing = "{}" if isinstance(value, Mapping) else "[]"
    return f"{opening}\n{inner}\n{' ' * indent}{closing}"


def say(line: str) -> None:
    """Tell the user on stderr how far it is."""
    print(line, file=sys.stderr, flush=True)


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=_ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.rstrip()
