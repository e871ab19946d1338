"""Carry the bias of a sublayer through the residual beside it, so that nothing is left to add behind the product.

    h = n(x) * g + s,    f(h W1 + b1) W2 + b2 + h      (BERT: norm behind the residual)
        ==>  h' = n(x) * g + (s + b2),    f(h' W1 + b1 - b2 W1) W2 + h'

The norm's shift takes the bias in; linear layers that read the norm take it out again. For int8 with a scale for each
token, whose products are scaled behind the operator that could have added the bias. Exact, but for rounding.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import onnx_ir as ir

from compactor.passes.base import Applied, NoMatch, RewritePass, RewriteResult
from compactor.passes.graph.matching import (
    Array,
    Linear,
    add_initializer,
    add_to_bias,
    attribute,
    constant,
    is_vector,
    layer_of,
    linear_at,
    linear_into,
    redirect,
)


@dataclasses.dataclass(frozen=True)
class CarryBiasesPass(RewritePass):
    """Carry each bias that is added beside the result of a ``LayerNormalization``, whose other readers are linear."""

    name: ClassVar[str] = "carry-biases"

    def call(self, model: ir.Model) -> RewriteResult:
        """Carry the main graph's biases."""
        applied = []
        for node in tuple(model.graph):
            try:
                plan = _match(node)
            except NoMatch:
                continue
            plan.spend(model.graph)
            applied.append(Applied(layer_of(plan.source.matmul), "carried-bias", 1))
        return RewriteResult.of(model, applied)


@dataclasses.dataclass(frozen=True)
class _Plan:
    """A residual: the linear layer with the bias, the norm beside it, and the linear layers that read the norm."""

    source: Linear
    bias: Array
    norm: ir.Node
    shift: Array
    readers: tuple[Linear, ...]

    def spend(self, graph: ir.Graph) -> None:
        """Every check is behind us."""
        assert self.source.add is not None
        redirect(self.source.output, self.source.matmul.outputs[0])
        graph.remove(self.source.add, safe=True)
        shift = self.norm.inputs[2]
        assert shift is not None
        self.norm.replace_input_with(2, add_initializer(graph, f"{shift.name}.carried", self.shift + self.bias))
        for reader in self.readers:
            reader.refill(reader.weight, add_to_bias(reader.bias, -self.bias, reader.weight))


def _match(node: ir.Node) -> _Plan:
    """The residual at ``node``. Raises NoMatch; changes nothing."""
    if node.op_type not in ("Add", "Sum") or node.domain or len(node.inputs) != 2:
        raise NoMatch("no sum of two")
    for value, beside in (node.inputs, node.inputs[::-1]):
        norm = beside.producer() if beside is not None else None
        if norm is None or beside is None or norm.op_type != "LayerNormalization" or norm.domain:
            continue
        try:
            source = linear_into(value)
        except NoMatch:
            continue
        shift = constant(norm.inputs[2]) if len(norm.inputs) > 2 else None
        bias, width = source.bias, source.weight.shape[1]
        if bias is None or shift is None or not is_vector(shift, width) or attribute(norm, "axis", -1) != -1:
            continue
        if source.output.is_graph_output() or len(source.output.uses()) != 1 or beside.is_graph_output():
            continue
        readers = [_linear(usage.node, beside) for usage in beside.uses() if usage.node is not node]
        if len(readers) + 1 == len(beside.uses()) and source.matmul not in {reader.matmul for reader in readers}:
            return _Plan(source, bias, norm, shift, tuple(readers))
    raise NoMatch("no bias beside a norm that only linear layers read")


def _linear(node: ir.Node, value: ir.Value) -> Linear:
    """The linear layer at ``node`` that reads ``value``. Raises NoMatch."""
    if node.op_type != "MatMul" or node.domain or node.inputs[0] is not value:
        raise NoMatch("the norm is read by more than linear layers")
    return linear_at(node)
