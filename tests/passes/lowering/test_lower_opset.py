from __future__ import annotations

import collections

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_ir.passes.common import ShapeInferencePass

from compactor.passes.lowering.decompose_attention import DecomposeAttentionPass
from compactor.passes.lowering.lower_opset import (
    _AXES_BECAME_INPUT_AT_18,
    ADDED_ATTRIBUTES,
    INTRODUCED,
    OLDEST,
    LowerOpsetPass,
)
from compactor.passes.precision.quantize_linears import QuantizeLinearsPass
from tests.builder import Builder
from tests.models import Architecture, build
from tests.running import (
    assert_rewrites_once,
    assert_same,
    assert_untouched,
    int8_saturates,
    operators,
    random_feeds,
    run32,
)


def history():
    """Every standard operator's schemas, oldest first."""
    schemas = collections.defaultdict(list)
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain == "":
            schemas[schema.name].append(schema)
    return {name: sorted(found, key=lambda schema: schema.since_version) for name, found in schemas.items()}


def test_the_tables_say_what_onnx_says():
    introduced, added, changed_inputs = {}, collections.defaultdict(dict), set()
    for name, schemas in history().items():
        if schemas[0].since_version > OLDEST:
            introduced[name] = schemas[0].since_version
            continue
        old = [schema for schema in schemas if schema.since_version <= OLDEST][-1]
        for schema in schemas:
            if schema.since_version > OLDEST:
                for attribute in schema.attributes.keys() - old.attributes.keys():
                    added[name].setdefault(attribute, schema.since_version)
                if [i.name for i in schema.inputs] != [i.name for i in old.inputs]:
                    changed_inputs.add(name)
    assert introduced.items() <= INTRODUCED.items()
    known = {name: {key: since for key, (since, _) in table.items()} for name, table in ADDED_ATTRIBUTES.items()}
    elsewhere = {*_AXES_BECAME_INPUT_AT_18, "Split"}  # their own rules
    missing = {
        name: table
        for name, table in added.items()
        if name not in elsewhere and table.items() - known.get(name, {}).items()
    }
    assert not missing
    assert changed_inputs == {*_AXES_BECAME_INPUT_AT_18, "Pad", "DFT"}


def assert_every_node_exists_at_its_opset(model: ir.Model) -> None:
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    for node in model.graph:
        schema = onnx.defs.get_schema(node.op_type, model.graph.opset_imports[""], node.domain)
        assert set(node.attributes) <= set(schema.attributes), node.op_type


@pytest.mark.parametrize("activation", ["gelu", "tanh-gelu", "erf-gelu", "silu"])
@pytest.mark.parametrize("head", ["classifier", "span", "mean", "tokens"])
def test_a_transformer_runs_at_opset_17(activation, head):
    model = build(
        Architecture(layers=2, activation=activation, head=head, front="ids", mask="gathered", dtype=np.float32)
    )
    feeds = random_feeds(model)
    before = run32(model, feeds)
    DecomposeAttentionPass()(model)

    result = LowerOpsetPass()(model)

    assert result.modified and not result.refused
    assert model.graph.opset_imports == {"": 17} and model.ir_version == 8
    assert_every_node_exists_at_its_opset(model)
    assert_same(run32(model, feeds), before, 1e-5)
    assert_same(run32(model, feeds, optimize=True), before, 1e-5)
    assert not LowerOpsetPass()(model).modified


def test_gelu_stays_where_the_opset_knows_it():
    model = build(Architecture(dtype=np.float32))
    DecomposeAttentionPass()(model)
    assert_rewrites_once(LowerOpsetPass(opset=20), model, opset_20=1)
    assert operators(model)["Gelu"] == 1
    assert model.ir_version == 9


def test_int8_in_standard_operators_runs_at_opset_17():
    model = build(Architecture(dtype=np.float32))
    feeds = random_feeds(model)
    before = run32(model, feeds)
    DecomposeAttentionPass()(model)
    LowerOpsetPass()(model)
    QuantizeLinearsPass(operators="standard", min_elements=1)(model)
    assert_every_node_exists_at_its_opset(model)
    assert operators(model)["MatMulInteger"] == 6
    after = run32(model, feeds)
    if not int8_saturates():
        assert_same(after, before, 0.1)


