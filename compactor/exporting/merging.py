"""Make one graph of a decoder's two: ``use_cache_branch`` says which of them it is to be.

    decoder_model            (tokens, states, mask)  -> logits, present.*            If(use_cache_branch) of both,
    decoder_with_past_model  (token, mask, past.*)   -> logits, present.*.decoder.*  whose weights stand once, around it

It is the file that transformers.js reads, and optimum by default. Every run has every input and output. The first step
does not look at ``past_key_values.*``, whose heads and widths are therefore left open: those who feed it with empty
caches make them by the config, which states the dense model's. A next step gives ``present.*.encoder.*`` without a row:
nobody reads what never changes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from compactor.passes.graph.matching import new_node
from compactor.runtime.decoding import SWITCH

_FEWEST = 16  # elements of a weight; smaller constants, such as shapes, stay with their branch

Weights = dict[tuple[object, ...], ir.Value]


def merge_steps(first: ir.Model, following: ir.Model) -> ir.Model:
    """One model of a first step and every next one; neither is of use afterwards.

    Args:
        first: Makes all caches.
        following: Takes them, and gives those of self-attention.
    """
    order = [str(value.name) for model in (first, following) for value in model.graph.inputs]
    inputs = {str(value.name): _input(value) for model in (following, first) for value in model.graph.inputs}
    switch = ir.Value(name=SWITCH, type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([1]))
    outputs = [ir.Value(name=each.name, type=each.type, shape=each.shape) for each in first.graph.outputs]
    _give_the_rest(following.graph, first.graph)
    weights: Weights = {}
    branches = {
        name: _as_branch(model.graph, inputs, weights, prefix)
        for name, model, prefix in (("then_branch", following, "next"), ("else_branch", first, "first"))
    }
    node = ir.Node(
        "",
        "If",
        [switch],
        [ir.AttrGraph(name, graph) for name, graph in branches.items()],
        outputs=outputs,
        name="step",
    )
    graph = ir.Graph(
        [*(inputs[name] for name in dict.fromkeys(order)), switch],
        outputs,
        nodes=[node],
        initializers=list(weights.values()),
        opset_imports={**following.graph.opset_imports, **first.graph.opset_imports},
        name="decoder",
    )
    return ir.Model(graph, ir_version=first.ir_version, functions=[*first.functions.values()])


def _input(value: ir.Value) -> ir.Value:
    """An input of both; of a cache without its sizes."""
    shape = value.shape
    assert shape is not None
    kind, number, of, which, *_ = [*str(value.name).split("."), "", "", ""]
    if kind == "past_key_values":
        shape = ir.Shape([shape[0], f"{of}_heads_{number}", shape[2], f"{of}_{which}_width_{number}"])
    return ir.Value(name=value.name, type=value.type, shape=shape)


def _give_the_rest(graph: ir.Graph, first: ir.Graph) -> None:
    """Give, in its order, all that ``first`` gives: caches that stay as they are as (0, heads, 0, width)."""
    given = {value.name: value for value in graph.outputs}
    for value in first.outputs:
        if value.name in given:
            continue
        assert value.dtype is not None and value.shape is not None
        heads, width = value.shape[1], value.shape[3]
        assert isinstance(heads, int) and isinstance(width, int)
        sizes = [0, heads, 0, width]
        empty = ir.tensor(np.zeros(sizes, value.dtype.numpy()))
        node = new_node("Constant", [], value=empty)
        node.outputs[0].name, node.outputs[0].type, node.outputs[0].shape = value.name, value.type, ir.Shape(sizes)
        graph.append(node)
        given[value.name] = node.outputs[0]
    graph.outputs[:] = [given[value.name] for value in first.outputs]


def _as_branch(graph: ir.Graph, inputs: Mapping[str, ir.Value], weights: Weights, prefix: str) -> ir.Graph:
    """The graph without inputs, whose weights stand outside; no name in it is one of those outside, or of the other."""
    for value in tuple(graph.inputs):
        value.replace_all_uses_with(inputs[str(value.name)])
    graph.inputs.clear()
    for name, value in tuple(graph.initializers.items()):
        tensor = value.const_value
        assert tensor is not None
        if math.prod(tensor.shape.numpy()) < _FEWEST:
            value.name = f"{prefix}.{name}"
            continue
        content = hashlib.sha256(tensor.tobytes()).digest(), tensor.dtype, tuple(tensor.shape.numpy())
        if content not in weights:
            taken = {other.name for other in weights.values()}
            free = name if name not in taken else f"{prefix}.{name}"
            weights[content] = ir.Value(name=free, type=value.type, shape=value.shape, const_value=tensor)
        value.replace_all_uses_with(weights[content])
        del graph.initializers[name]
    for node in graph:
        node.name = f"{prefix}.{node.name}"
        for output in node.outputs:
            if output.name:  # an optional one that is not made has none
                output.name = f"{prefix}.{output.name}"
    return graph
