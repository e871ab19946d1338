"""One stage of an export: its file, and what the file weighs and costs."""

from __future__ import annotations

import collections
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir

from compactor.passes.graph.sizes import constant_bytes, count_parameters, macs_per_token
from compactor.runtime.executed_graph import executed_operators, saved_operators


def describe_stage(
    name: str, model: ir.Model, path: Path, root: Path, *, macs: int, graph: str, shared: int = 0
) -> dict[str, Any]:
    """The manifest's entry of a stage.

    Args:
        name: ``compact``, ``int8`` or ``fp16``.
        model: The graph as it was saved.
        path: Its file.
        root: The artefact's folder.
        macs: Multiply-adds for one token; see ``macs_per_token``.
        graph: Which graph of several; empty for an only one.
        shared: Bytes of its weights that lie in a file which other graphs read too.
    """
    data = path.with_name(f"{path.name}_data")
    return {
        "name": name,
        "file": path.relative_to(root).as_posix(),
        "bytes": path.stat().st_size + (data.stat().st_size if data.exists() else 0) + shared,
        "macs_per_token": macs,
        "parameters": count_parameters(model),
        "operators": dict(sorted(saved_operators(model).items())),
        "executed_operators": None,
        **({"shared_bytes": shared, "graph": graph} if graph else {}),
    }


def count_executed(stage: dict[str, Any], path: Path) -> None:
    """Count what ONNX Runtime makes of a file's operators. It reads the weights: free the graphs first."""
    stage["executed_operators"] = dict(sorted(executed_operators(path).items()))


def describe_masked(model: ir.Model, graph: str) -> dict[str, Any]:
    """The manifest's entry of the masked model, which is not kept: its bytes are those of its constants."""
    return {
        "name": "masked",
        "file": None,
        "bytes": constant_bytes(model),
        "macs_per_token": macs_per_token(model),
        "parameters": count_parameters(model),
        "operators": dict(sorted(saved_operators(model).items())),
        "executed_operators": None,
        **({"graph": graph} if graph else {}),
    }


def merge_described(first: Mapping[str, Any], following: Mapping[str, Any], *, graph: str) -> dict[str, Any]:
    """One entry for a decoder's two graphs: the first step's, which has all weights, with the operators of both."""
    operators = collections.Counter(first["operators"]) + collections.Counter(following["operators"])
    return {**first, "operators": dict(sorted(operators.items())), "graph": graph}
