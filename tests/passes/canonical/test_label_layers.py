from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from compactor.passes.canonical.label_layers import LabelLayersPass
from tests.decoders import build_decoder
from tests.models import Architecture, build
from tests.running import assert_rewrites_once

KEY = "compactor.layer"


def labels(model):
    return {node.name: node.metadata_props.get(KEY) for node in model.graph}


def test_numbers_attention_and_feed_forward_in_graph_order():
    model = build(Architecture(layers=2, head="classifier"))
    result = assert_rewrites_once(LabelLayersPass(), model, labelled_sublayer=4)
    assert [event.layer for event in result.applied] == [
        "layers.0.attention",
        "layers.0.feed_forward",
        "layers.1.attention",
        "layers.1.feed_forward",
    ]
    found = labels(model)
    for layer in (0, 1):
        for name in ("query", "key", "value", "attention", "output"):
            assert found[f"{layer}.{name}"] == f"layers.{layer}.attention"
        for name in ("up", "down"):
            assert found[f"{layer}.{name}"] == f"layers.{layer}.feed_forward"
    assert found["first"] is None and found["logits"] is None


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_the_residual_belongs_to_the_sublayer_and_so_does_a_norm_behind_it(norm):
    model = build(Architecture(norm=norm))
    LabelLayersPass()(model)
    found = labels(model)
    assert found["0.residual"] == "layers.0.attention"
    assert found["0.second_residual"] == "layers.0.feed_forward"
    assert found["0.attention_norm"] == ("layers.0.attention" if norm == "post" else None)


def test_changes_no_name_and_no_number():
    model = build(Architecture(gated=True))
    before = ir.to_proto(model).graph
    LabelLayersPass()(model)
    after = ir.to_proto(model).graph
    for node in after.node:
        node.ClearField("metadata_props")
    assert after == before


def test_an_attention_without_a_block_still_takes_a_number():
    model = build(Architecture(layers=2), inputs=["0.query"])
    LabelLayersPass()(model)
    found = labels(model)
    assert found["0.attention"] == "layers.0.attention" and found["0.output"] is None
    assert found["1.query"] == "layers.1.attention"


def test_a_second_feed_forward_in_a_layer_gets_a_number():
    """As in a pooler: dense, activation, dense behind the last layer."""
    model = build(Architecture(head="tokens"))
    down = next(node for node in model.graph if node.name == "classifier")
    active = ir.Node("", "Tanh", [down.outputs[0]], name="pooler")
    active.outputs[0].name = "pooled"
    more = ir.Node("", "MatMul", [active.outputs[0], _weight(model)], name="dense")
    more.outputs[0].name, more.outputs[0].type = "dense", ir.TensorType(ir.DataType.DOUBLE)
    for node in (active, more):
        model.graph.append(node)
    model.graph.outputs[:] = [more.outputs[0]]
    LabelLayersPass()(model)
    assert labels(model)["dense"] == "layers.0.feed_forward_2"


def test_a_decoders_layer_has_two_attentions_of_one_number():
    model = build_decoder(Architecture(layers=2))
    result = assert_rewrites_once(LabelLayersPass(stack="decoder"), model, labelled_sublayer=6)
    assert [event.layer for event in result.applied] == [
        f"decoder.layers.{layer}.{kind}"
        for layer in (0, 1)
        for kind in ("attention", "cross_attention", "feed_forward")
    ]
    found = labels(model)
    for name in ("query", "key", "value", "attention", "output", "residual"):
        assert found[f"1.{name}"] == "decoder.layers.1.attention"
        assert found[f"1.cross.{name}"] == "decoder.layers.1.cross_attention"
    assert found["logits"] is None


def test_the_name_of_the_stack_stands_before_every_label():
    model = build(Architecture(layers=2))
    result = LabelLayersPass(stack="encoder")(model)
    assert [event.layer for event in result.applied][:2] == [
        *("encoder.layers.0.attention", "encoder.layers.0.feed_forward"),
    ]


def test_other_states_than_the_encoders_are_no_cross_attention():
    """The input's name is what says so: a second input of any other name makes an attention of its own."""
    model = build_decoder(Architecture())
    next(value for value in model.graph.inputs if value.name == "encoder_hidden_states").name = "states"
    result = LabelLayersPass()(model)
    assert [event.layer for event in result.applied][:2] == ["layers.0.attention", "layers.1.attention"]


def _weight(model):
    value = ir.Value(name="dense_weight", const_value=ir.tensor(np.ones((3, 2)), name="dense_weight"))
    model.graph.register_initializer(value)
    return value
