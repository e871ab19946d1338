from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx_ir.passes.common import RemoveUnusedNodesPass

from compactor.passes.canonical.normalize_attention import NormalizeAttentionPass
from compactor.passes.canonical.raise_attention import RaiseAttentionPass
from tests.models import Architecture, build, random_weights
from tests.passes.strategies import PROPERTY, architectures
from tests.planting import attention_node
from tests.running import (
    PADDINGS,
    assert_rewrites_once,
    assert_same,
    assert_untouched,
    check,
    operators,
    padding_mask,
    random_feeds,
    run32,
    run64,
)

ARCH = Architecture(form="spelled", qk=4, v=3, mask="additive")


@pytest.mark.parametrize("mask", ["none", "additive", "scaled", "gathered_additive", "bias", "bias_only", "soft"])
def test_raises_a_scaled_product_with_terms(mask):
    model = build(dataclasses.replace(ARCH, mask=mask, layers=2))
    feeds = random_feeds(model, padding_mask("holes"))
    before = run64(model, feeds)

    assert_rewrites_once(RaiseAttentionPass(), model, raised_attention=2)

    counts = operators(model)
    assert counts["Attention"] == 2
    assert "Softmax" not in counts
    node = attention_node(model)
    assert len(node.inputs) == (3 if mask == "none" else 4)
    assert node.attributes["scale"].value == 0.5
    assert_same(run64(model, feeds), before)

    assert_rewrites_once(NormalizeAttentionPass(), model, normalized_attention=2)
    assert_same(run64(model, feeds), before)


def spell(model):
    """The nodes of the first spelled-out attention: MatMul, Transpose of k, Mul, Add, Softmax, MatMul."""
    by_name = {node.name: node for node in model.graph}
    product, softmax = by_name["0.logits"], by_name["0.probabilities"]
    add = softmax.inputs[0].producer()
    return product, product.inputs[1].producer(), add.inputs[0].producer(), add, softmax, by_name["0.attention"]


def node(model, op_type, inputs, before, **attributes):
    attrs = [ir.convenience.convert_attribute(key, value) for key, value in attributes.items()]
    made = ir.Node("", op_type, inputs, attributes=attrs)
    made.outputs[0].name = made.name = f"new_{op_type}_{len(list(model.graph))}"
    model.graph.insert_before(before, made)
    return made.outputs[0]


def constant(model, array, name="planted"):
    value = ir.Value(name=name, const_value=ir.tensor(np.asarray(array), name=name))
    value.type, value.shape = ir.TensorType(value.const_value.dtype), ir.Shape(value.const_value.shape)
    model.graph.register_initializer(value)
    return value


def divide(model):
    _, _, mul, *_ = spell(model)
    mul.op_type = "Div"
    mul.replace_input_with(1, constant(model, 2.0))


def factor_first(model):
    _, _, mul, *_ = spell(model)
    left, right = mul.inputs
    mul.replace_input_with(0, right)
    mul.replace_input_with(1, left)


def term_first(model):
    add = spell(model)[3]
    left, right = add.inputs
    add.replace_input_with(0, right)
    add.replace_input_with(1, left)


def two_factors(model):
    _, _, mul, add, *_ = spell(model)
    add.replace_input_with(0, node(model, "Mul", [mul.outputs[0], constant(model, 3.0)], add))


def two_terms(model):
    *_, add, softmax, _ = spell(model)
    extra = constant(model, np.random.default_rng(0).standard_normal((1, 4, 6, 6)))
    softmax.replace_input_with(0, node(model, "Add", [extra, add.outputs[0]], softmax))


def one_transpose_for_keys(model):
    """(B, S, H, d) -> (B, H, d, S) at once, as MPNet exports."""
    _, transpose, *_ = spell(model)
    split = transpose.inputs[0].producer()
    transpose.replace_input_with(0, split.inputs[0])
    transpose.attributes["perm"] = ir.AttrInt64s("perm", [0, 2, 3, 1])


@pytest.mark.parametrize("change", [divide, factor_first, term_first, two_factors, two_terms, one_transpose_for_keys])
def test_reads_every_order_of_factors_and_terms(change):
    model = build(ARCH)
    change(model)
    check(model)
    feeds = random_feeds(model, padding_mask("right"))
    before = run64(model, feeds)
    assert_rewrites_once(RaiseAttentionPass(), model, raised_attention=1)
    assert operators(model)["Attention"] == 1
    assert_same(run64(model, feeds), before)
    assert_rewrites_once(NormalizeAttentionPass(), model, normalized_attention=1)
    assert_same(run64(model, feeds), before)


def other_axis(model):
    spell(model)[4].attributes["axis"] = ir.AttrInt64("axis", 2)


def scale_after_the_terms(model):
    *_, add, softmax, _ = spell(model)
    softmax.replace_input_with(0, node(model, "Mul", [add.outputs[0], constant(model, 2.0)], softmax))


def scale_that_is_computed(model):
    _, _, mul, *_ = spell(model)
    value = ir.Value(name="temperature", type=ir.TensorType(ir.DataType.DOUBLE), shape=ir.Shape([]))
    model.graph.inputs.append(value)
    mul.replace_input_with(1, value)


def scale_per_head(model):
    spell(model)[2].replace_input_with(1, constant(model, np.arange(1.0, 5).reshape(1, 4, 1, 1)))


def not_added(model):
    spell(model)[3].op_type = "Sub"


def keys_not_transposed_like_keys(model):
    _, transpose, *_ = spell(model)
    transpose.attributes["perm"] = ir.AttrInt64s("perm", [1, 0, 3, 2])


def constant_keys(model):
    product, *_ = spell(model)
    product.replace_input_with(1, constant(model, np.ones((1, 4, 4, 6))))


