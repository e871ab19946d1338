from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compactor.passes.canonical.raise_relative_logits import RaiseRelativeLogitsPass
from compactor.passes.canonical.split_merged_heads import SplitMergedHeadsPass
from tests.attention import SPAN
from tests.models import Architecture, build, random_weights
from tests.passes.strategies import PROPERTY, disentangled
from tests.running import (
    PADDINGS,
    assert_rewrites_once,
    assert_same,
    assert_untouched,
    check,
    operators,
    padding_mask,
    random_feeds,
    run64,
)

ARCH = Architecture(form="spelled", mask="both_real", relative="both", layers=2)


def terms(model):
    return [node for node in model.graph if node.op_type == "RelativeLogits"]


@pytest.mark.parametrize("form", ["spelled", "merged"])
@pytest.mark.parametrize("relative", ["c2p", "p2c", "both"])
@pytest.mark.parametrize("length", [1, 3, SPAN, 11])
def test_products_with_a_table_become_one_node_each(length, relative, form):
    arch = dataclasses.replace(ARCH, form=form, relative=relative)
    weights = random_weights(arch)
    model = build(arch, weights)
    SplitMergedHeadsPass()(model)
    feeds = random_feeds(model, padding_mask("left", length=length))
    before = run64(model, feeds)

    assert_rewrites_once(RaiseRelativeLogitsPass(), model, raised_relative_logits=4 if relative == "both" else 2)

    assert not {"GatherElements", "Tile", "Slice"} & operators(model).keys()
    found = terms(model)
    first = "c2p" if relative == "both" else relative
    table = weights["distances"] @ weights[f"0.{first}"] + weights[f"0.{first}.bias"]
    np.testing.assert_allclose(found[0].inputs[1].const_value.numpy(), table * arch.scale, rtol=1e-12)
    assert all(node.attributes["num_heads"].value == arch.heads for node in found)
    assert len({node.inputs[2] for node in found}) == (2 if relative == "both" else 1)  # once for all layers
    assert_same(run64(model, feeds), before)


def test_the_table_is_whole_where_the_length_cuts_it():
    model = build(ARCH)
    RaiseRelativeLogitsPass()(model)
    assert {tuple(node.inputs[1].shape) for node in terms(model)} == {(2 * SPAN, ARCH.heads * ARCH.qk)}
    adds = [node.inputs[2].producer().op_type for node in terms(model)]
    assert adds == ["Add"] * 4  # numbers count from the first row that is cut out


def of_type(model, op_type, number=0):
    return [node for node in model.graph if node.op_type == op_type][number]


def constant(model, array, name="planted"):
    value = ir.Value(name=name, const_value=ir.tensor(np.asarray(array), name=name))
    value.type, value.shape = ir.TensorType(value.const_value.dtype), ir.Shape(value.const_value.shape)
    model.graph.register_initializer(value)
    return value


def table_of_the_input(model):
    value = next(v for v in model.graph.initializers.values() if v.name == "w.distances")
    model.graph.inputs.append(value)


def index_of_the_heads(model):
    expand = of_type(model, "GatherElements").inputs[1].producer()
    expand.inputs[0].shape = ir.Shape([1, 4, "sequence", "sequence"])


def index_that_is_not_repeated(model):
    gather = of_type(model, "GatherElements")
    gather.inputs[1].producer().op_type = "Add"


def slice_in_steps(model):
    of_type(model, "Slice").replace_input_with(4, constant(model, [2]))


def slice_of_columns(model):
    of_type(model, "Slice").replace_input_with(3, constant(model, [1]))


@pytest.mark.parametrize("inputs", [3, 4])
def test_a_slice_need_not_name_its_axis_and_step(inputs):
    model = build(dataclasses.replace(ARCH, layers=1, relative="c2p"))
    of_type(model, "Slice").resize_inputs(inputs)
    feeds = random_feeds(model)
    before = run64(model, feeds)
    assert_rewrites_once(RaiseRelativeLogitsPass(), model, raised_relative_logits=1)
    assert_same(run64(model, feeds), before)


def rows_that_mix(model):
    """A norm over the rows: each depends on all."""
    cut = of_type(model, "Slice").outputs[0]
    norm = ir.Node(
        "", "LayerNormalization", [cut, constant(model, np.ones(8))], attributes=[ir.AttrInt64("axis", 0)], name="norm"
    )
    norm.outputs[0].name, norm.outputs[0].type, norm.outputs[0].shape = "norm", cut.type, cut.shape
    graph = model.graph
    graph.insert_after(cut.producer(), norm)
    for usage in tuple(cut.uses()):
        if usage.node is not norm:
            usage.node.replace_input_with(usage.idx, norm.outputs[0])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (table_of_the_input, "the table of positions"),
        (index_of_the_heads, "the distances differ between examples or heads"),
        (index_that_is_not_repeated, "expected Expand, found 'Add'"),
        (slice_in_steps, "the table of positions depends on the input"),
        (slice_of_columns, "the table of positions depends on the input"),
        (rows_that_mix, ""),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_leaves_alone_and_says_why(change, reason):
    model = build(dataclasses.replace(ARCH, layers=1, relative="c2p"))
    change(model)
    assert_untouched(RaiseRelativeLogitsPass(), model, reason)


def test_a_product_on_merged_heads_is_not_looked_at():
    assert_untouched(RaiseRelativeLogitsPass(), build(dataclasses.replace(ARCH, form="merged")))


def test_a_table_of_other_heads_is_left():
    model = build(dataclasses.replace(ARCH, layers=1, relative="c2p", qk=4, heads=2))
    product = of_type(model, "GatherElements").inputs[0].producer()
    wrong = constant(model, np.random.default_rng(0).standard_normal((1, 1, 4, 2 * SPAN)))
    product.replace_input_with(1, wrong)
    assert_untouched(RaiseRelativeLogitsPass(), model, "the table of positions has shape")


@PROPERTY
@given(
    disentangled(),
    st.sampled_from(["spelled", "merged"]),
    st.sampled_from(PADDINGS),
    st.integers(1, 11),
    st.integers(0, 9),
)
def test_changes_no_number(case, form, padding, length, seed):
    arch, weights = case
    model = build(dataclasses.replace(arch, form=form), weights)
    SplitMergedHeadsPass()(model)
    feeds = random_feeds(model, padding_mask(padding, length=length, seed=seed), seed)
    before = run64(model, feeds)
    assert RaiseRelativeLogitsPass()(model).modified
    check(model)
    assert not RaiseRelativeLogitsPass()(model).modified
    assert_same(run64(model, feeds), before)
