"""Move scale between the weights of a norm and the linear layers that read it.

    (n(x) * g A + b A) (A^-1 W) = (n(x) * g + b) W

Only where every reader is a linear layer: beside a residual, as in BERT, the norm's result is wanted as it is.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from compactor.passes.base import Applied, NoMatch, Refused, RewritePass, RewriteResult
from compactor.passes.graph.equalising import factors, norms, scaled
from compactor.passes.graph.matching import Array, add_initializer, attribute, constant, layer_of

_NORMS = ("LayerNormalization", "RMSNormalization")


@dataclasses.dataclass(frozen=True)
class ScaleNormsPass(RewritePass):
    """Equalise the channels of every norm whose readers are products with constant matrices."""

    name: ClassVar[str] = "scale-norms"

    def call(self, model: ir.Model) -> RewriteResult:
        """Scale the main graph's norms."""
        applied, refused = [], []
        tables = _tables(model.graph)
        for node in tuple(model.graph):
            if node.op_type not in _NORMS or node.domain:
                continue
            try:
                count = _equalise(model.graph, node, tables)
            except NoMatch as reason:
                refused.append(Refused(layer_of(node), str(reason)))
                continue
            applied.append(Applied(layer_of(node), "scaled-norm-channel", count))
        return RewriteResult.of(model, applied, refused)


def _equalise(graph: ir.Graph, norm: ir.Node, tables: set[tuple[int, ...]]) -> int:
    """How many channels were scaled. Raises NoMatch, before anything changes."""
    result = norm.outputs[0]
    given = [value for value in norm.inputs[1:] if value is not None]
    vectors = [_vector(value) for value in given]
    width = vectors[0].size
    if any(vector.size != width for vector in vectors) or attribute(norm, "axis", -1) != -1:
        raise NoMatch("the norm has no number for each channel of the last axis")
    readers = [usage.node for usage in result.uses()]
    if result.is_graph_output() or not readers:
        raise NoMatch("the norm's result is an output")
    weights = [_weight(reader, result, width) for reader in readers]
    if any(weight.shape[::-1] in tables for weight in weights):
        raise NoMatch("a reader's matrix is a table of embeddings as well")
    written = np.sqrt(sum(np.square(vector.astype(np.float64)) for vector in vectors))
    read = np.sqrt(sum(np.square(norms(weight, axis=1)) for weight in weights))
    by = factors(np.asarray(written), np.asarray(read))
    changed = int((by != 1).sum())
    if not changed:
        return 0
    for value, vector in zip(given, vectors, strict=True):
        new = add_initializer(graph, f"{value.name}.scaled", scaled(vector, by))
        norm.replace_input_with(norm.inputs.index(value), new)
    for reader, weight in zip(readers, weights, strict=True):
        old = reader.inputs[1]
        assert old is not None
        reader.replace_input_with(1, add_initializer(graph, f"{old.name}.scaled", scaled(weight, 1 / by[:, None])))
    return changed


def _vector(value: ir.Value) -> Array:
    array = constant(value)
    if array is None or array.ndim != 1:
        raise NoMatch("the norm's weights are no constants")
    return array


def _weight(reader: ir.Node, value: ir.Value, width: int) -> Array:
    """The matrix (in, out) of a reader. Raises NoMatch where it is no linear layer."""
    weight = constant(reader.inputs[1]) if reader.op_type == "MatMul" and not reader.domain else None
    if weight is None or weight.shape[:1] != (width,) or weight.ndim != 2 or reader.inputs[0] is not value:
        raise NoMatch(f"'{reader.op_type}' reads the norm as it is")
    return weight


def _tables(graph: ir.Graph) -> set[tuple[int, ...]]:
    """The shapes of all constants that rows are looked up in."""
    found = (constant(node.inputs[0]) for node in graph if node.op_type == "Gather")
    return {array.shape for array in found if array is not None}
