"""Bool masks become one float term; every other mask stays as it is."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from compactor.passes.lowering.write_masks_as_floats import WriteMasksAsFloatsPass
from tests.models import Architecture, build
from tests.running import PADDINGS, assert_same, check, padding_mask, random_feeds, run32

BATCH, LENGTH, HEADS, WIDTH = 2, 5, 2, 6


def two_layers(mask_dtype: ir.DataType, mask_heads: int = 1) -> ir.Model:
    """Two attentions in a row that share one mask input."""
    x = _value("x", ir.DataType.FLOAT, ["batch", "length", WIDTH])
    mask = _value("mask", mask_dtype, ["batch", mask_heads, "length", "length"])
    nodes, current = [], x
    for _ in range(2):
        options = {"q_num_heads": HEADS, "kv_num_heads": HEADS, "scale": 0.5}
        attributes = [ir.convenience.convert_attribute(name, value) for name, value in options.items()]
        nodes.append(ir.Node("", "Attention", [current, current, current, mask], attributes=attributes))
        current = nodes[-1].outputs[0]
        current.type, current.shape = x.type, x.shape
    current.name = "y"
    graph = ir.Graph([x, mask], [current], nodes=nodes, opset_imports={"": 23}, name="two_layers")
    return ir.Model(graph, ir_version=11)


def _value(name: str, dtype: ir.DataType, shape: list[int | str]) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))


def feeds(mask_heads: int = 1) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    mask = random.random((BATCH, mask_heads, LENGTH, LENGTH)) < 0.6
    mask[..., 2] = True  # every query sees a key
    return {"x": random.standard_normal((BATCH, LENGTH, WIDTH), np.float32), "mask": mask}


@pytest.mark.parametrize("mask_heads", [1, HEADS])
def test_one_float_term_for_all_layers_and_the_same_output(mask_heads):
    model = two_layers(ir.DataType.BOOL, mask_heads)
    before = run32(model, feeds(mask_heads))

    result = WriteMasksAsFloatsPass()(model)

    check(model)
    assert [event.rule for event in result.applied] == ["mask-as-float"] * 2
    attentions = [node for node in model.graph if node.op_type == "Attention"]
    assert attentions[0].inputs[3] is attentions[1].inputs[3]
    assert [node.op_type for node in model.graph] == ["Where", "Attention", "Attention"]
    for name, array in run32(model, feeds(mask_heads)).items():
        np.testing.assert_allclose(array, before[name], rtol=1e-5, atol=1e-6)
    assert not WriteMasksAsFloatsPass()(model).modified


def test_a_float_mask_stays():
    model = two_layers(ir.DataType.FLOAT)
    before = ir.to_proto(model)
    assert not WriteMasksAsFloatsPass()(model).modified
    assert ir.to_proto(model) == before


@pytest.mark.parametrize("padding", PADDINGS)
def test_a_query_that_sees_no_key_keeps_its_zeros(padding):
    model = build(Architecture(mask="window", dtype=np.float32))
    feeds = random_feeds(model, padding_mask(padding, length=9))
    before = run32(model, feeds)
    assert WriteMasksAsFloatsPass()(model).modified
    assert_same(run32(model, feeds), before, tolerance=1e-5)