def graph_of(op_type, *, inputs=(), outputs=1, shape=("batch", 6), **attributes):
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(shape))
    builder = Builder([x], np.float32)
    made = builder.node(op_type, x, *(builder.constant(i) for i in inputs), outputs=outputs, **attributes)
    builder.graph.outputs.extend(made if outputs > 1 else [made])
    model = ir.Model(builder.graph, ir_version=11)
    ShapeInferencePass()(model)
    return model


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(lambda: graph_of("ReduceMean", inputs=[[1]], keepdims=0, noop_with_empty_axes=0), id="axes"),
        pytest.param(lambda: graph_of("ReduceMax"), id="no-axes"),
        pytest.param(lambda: graph_of("ReduceMax", noop_with_empty_axes=0), id="no-axes-said"),
        pytest.param(lambda: graph_of("Split", outputs=2, axis=1, num_outputs=2), id="split"),
        pytest.param(lambda: graph_of("Cast", to=1, saturate=1), id="cast"),
        pytest.param(lambda: graph_of("Pad", inputs=[[0, 1, 0, 1]]), id="pad"),
    ],
)
def test_what_only_moved_is_written_the_old_way(model):
    model = model()
    feeds = {"x": np.random.default_rng(0).standard_normal((3, 6)).astype(np.float32)}
    before = run32(model, feeds)
    result = LowerOpsetPass()(model)
    assert result.modified and not result.refused
    assert_every_node_exists_at_its_opset(model)
    assert_same(run32(model, feeds), before, 1e-6)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        pytest.param(lambda: build(Architecture()), "Attention is newer than opset 17", id="attention"),
        pytest.param(lambda: graph_of("Mish"), "Mish is newer", id="mish"),
        pytest.param(lambda: graph_of("ReduceMax", noop_with_empty_axes=1), "does nothing", id="noop"),
        pytest.param(lambda: graph_of("ReduceMax", inputs=[np.zeros(0, np.int64)]), "not constant", id="empty-axes"),
        pytest.param(lambda: graph_of("Split", outputs=2, shape=("b", 5), axis=1, num_outputs=2), "even", id="uneven"),
        pytest.param(lambda: graph_of("Split", outputs=2, axis=0, num_outputs=2), "even", id="unknown-size"),
        pytest.param(lambda: graph_of("Cast", to=17, saturate=0), "saturate=0", id="saturate"),
        pytest.param(lambda: graph_of("Pad", inputs=[[1, 1], np.float32(0), [1]]), "axes as an input", id="pad-axes"),
        pytest.param(
            lambda: graph_of("ScatterND", inputs=[[[0]], np.zeros((1, 6), np.float32)], reduction="max"),
            "reduces by max",
            id="scatter",
        ),
        pytest.param(lambda: graph_of("DFT", shape=("b", 6, 1)), "DFT", id="dft"),
    ],
)
def test_leaves_the_graph_alone_and_says_why(model, reason):
    assert_untouched(LowerOpsetPass(), model(), reason)


def test_a_model_with_functions_is_left_alone():
    model = graph_of("Relu")
    x = ir.Value(name="x")
    node = ir.Node("", "Relu", [x])
    body = ir.Graph([x], [node.outputs[0]], nodes=[node], opset_imports={"": 23})
    function = ir.Function("local", "Positive", graph=body, attributes=[])
    model.functions[function.identifier()] = function
    result = LowerOpsetPass()(model)
    assert not result.modified
    assert [refusal.reason for refusal in result.refused] == ["the model defines functions"]


def test_names_every_node_in_the_way():
    result = LowerOpsetPass()(build(Architecture(layers=3)))
    assert len(result.refused) == 3


@pytest.mark.parametrize("opset", [16, 23])
def test_an_opset_that_is_not_offered_is_refused(opset):
    with pytest.raises(ValueError, match="choose 17 to 22"):
        LowerOpsetPass(opset=opset)
