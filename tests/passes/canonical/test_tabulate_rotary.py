from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compactor.passes.canonical.tabulate_rotary import TabulateRotaryPass
from tests.attention import POSITIONS
from tests.models import Architecture, build
from tests.passes.strategies import PROPERTY, architectures
from tests.running import (
    PADDINGS,
    assert_rewrites_once,
    assert_same,
    assert_untouched,
    operators,
    padding_mask,
    random_feeds,
    run32,
    run64,
)

ARCH = Architecture(form="4d", rotary="half", angles=True, layers=2)


@pytest.mark.parametrize("positions", [POSITIONS, None])
def test_angles_are_read_by_position(positions):
    model = build(ARCH)
    feeds = random_feeds(model, padding_mask("left"))
    before = run64(model, feeds)

    assert_rewrites_once(TabulateRotaryPass(positions=positions), model, tabulated_rotary=4)

    counts = operators(model)
    nodes = [node for node in model.graph if node.op_type == "RotaryEmbedding"]
    assert len({node.inputs[3] for node in nodes}) == 1  # positions are made once
    if positions is None:
        assert counts["Squeeze"] > 0 and all(node.inputs[1].const_value is None for node in nodes)
    else:
        assert "Cos" not in counts and "Sin" not in counts
        assert len({node.inputs[1] for node in nodes}) == 1
        assert nodes[0].inputs[1].const_value.numpy().shape == (POSITIONS, ARCH.qk // 2)
    assert_same(run64(model, feeds), before)


def test_onnxruntime_runs_batches_of_any_size_then():
    model = build(dataclasses.replace(ARCH, dtype=np.float32))
    feeds = random_feeds(model, padding_mask("right"))
    with pytest.raises(Exception, match="RotaryEmbedding"):
        run32(model, feeds)
    expected = run64(model, feeds)
    TabulateRotaryPass(positions=POSITIONS)(model)
    assert_same(run32(model, feeds), expected, tolerance=1e-4)


def test_tables_are_as_exact_as_the_model():
    model = build(dataclasses.replace(ARCH, dtype=np.float32))
    TabulateRotaryPass(positions=5000)(model)
    table = next(node for node in model.graph if node.op_type == "RotaryEmbedding").inputs[1].const_value.numpy()
    frequencies = np.float32([1.0, 0.1])
    np.testing.assert_array_equal(table, np.cos(np.arange(5000, dtype=np.float32)[:, None] * frequencies))


def test_what_has_positions_stays():
    model = build(dataclasses.replace(ARCH, angles=False))
    assert_untouched(TabulateRotaryPass(positions=POSITIONS), model)


def test_angles_of_something_else_stay():
    model = build(ARCH)
    for node in model.graph:
        if node.op_type == "Range":
            node.replace_input_with(0, node.inputs[2])  # 1, 2, 3, ...
    assert_untouched(TabulateRotaryPass(positions=POSITIONS), model, "no multiples of positions")


def test_angles_in_another_shape_stay():
    model = build(ARCH)
    one = ir.Value(name="one", const_value=ir.tensor(np.array([1])), type=ir.TensorType(ir.DataType.INT64))
    model.graph.register_initializer(one)
    for outer in model.graph:
        inner = outer.inputs[0].producer() if outer.op_type == "Unsqueeze" else None
        if inner is not None and inner.op_type == "Unsqueeze" and inner.inputs[0].producer().op_type == "Range":
            outer.replace_input_with(0, inner.inputs[0])
            outer.replace_input_with(1, one)  # (S, r/2): the first row would be that of one position
    assert_untouched(TabulateRotaryPass(positions=POSITIONS), model, "not one row a position")


def test_a_length_that_is_no_inputs_stays():
    model = build(ARCH)
    for node in model.graph:
        if node.op_type == "Shape" and node.inputs[0].name == "attention_mask":
            node.replace_input_with(0, model.graph.inputs[0])
    assert_untouched(TabulateRotaryPass(positions=POSITIONS), model, "not that of an input (B, S)")


@PROPERTY
@given(
    architectures(form="4d", qk=4, angles=True, front="ids"),
    st.sampled_from(["half", "interleaved"]),
    st.sampled_from([0, 2]),
    st.sampled_from(PADDINGS),
    st.sampled_from([POSITIONS, None]),
)
def test_changes_no_number(arch, rotary, rotated, padding, positions):
    model = build(dataclasses.replace(arch, rotary=rotary, rotated=rotated))
    feeds = random_feeds(model, padding_mask(padding))
    before = run64(model, feeds)
    assert TabulateRotaryPass(positions=positions)(model).modified
    assert_same(run64(model, feeds), before)
