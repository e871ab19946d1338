from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compactor.passes.canonical.raise_normalization import RaiseNormalizationPass
from tests.models import EPSILON, Architecture, build, random_weights
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

ARCH = Architecture(norms="root")
SPELLINGS = ("root", "twice", "reciprocal")


@pytest.mark.parametrize("rms", [False, True])
@pytest.mark.parametrize("norms", SPELLINGS)
def test_every_spelling_becomes_one_node(norms, rms):
    arch = dataclasses.replace(ARCH, norms=norms, rms=rms)
    weights = random_weights(arch)
    model = build(arch, weights)
    feeds = random_feeds(model)
    before = run64(model, feeds)

    assert_rewrites_once(RaiseNormalizationPass(), model, raised_norm=3)

    counts = operators(model)
    assert counts["RMSNormalization" if rms else "LayerNormalization"] == 3
    assert not {"Sqrt", "ReduceMean", "Pow", "Sub", "Reciprocal"} & counts.keys()
    node = next(node for node in model.graph if node.op_type.endswith("Normalization"))
    assert node.attributes["epsilon"].value == pytest.approx(EPSILON)
    assert [value.const_value.numpy().tolist() for value in node.inputs[1:]] == [
        weights[f"first.{part}"].tolist() for part in (("scale",) if rms else ("scale", "shift"))
    ]
    assert_same(run64(model, feeds), before)


@pytest.mark.parametrize("missing", [("scale",), ("shift",), ("scale", "shift")])
@pytest.mark.parametrize("rms", [False, True])
def test_a_norm_may_have_no_weight_and_no_shift(rms, missing):
    arch = dataclasses.replace(ARCH, rms=rms)
    weights = random_weights(arch)
    for part in missing:
        del weights[f"0.attention_norm.{part}"]
    model = build(arch, weights)
    feeds = random_feeds(model)
    before = run64(model, feeds)
    assert_rewrites_once(RaiseNormalizationPass(), model, raised_norm=3)
    assert_same(run64(model, feeds), before)


def test_the_result_keeps_its_name_where_it_is_an_output():
    model = build(ARCH, outputs=["first"])
    feeds = random_feeds(model)
    before = run64(model, feeds)
    assert_rewrites_once(RaiseNormalizationPass(), model, raised_norm=3)
    assert_same(run64(model, feeds), before)


def of_type(model, op_type, number=0):
    return [node for node in model.graph if node.op_type == op_type][number]


def constant(model, array, name="planted"):
    value = ir.Value(name=name, const_value=ir.tensor(np.asarray(array), name=name))
    value.type, value.shape = ir.TensorType(value.const_value.dtype), ir.Shape(value.const_value.shape)
    model.graph.register_initializer(value)
    return value


def other_axis(model):
    for number in range(6):
        of_type(model, "ReduceMean", number).replace_input_with(1, constant(model, [1], f"axis_{number}"))


def other_power(model):
    for number in range(3):
        of_type(model, "Pow", number).replace_input_with(1, constant(model, 4.0, f"four_{number}"))


def epsilon_that_is_computed(model):
    value = ir.Value(name="epsilon", type=ir.TensorType(ir.DataType.DOUBLE), shape=ir.Shape([]))
    model.graph.inputs.append(value)
    for number in range(3):
        add = of_type(model, "Sqrt", number).inputs[0].producer()
        add.replace_input_with(1, value)


def divides_something_else(model):
    for number in range(3):
        div = of_type(model, "Div", number)
        div.replace_input_with(0, model.graph.inputs[0])


def divides_the_other_way(model):
    for number in range(3):
        div = of_type(model, "Div", number)
        left, right = div.inputs
        div.replace_input_with(0, right)
        div.replace_input_with(1, left)


def root_is_read_twice(model):
    for number in range(3):
        root = of_type(model, "Sqrt", number).outputs[0]
        reader = ir.Node("", "Identity", [root], name=f"root_{number}")
        reader.outputs[0].name, reader.outputs[0].type = f"root_{number}", ir.TensorType(ir.DataType.DOUBLE)
        model.graph.append(reader)
        model.graph.outputs.append(reader.outputs[0])


@pytest.mark.parametrize(
    "change",
    [
        other_axis,
        other_power,
        epsilon_that_is_computed,
        divides_something_else,
        divides_the_other_way,
        root_is_read_twice,
    ],
    ids=lambda change: change.__name__,
)
def test_anything_else_is_left_as_it_is(change):
    model = build(ARCH)
    change(model)
    assert_untouched(RaiseNormalizationPass(), model)


def test_a_mean_of_something_else_is_not_taken_off():
    """(x - mean(y)) / root of its own mean square is an RMS norm of x - mean(y)."""
    model = build(ARCH)
    other = constant(model, np.random.default_rng(0).standard_normal((1, 1, ARCH.width)))
    of_type(model, "ReduceMean").replace_input_with(0, other)
    feeds = random_feeds(model)
    before = run64(model, feeds)
    assert_rewrites_once(RaiseNormalizationPass(), model, raised_norm=3)
    assert operators(model)["RMSNormalization"] == 1 and operators(model)["LayerNormalization"] == 2
    assert_same(run64(model, feeds), before)


@pytest.mark.parametrize("rms", [False, True])
def test_onnx_runtime_agrees(rms):
    model = build(dataclasses.replace(ARCH, dtype=np.float32, rms=rms))
    feeds = random_feeds(model)
    before = run32(model, feeds)
    assert_rewrites_once(RaiseNormalizationPass(), model, raised_norm=3)
    assert_same(run32(model, feeds), before, tolerance=1e-4)


@PROPERTY
@given(architectures(), st.sampled_from(SPELLINGS), st.booleans(), st.sampled_from(PADDINGS))
def test_changes_no_number(arch, norms, rms, padding):
    arch = dataclasses.replace(arch, norms=norms, rms=rms)
    model = build(arch, random_weights(arch))
    feeds = random_feeds(model, padding_mask(padding))
    before = run64(model, feeds)
    assert RaiseNormalizationPass()(model).modified
    assert "Sqrt" not in operators(model)
    assert_same(run64(model, feeds), before)
