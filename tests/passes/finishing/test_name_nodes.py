from __future__ import annotations

import onnx_ir as ir

from compactor.passes.canonical.label_layers import LabelLayersPass
from compactor.passes.finishing.name_nodes import NameNodesPass
from tests.models import Architecture, build
from tests.running import assert_rewrites_once, assert_same, random_feeds, run64


def test_names_say_the_layer_and_the_operator():
    model = build(Architecture(layers=2))
    feeds = random_feeds(model)
    before = run64(model, feeds)
    LabelLayersPass()(model)
    assert_rewrites_once(NameNodesPass(), model, named_node=len(list(model.graph)))
    names = [node.name for node in model.graph]
    assert len(set(names)) == len(names)
    assert "layers.1.attention/Attention_0" in names
    assert "layers.0.feed_forward/MatMul_1" in names
    assert "model/LayerNormalization_0" in names
    assert_same(run64(model, feeds), before)


def test_drops_what_the_exporter_noted_and_keeps_the_layer():
    model = build(Architecture())
    LabelLayersPass()(model)
    secret = "built at some path"  # as an exporter's stack traces are
    for node in model.graph:
        node.metadata_props["pkg.torch.onnx.stack_trace"] = secret
        node.doc_string = secret
        for value in node.outputs:
            value.metadata_props["note"] = secret
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props["note"] = secret
    model.metadata_props["note"] = model.graph.metadata_props["note"] = secret
    NameNodesPass()(model)
    assert secret.encode() not in ir.to_proto(model).SerializeToString()
    layers = {node.metadata_props.get("compactor.layer") for node in model.graph}
    assert layers == {None, "layers.0.attention", "layers.0.feed_forward"}
    assert all(set(node.metadata_props) <= {"compactor.layer"} for node in model.graph)
