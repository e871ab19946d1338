"""Give every node the name of its place: ``layers.3.attention/MatMul_2``.

ONNX Runtime's profiler reports by node name, so a profile can be read by layer. Also drops the exporter's metadata,
which holds source paths and stack traces of the machine that traced the model.
"""

from __future__ import annotations

import collections
import dataclasses
from typing import ClassVar

import onnx_ir as ir

from compactor.passes.base import Applied, RewritePass, RewriteResult
from compactor.passes.graph.matching import LAYER_KEY


@dataclasses.dataclass(frozen=True)
class NameNodesPass(RewritePass):
    """Name the nodes of the main graph by layer and operator; clear doc strings and all metadata but the layer."""

    name: ClassVar[str] = "name-nodes"

    def call(self, model: ir.Model) -> RewriteResult:
        """Name the main graph's nodes."""
        numbers: collections.Counter[str] = collections.Counter()
        renamed = 0
        for node in model.graph:
            layer = node.metadata_props.get(LAYER_KEY)
            stem = f"{layer or 'model'}/{node.op_type}"
            name = f"{stem}_{numbers[stem]}"
            numbers[stem] += 1
            renamed += node.name != name
            node.name = name
            node.metadata_props.clear()
            if layer is not None:
                node.metadata_props[LAYER_KEY] = layer
            node.doc_string = None
            for value in node.outputs:
                value.metadata_props.clear()
        for value in (*model.graph.inputs, *model.graph.initializers.values()):
            value.metadata_props.clear()
        model.metadata_props.clear()
        model.graph.metadata_props.clear()
        return RewriteResult.of(model, (Applied("graph", "named-node", renamed),))
