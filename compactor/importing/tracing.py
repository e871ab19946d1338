"""Trace a PyTorch module into the canonical dialect, as an ``onnx_ir.Model``."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir
import torch

from compactor.errors import ModelDirectoryError, describe_failure
from compactor.quiet import quiet

OPSET = 23


def trace_module(
    module: Any,
    example: Mapping[str, torch.Tensor],
    axes: Mapping[str, Any],
    *,
    name: str,
    where: str,
    beside: Sequence[ir.Model] = (),
) -> tuple[ir.Model, list[str]]:
    """Trace ``module(**example)``, which returns a mapping.

    Args:
        module: In evaluation mode. Its weights move into the graph.
        example: Inputs, by name.
        axes: Which of their axes are free: ``torch.export.Dim`` by axis, by name.
        name: Of the model, for messages.
        where: The model directory, for messages.
        beside: Graphs of other parts of the same model, which keep their weights.

    Returns:
        The graph, and the names of what the module returned, in the order of the graph's outputs.

    Raises:
        ModelDirectoryError: The exporter cannot trace it; the message holds its reason.
    """
    try:
        with quiet(), torch.no_grad():
            produced = _names_of(module(**example))
            program = torch.onnx.export(
                module,
                (),
                kwargs=dict(example),
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes=dict(axes),
                verbose=False,
            )
    except Exception as error:  # of the exporter's own kind around another's, or whatever torch.export lets through
        cause = error.__cause__ if isinstance(error, torch.onnx.errors.OnnxExporterError) else None
        raise ModelDirectoryError(
            f"'{name}' cannot be traced: {describe_failure(cause or error, 'torch', 'onnxscript', 'transformers')}",
            where=where,
            todo="run again with --debug for the exporter's own report",
        ) from error
    assert program is not None
    model: ir.Model = program.model.clone()
    _check_axes(model, axes, name, where)
    _forget_weights(module, program.model, kept=(model, *beside))
    return model, produced


def _names_of(outputs: Mapping[str, Any]) -> list[str]:
    """The name of each tensor that a module returned; those of an output that holds several share its name."""
    leaves = {name: torch.utils._pytree.tree_leaves(value) for name, value in outputs.items()}
    return [name for name, tensors in leaves.items() for tensor in tensors if tensor is not None]


def _check_axes(model: ir.Model, axes: Mapping[str, Any], name: str, where: str) -> None:
    """Raises ModelDirectoryError where an axis that shall be free became a number: that of the example."""
    for value in model.graph.inputs:
        for axis in axes.get(value.name or "", ()):
            if value.shape is not None and isinstance(value.shape[axis], int):
                raise ModelDirectoryError(
                    f"'{name}' is traced for one size of '{value.name}' alone: {value.shape[axis]} along axis {axis}",
                    where=where,
                    todo="this version of transformers writes the size into the model: try another one",
                )


def _forget_weights(module: Any, traced: ir.Model, kept: Sequence[ir.Model]) -> None:
    """Let go of the weights in ``traced``, and of those of ``module`` in nodes that its optimization dropped.

    onnxscript's optimizer keeps the graphs and nodes it last saw for as long as the process lives, and with them a
    copy of the model.
    """
    for value in traced.graph.initializers.values():
        value.const_value = None
    weights = {id(tensor) for tensor in (*module.parameters(), *module.buffers())}
    wanted = {id(value) for model in kept for value in model.graph.initializers.values()}
    for value in gc.get_objects():
        if not issubclass(type(value), ir.Value):  # isinstance() would wake lazy proxies
            continue
        if id(getattr(value.const_value, "raw", None)) in weights and id(value) not in wanted:
            value.const_value = None
