"""Count operators: in a file as saved, and in the graph that ONNX Runtime really runs.

The two differ. At start-up ONNX Runtime fuses, folds and inlines, so what counts for speed is the graph after its
rewrites. It is read back at the level sessions use by default (``ORT_ENABLE_ALL``): a lower level would describe a
graph that nobody runs. That level also picks layouts for the hardware at hand, so a convolution may appear as
``com.microsoft.nchwc::Conv`` on one machine and as ``Conv`` on another.
"""

from __future__ import annotations

import collections
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .sessions import open_with_options, session_options

_DEFAULT_DOMAINS = ("", "ai.onnx")


def executed_operators(
    model: str | Path | bytes, *, provider: str = "cpu", optimize: bool = True
) -> collections.Counter[str]:
    """Operators of ``model`` after ONNX Runtime's start-up rewrites, as ``{"Attention": 12, ...}``.

    Operators outside the standard domain carry it: ``"com.microsoft::DynamicQuantizeMatMul"``. Needs room for one
    more copy of the weights in the temporary folder while it runs.
    """
    options = session_options(threads=1, optimize=optimize, allow_spinning=False)
    with tempfile.TemporaryDirectory(prefix="compactor-") as folder:
        rewritten = Path(folder, "executed.onnx")
        options.optimized_model_filepath = str(rewritten)
        # The weights go to a file beside the graph, which is then small, never over 2 GiB, and read without them.
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights.bin")
        options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "64")
        options.add_session_config_entry("session.disable_prepacking", "1")  # a third of the memory, for nothing here
        open_with_options(model, options, provider=provider)
        return saved_operators(rewritten)


def saved_operators(model: str | Path | Any) -> collections.Counter[str]:
    """Operators of ``model`` as it stands, without its weights being read.

    Counts the bodies of ``If``, ``Loop`` and ``Scan``; a call of a function that the model itself defines counts as
    the function's body, because ONNX Runtime inlines it.

    Args:
        model: Path of an ONNX file, an ``onnx.ModelProto`` or an ``onnx_ir.Model``.
    """
    import onnx
    import onnx_ir as ir

    if isinstance(model, str | Path):
        model = onnx.load(model, load_external_data=False)
    if isinstance(model, onnx.ModelProto):
        model = ir.from_proto(model)
    return _count(model.graph, model.functions, {})


def _count(
    nodes: Iterable[Any], functions: Mapping[Any, Any], counted: dict[Any, collections.Counter[str]]
) -> collections.Counter[str]:
    counts: collections.Counter[str] = collections.Counter()
    for node in nodes:
        name = node.op_identifier()
        if name in functions:
            if name not in counted:
                counted[name] = _count(functions[name], functions, counted)
            counts.update(counted[name])
            continue
        counts[node.op_type if node.domain in _DEFAULT_DOMAINS else f"{node.domain}::{node.op_type}"] += 1
        for attribute in node.attributes.values():
            for graph in _subgraphs(attribute):
                counts.update(_count(graph, functions, counted))
    return counts


def _subgraphs(attribute: Any) -> list[Any]:
    import onnx_ir as ir

    if attribute.type == ir.AttributeType.GRAPH:
        return [attribute.as_graph()]
    if attribute.type == ir.AttributeType.GRAPHS:
        return list(attribute.as_graphs())
    return []