def weighs_on_the_right(model):
    *_, merge = spell(model)
    left, right = merge.inputs
    merge.replace_input_with(0, right)
    merge.replace_input_with(1, left)


def not_a_product(model):
    *_, add, softmax, _ = spell(model)
    softmax.replace_input_with(0, add.inputs[1])


def unknown_query_width(model):
    spell(model)[0].inputs[0].shape = None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (other_axis, "not over the keys"),
        (scale_after_the_terms, "not a scaled product plus additive terms"),
        (scale_that_is_computed, "its scale is not a constant"),
        (scale_per_head, "its scale is not a constant"),
        (not_added, "expected Add or Mul or Div or MatMul, found 'Sub'"),
        (not_a_product, "expected Add or Mul or Div or MatMul, found 'Sub'"),
        (keys_not_transposed_like_keys, "its keys are transposed by (1, 0, 3, 2)"),
        (constant_keys, "not a scaled product plus additive terms"),
        (weighs_on_the_right, "do not multiply a value matrix"),
        (unknown_query_width, "is not known"),
    ],
    ids=lambda v: getattr(v, "__name__", ""),
)
def test_leaves_a_softmax_alone_and_says_why(change, reason):
    model = build(ARCH)
    change(model)
    RemoveUnusedNodesPass()(model)
    assert_untouched(RaiseAttentionPass(), model, reason)


def test_a_refusal_leaves_no_half_rewrite_behind():
    model = build(ARCH)
    one_transpose_for_keys(model)
    unknown_query_width(model)
    RemoveUnusedNodesPass()(model)
    assert_untouched(RaiseAttentionPass(), model, "is not known")


def test_leaves_alone_probabilities_that_are_read_elsewhere():
    assert_untouched(RaiseAttentionPass(), build(ARCH, outputs=["0.probabilities"]), "is used outside the block")


def test_logits_that_are_read_elsewhere_stay_beside():
    model = build(ARCH, outputs=["0.logits"])
    feeds = random_feeds(model)
    before = run64(model, feeds)
    assert_rewrites_once(RaiseAttentionPass(), model, raised_attention=1)
    assert_same(run64(model, feeds), before)


def test_a_softmax_over_neurons_is_no_attention():
    model = build(Architecture(activation="softmax"))
    assert_untouched(RaiseAttentionPass(), model, "not a scaled product plus additive terms")


def test_onnx_runtime_agrees():
    model = build(dataclasses.replace(ARCH, dtype=np.float32, mask="bias"))
    feeds = random_feeds(model, padding_mask("left"))
    before = run32(model, feeds)
    assert_rewrites_once(RaiseAttentionPass(), model, raised_attention=1)
    assert_same(run32(model, feeds), before, tolerance=1e-5)


@PROPERTY
@given(
    architectures(form="spelled"),
    st.sampled_from(["none", "additive", "scaled", "gathered_additive", "bias"]),
    st.integers(0, 9),
    st.sampled_from(PADDINGS),
)
def test_keeps_the_output_of_any_model(arch, mask, seed, padding):
    arch = dataclasses.replace(arch, mask=mask, qk=4)
    model = build(arch, random_weights(arch, seed))
    feeds = random_feeds(model, padding_mask(padding, seed=seed), seed)
    before = run64(model, feeds)
    assert_rewrites_once(RaiseAttentionPass(), model, raised_attention=arch.layers)
    assert_same(run64(model, feeds), before)


# Logits that a Where hides: a query that sees no key weighs all keys alike, padded ones too


def visible_first(model):
    """Where(visible, logits, lowest), not Where(Not(visible), lowest, logits)."""
    for where in [node for node in model.graph if node.op_type == "Where"]:
        hidden, lowest, logits = where.inputs
        for index, value in enumerate((hidden.producer().inputs[0], logits, lowest)):
            where.replace_input_with(index, value)


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("change", [None, visible_first])
def test_logits_that_are_hidden_by_a_choice_are_hidden_by_a_term(change, padding):
    model = build(dataclasses.replace(ARCH, mask="both_real", layers=2))
    if change is not None:
        change(model)
    RemoveUnusedNodesPass()(model)
    feeds = random_feeds(model, padding_mask(padding))
    before = run64(model, feeds)
    assert_rewrites_once(RaiseAttentionPass(), model, raised_attention=2)
    masks = {node.inputs[3] for node in model.graph if node.op_type == "Attention"}
    assert len(masks) == 1, "written once for all layers"
    assert_same(run64(model, feeds), before)


def test_onnx_runtime_weighs_all_keys_alike_too():
    model = build(dataclasses.replace(ARCH, mask="both_real", dtype=np.float32))
    feeds = random_feeds(model, padding_mask("left"))
    before = run32(model, feeds)
    assert_rewrites_once(RaiseAttentionPass(), model, raised_attention=1)
    assert_same(run32(model, feeds), before, tolerance=1e-5)
    assert_same(run32(model, feeds, optimize=True), before, tolerance=1e-5)


def hides_mildly(model):
    next(node for node in model.graph if node.op_type == "Where").replace_input_with(1, constant(model, -5.0))


def chooses_between_logits(model):
    where = next(node for node in model.graph if node.op_type == "Where")
    where.replace_input_with(1, where.inputs[2])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (hides_mildly, "its logits are chosen by a condition"),
        (chooses_between_logits, "its logits are chosen by a condition"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_logits_that_are_chosen_otherwise_stay(change, reason):
    model = build(dataclasses.replace(ARCH, mask="both_real"))
    change(model)
    RemoveUnusedNodesPass()(model)
    assert_untouched(RaiseAttentionPass(), model, reason)
