"""``_masks.py``: a summary is a claim about every element of a mask, so each is checked against the mask itself."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator
from onnx_ir.passes.common import ShapeInferencePass

from compactor.passes.graph.masks import (
    hides_all_from_padding,
    hides_padding,
    summarize,
    weighs_hidden_evenly,
    zeroes_padding,
)
from tests.builder import Builder
from tests.masks import MASKS, gathered
from tests.models import Architecture, build
from tests.planting import attention_node
from tests.running import PADDINGS, padding_mask


def masked(*nodes, dims=("batch", "sequence")):
    """The value that ``nodes``, a chain of builder calls, make of the input ``attention_mask``."""
    value = ir.Value(name="attention_mask", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape(dims))
    builder = Builder([value], np.float64)
    result = value
    for make in nodes:
        result = make(builder, result)
    ShapeInferencePass()(ir.Model(builder.graph, ir_version=11))
    return result, builder


def run(builder, value, mask):
    builder.graph.outputs[:] = [value]
    value.type = value.type or ir.TensorType(ir.DataType.BOOL)
    proto = ir.to_proto(ir.Model(builder.graph, ir_version=11))
    return ReferenceEvaluator(proto).run(None, {"attention_mask": mask})[0]


@pytest.mark.parametrize(
    "name", ["plain", "additive", "scaled", "soft", "gathered", "gathered_additive", "inverted", "visible"]
)
def test_a_summary_is_what_the_mask_computes(name):
    value, builder = masked(lambda b, x: MASKS[name](b, {"attention_mask": x}))
    summary = summarize(value)
    assert summary is not None
    for padding in PADDINGS:
        mask = padding_mask(padding)
        expected = np.where(mask == 1, summary.real, summary.padded)[:, None, None, :]
        computed = run(builder, value, mask)
        assert computed.ndim == len(summary.axes) == 4
        np.testing.assert_array_equal(computed, np.broadcast_to(expected, computed.shape))
        assert (computed.dtype == np.bool_) == summary.boolean


def test_a_grid_with_its_axes_swapped_is_not_the_mask():
    swapped, _ = masked(lambda b, x: gathered(b, {"attention_mask": x}, swap=True))
    assert not hides_padding(swapped)
    assert summarize(swapped) is None or not summarize(swapped).is_padding_mask


@pytest.mark.parametrize("name", ["none", "causal", "bias_only", "given", "soft", "inverted", "visible"])
def test_what_does_not_hide_padding_is_not_claimed_to(name):
    model = build(Architecture(mask=name))
    inputs = attention_node(model).inputs
    hides = hides_padding(inputs[3] if len(inputs) > 3 else None)
    assert hides == (name == "causal")  # causal and padding: hides the padding, and more


@pytest.mark.parametrize("name", ["plain", "additive", "scaled", "gathered", "bias"])
def test_a_mask_that_hides_padding_is_recognised(name):
    assert hides_padding(attention_node(build(Architecture(mask=name))).inputs[3])


@pytest.mark.parametrize("axis", [0, 1, 3])
def test_a_gather_may_choose_heads_but_not_examples_or_keys(axis):
    model = build(Architecture(mask="bias"))
    node = attention_node(model)
    index = ir.Value(name="index", const_value=ir.tensor(np.array([1, 0])))
    gather = ir.Node("", "Gather", [node.inputs[3], index], attributes=[ir.AttrInt64("axis", axis)])
    assert hides_padding(gather.outputs[0]) == (axis == 1)


@pytest.mark.parametrize(
    ("chain", "padded", "real", "boolean"),
    [
        ((lambda b, x: b.node("Cast", x, to=ir.DataType.BOOL.value),), 0, 1, True),
        ((lambda b, x: b.node("Equal", x, b.constant(0)),), 1, 0, True),
        ((lambda b, x: b.node("Greater", x, b.constant(0)),), 0, 1, True),
        ((lambda b, x: b.node("GreaterOrEqual", x, b.constant(1)),), 0, 1, True),
        ((lambda b, x: b.node("Identity", x), lambda b, x: b.node("Mul", x, b.constant(7))), 0, 7, False),
        ((lambda b, x: b.node("Add", x, b.constant([[2]])),), 2, 3, False),
        ((lambda b, x: b.node("Or", b.node("Cast", x, to=9), b.constant(np.array(True))),), 1, 1, True),
    ],
)
def test_operators_on_the_mask(chain, padded, real, boolean):
    value, builder = masked(*chain)
    summary = summarize(value)
    assert (summary.padded, summary.real, summary.boolean) == (padded, real, boolean)
    mask = padding_mask("holes")
    np.testing.assert_array_equal(run(builder, value, mask), np.where(mask == 1, real, padded))


@pytest.mark.parametrize(
    "chain",
    [
        pytest.param((lambda b, x: b.node("CumSum", x, b.constant(1)),), id="mixes-positions"),
        pytest.param((lambda b, x: b.node("Transpose", x, perm=[1, 0]),), id="swaps-axes"),
        pytest.param((lambda b, x: b.node("Add", x, b.constant(np.arange(6))),), id="varies-by-position"),
    ],
)
def test_an_operator_it_does_not_know_gives_no_summary(chain):
    assert summarize(masked(*chain)[0]) is None


@pytest.mark.parametrize("op_type", ["And", "Or", "Equal"])
def test_a_function_of_a_query_and_a_key_is_not_summed_up(op_type):
    """Where both are real, or both padded, it may well be constant: `Equal` is True twice, and False between them."""

    def cross(b, x):
        return b.node(op_type, *(b.node("Unsqueeze", b.node("Cast", x, to=9), b.constant([axis])) for axis in (1, 2)))

    assert summarize(masked(cross)[0]) is None


def test_no_mask_hides_nothing():
    assert summarize(None) is None
    assert not hides_padding(None)


def last_mask(**knobs):
    return attention_node(build(Architecture(**knobs))).inputs[3]


@pytest.mark.parametrize(
    ("mask", "hides", "evenly", "all_of_padding"),
    [
        ("plain", True, False, False),
        ("additive", True, False, False),
        ("window", True, False, False),  # zeros for a query that sees nothing
        ("window_additive", True, True, False),
        ("window_lowest", True, True, False),
        ("window_scaled", True, True, False),
        ("window_expanded", True, True, False),
        ("window_added", True, True, False),
        ("both_real", True, True, True),
        ("bias", True, False, False),
        ("causal", True, False, False),
    ],
)
def test_what_a_query_gets_that_sees_nothing(mask, hides, evenly, all_of_padding):
    value = last_mask(mask=mask)
    assert hides_padding(value) == hides
    assert weighs_hidden_evenly(value) == evenly
    assert hides_all_from_padding(value) == all_of_padding


def test_logits_of_distances_beside_a_mask_change_nothing_of_that():
    value = last_mask(mask="both_real", relative="both")
    assert hides_padding(value) and weighs_hidden_evenly(value) and hides_all_from_padding(value)


def test_a_bias_of_some_heads_that_is_hidden_where_padded_leaves_no_query_alone():
    """T5: Where(visible, bias, lowest), of which a pruned layer reads its own heads."""
    visible, builder = masked(
        lambda b, x: b.node("Unsqueeze", b.node("Cast", x, to=ir.DataType.BOOL.value), b.constant([1, 2]))
    )
    bias = builder.constant(np.arange(4.0).reshape(1, 4, 1, 1))
    mask = builder.node("Where", visible, bias, builder.number(float(np.finfo(np.float32).min)))
    for value in (mask, builder.node("Gather", mask, builder.constant([0, 2]), axis=1)):
        assert hides_padding(value) and not weighs_hidden_evenly(value)


@pytest.mark.parametrize("axes", [[1], [-1]])
def test_an_axis_that_is_taken_off_again(axes):
    value, _ = masked(lambda b, x: b.node("Squeeze", b.node("Unsqueeze", x, b.constant([1, 3])), b.constant(axes)))
    assert summarize(value).axes == (("batch", "key", "1") if axes == [1] else ("batch", "1", "key"))


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ([3, 1, 1, 6], ("batch", "1", "1", "key")),
        ([1, 3, 6], ("1", "batch", "key")),
        ([3, 6, 1], ("batch", "key", "1")),
        ([3, 6], ("batch", "key")),
        ([6, 3], None),
        ([18], None),
        ([3, 2, 3], None),
    ],
)
def test_a_reshape_may_put_axes_of_one_between(shape, axes):
    value, builder = masked(lambda b, x: b.node("Reshape", x, b.constant(shape)), dims=(3, 6))
    summary = summarize(value)
    assert (None if summary is None else summary.axes) == axes
    if axes is not None:
        mask = padding_mask("left")
        np.testing.assert_array_equal(run(builder, value, mask), mask.reshape(shape))


def test_a_reshape_to_an_unknown_shape_gives_no_summary():
    value, _ = masked(lambda b, x: b.node("Reshape", x, b.constant([-1])))
    value.shape = None
    assert summarize(value) is None


@pytest.mark.parametrize("axes", [[0], [1]])
def test_an_axis_of_examples_or_keys_is_not_taken_off(axes):
    assert summarize(masked(lambda b, x: b.node("Squeeze", x, b.constant(axes)))[0]) is None


@pytest.mark.parametrize("flipped", [False, True])
def test_a_choice_by_the_mask_is_one_of_two_numbers(flipped):
    def choose(b, x):
        condition = b.node("Equal", x, b.constant(0 if flipped else 1))
        return b.node("Where", condition, b.number(3), b.node("Cast", b.node("Mul", x, b.constant(-7)), to=11))

    value, builder = masked(choose)
    summary = summarize(value)
    assert (summary.padded, summary.real) == ((3, -7) if flipped else (0, 3))
    mask = padding_mask("holes")
    np.testing.assert_array_equal(run(builder, value, mask), np.where(mask == 1, summary.real, summary.padded))


def lower_rank(b, x):
    """(B, 1, S): added to (1 or B, H, S, S), its examples stand where heads do."""
    keys = b.node("Cast", b.node("Unsqueeze", x, b.constant([1])), to=ir.DataType.DOUBLE.value)
    return b.node("Mul", b.node("Sub", b.number(1), keys), b.number(-1e10))


def visible_keys(b, x):
    return b.node("Cast", b.node("Unsqueeze", x, b.constant([1])), to=ir.DataType.BOOL.value)


@pytest.mark.parametrize(
    "write",
    [
        pytest.param(lambda b, x: b.node("Add", b.node("Expand", bias(b), sizes(b)), lower_rank(b, x)), id="added"),
        pytest.param(lambda b, x: b.node("Expand", lower_rank(b, x), sizes(b)), id="expanded"),
        pytest.param(
            lambda b, x: b.node("Where", visible_keys(b, x), b.node("Expand", bias(b), sizes(b)), b.number(-1e30)),
            id="chosen",
        ),
        pytest.param(
            lambda b, x: b.node("And", b.node("Cast", b.node("Expand", bias(b), sizes(b)), to=9), visible_keys(b, x)),
            id="both",
        ),
    ],
)
def test_a_mask_of_fewer_axes_hides_no_padding_of_its_example(write):
    """Examples where the heads are: nothing is proven, and in a batch of as many examples as heads it is wrong."""
    value, _ = masked(write, dims=(3, 6))
    assert len(value.shape) == 4
    assert not hides_padding(value)


def bias(b):
    return b.constant(np.random.default_rng(0).standard_normal((1, 3, 6, 6)))


def sizes(b):
    return b.constant([3, 3, 6, 6])


def test_a_product_with_the_padding_mask_is_zero_where_padded():
    zeroed = next(node for node in build(Architecture(mask="plain", zeroed=True)).graph if node.name == "zeroed")
    assert zeroes_padding(zeroed)
    other = next(node for node in build(Architecture(mask="plain", activation="silu")).graph if node.op_type == "Mul")
    assert not zeroes_padding(other)
