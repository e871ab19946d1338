from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx_ir.passes.common import RemoveUnusedNodesPass

from compactor.passes.canonical.normalize_attention import NormalizeAttentionPass
from compactor.passes.canonical.raise_rotary import RaiseRotaryPass
from tests.models import Architecture, build, random_weights
from tests.passes.strategies import PROPERTY, architectures
from tests.planting import attention_node
from tests.rotary import POSITIONS, PREFIX
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

ARCH = Architecture(form="4d", rotary="half", turns="angles", front="ids")
LENGTH = 7
STATIC = {"dims": ("batch", LENGTH)}
TURNS = [("angles", {}), ("learned", {}), ("grid", STATIC), ("prefix", STATIC)]
RAISE = RaiseRotaryPass(positions=POSITIONS)


def turned(model):
    """Its rotary embeddings."""
    return [node for node in model.graph if node.op_type == "RotaryEmbedding"]


def tables(model):
    """Cosines and sines of the first."""
    return [value.const_value.numpy() for value in turned(model)[0].inputs[1:3]]


@pytest.mark.parametrize("head_norm", ["", "rms", "layer"])
@pytest.mark.parametrize("kv_heads", [0, 2])
@pytest.mark.parametrize("rotated", [0, 2, 4])
@pytest.mark.parametrize("rotary", ["half", "interleaved"])
@pytest.mark.parametrize(("turns", "sizes"), TURNS)
def test_every_spelling_becomes_one_node(turns, sizes, rotary, rotated, kv_heads, head_norm):
    knobs = {"rotary": rotary, "rotated": rotated, "kv_heads": kv_heads, "head_norm": head_norm, "turns": turns}
    arch = dataclasses.replace(ARCH, qk=6, layers=2, **knobs, **sizes)
    model = build(arch)
    feeds = random_feeds(model, padding_mask("left", length=LENGTH))
    before = run64(model, feeds)

    assert_rewrites_once(RAISE, model, raised_rotary=4)

    nodes = turned(model)
    assert len(nodes) == 4
    assert not {"Cos", "Sin", "Neg", "Slice"} & operators(model).keys()
    assert len({value for node in nodes for value in node.inputs[1:]}) == 3, "tables and places are made once"
    for node in nodes:
        given = {name: each.value for name, each in node.attributes.items()}
        assert given.get("rotary_embedding_dim", 0) == rotated
        assert given.get("interleaved", 0) == (rotary == "interleaved" and rotated != 2)
    rows = LENGTH if sizes else POSITIONS
    assert [table.shape for table in tables(model)] == [(rows, (rotated or arch.qk) // 2)] * 2
    assert all(table.dtype == np.float64 for table in tables(model))
    assert_same(run64(model, feeds), before)

    NormalizeAttentionPass()(model)
    assert all("num_heads" in node.attributes for node in turned(model))
    assert not {"Transpose", "Reshape"} & operators(model).keys()
    assert_same(run64(model, feeds), before)


def test_tables_hold_what_the_model_turns_by():
    model = build(ARCH)
    RAISE(model)
    angles = np.arange(POSITIONS)[:, None] * np.array([1.0, 0.1])
    np.testing.assert_allclose(tables(model), [np.cos(angles), np.sin(angles)], rtol=1e-15, atol=1e-15)


def test_tokens_that_stay_as_they_are_have_rows_of_their_own():
    model = build(dataclasses.replace(ARCH, turns="prefix", **STATIC))
    RAISE(model)
    cosines, sines = tables(model)
    assert (cosines[:PREFIX] == 1).all() and (sines[:PREFIX] == 0).all()
    assert (sines[PREFIX:] != 0).all()


@pytest.mark.parametrize("optimize", [False, True])
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize(("turns", "sizes"), TURNS)
def test_onnx_runtime_agrees(turns, sizes, padding, optimize):
    model = build(dataclasses.replace(ARCH, turns=turns, dtype=np.float32, **sizes))
    written = model.clone()
    assert_rewrites_once(RAISE, written, raised_rotary=2)
    NormalizeAttentionPass()(written)
    for length in (LENGTH,) if sizes else (1, 2, POSITIONS):
        feeds = random_feeds(model, padding_mask(padding, batch=4, length=length))
        assert_same(run32(written, feeds, optimize=optimize), run32(model, feeds), tolerance=2e-5)


def test_a_pair_that_turns_too_slowly_for_float32_is_one_of_the_pairs():
    arch = dataclasses.replace(ARCH, qk=64, heads=2, dtype=np.float32)  # 10 ** -31 a place
    model = build(arch)
    feeds = random_feeds(model)
    before = run32(model, feeds)
    assert_rewrites_once(RAISE, model, raised_rotary=2)
    assert tables(model)[0].shape == (POSITIONS, 32)
    assert_same(run32(model, feeds), before, tolerance=2e-5)


def multiply(model, *, behind, op_type="Mul"):
    """Queries and keys by 0.5 and 0.25, before they are turned or behind it."""
    for place, number in ((0, 0.5), (1, 0.25)):
        factor = ir.Value(name=f"factor_{place}", const_value=ir.tensor(np.array(number)))
        factor.type, factor.shape = ir.TensorType(ir.DataType.DOUBLE), ir.Shape([])
        model.graph.register_initializer(factor)
        result = attention_node(model).inputs[place]
        if not behind:
            result = next(v for node in model.graph for v in node.outputs if v.name == f"heads_{place}")
        node = ir.Node("", op_type, [result, factor], name=f"scaled_{place}")
        node.outputs[0].name, node.outputs[0].type, node.outputs[0].shape = node.name, result.type, result.shape
        for usage in tuple(result.uses()):
            if usage.node is not node:
                usage.node.replace_input_with(usage.idx, node.outputs[0])
        model.graph.insert_after(result.producer(), node)


def name_heads(model):
    """The heads before they are turned: what a Transpose of the first two operands gives."""
    splits = [node for node in model.graph if node.op_type == "Transpose" and node.outputs[0].shape[-1] == 4]
    for place, node in enumerate(splits[:2]):
        node.outputs[0].name = f"heads_{place}"


@pytest.mark.parametrize("op_type", ["Mul", "Div"])
@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("kv_heads", [0, 2])
def test_a_factor_joins_the_scale_on_either_side(kv_heads, behind, op_type):
    model = build(dataclasses.replace(ARCH, kv_heads=kv_heads))
    name_heads(model)
    multiply(model, behind=behind, op_type=op_type)
    feeds = random_feeds(model, padding_mask("holes"))
    before = run64(model, feeds)
    assert_rewrites_once(RAISE, model, raised_rotary=2)
    assert_rewrites_once(NormalizeAttentionPass(), model, normalized_attention=1)
    assert attention_node(model).attributes["scale"].value == 0.5 * (0.125 if op_type == "Mul" else 8)
    assert not {"Mul", "Div"} & operators(model).keys()
    assert_same(run64(model, feeds), before)


# What is left alone


def inserted(model, before, op_type, *inputs, **attributes):
    """A new node in front of ``before``, whose result is like its first input."""
    node = ir.node(op_type, list(inputs), attributes=attributes)
    node.outputs[0].name = f"{op_type}_of_{inputs[0].name}_for_{before.outputs[0].name}"
    node.outputs[0].type, node.outputs[0].shape = inputs[0].type, inputs[0].shape
    model.graph.insert_before(before, node)
    return node.outputs[0]


def integer(model, number):
    name = f"integer_{number}"
    if name not in model.graph.initializers:
        value = ir.Value(name=name, const_value=ir.tensor(np.array(number), name=name), shape=ir.Shape([]))
        value.type = ir.TensorType(ir.DataType.INT64)
        model.graph.register_initializer(value)
    return model.graph.initializers[name]


def sides(model):
    """For queries and keys: the product with the cosines, and the one with the sines."""
    for role in "qk":
        result = next(node for node in model.graph if node.name == f"0.{role}.turned")
        yield tuple(value.producer() for value in result.inputs)


def angles_of(model):
    """The nodes that multiply places by frequencies."""
    return [node.inputs[0].producer() for node in model.graph if node.op_type == "Cos"]


def places_of(model):
    """The nodes that make a column of the places."""
    return [node.inputs[0].producer().inputs[0].producer() for node in angles_of(model)]


def by_the_length(model):
    """A longer text is turned more slowly (dynamic NTK)."""
    for node in angles_of(model):
        length = next(each for each in model.graph if each.op_type == "Range").inputs[1]
        size = inserted(model, node, "Cast", length, to=ir.DataType.DOUBLE.value)
        size.type = ir.TensorType(ir.DataType.DOUBLE)
        node.replace_input_with(1, inserted(model, node, "Div", node.inputs[1], size))


def by_the_mask(model):
    """Padding moves the places."""
    for node in places_of(model):
        row = inserted(model, node, "Gather", model.graph.inputs[-1], integer(model, 0))
        row.shape = ir.Shape(["sequence"])
        node.replace_input_with(0, inserted(model, node, "Mul", node.inputs[0], row))


def by_the_example(model):
    """The angles of the second example are those of the first, and more."""
    for node in angles_of(model):
        batch = inserted(model, node, "Shape", model.graph.inputs[0], start=0, end=1)
        batch.type, batch.shape = ir.TensorType(ir.DataType.INT64), ir.Shape([1])
        cast = inserted(model, node, "Cast", batch, to=ir.DataType.DOUBLE.value)
        cast.type = ir.TensorType(ir.DataType.DOUBLE)
        node.replace_input_with(1, inserted(model, node, "Mul", node.inputs[1], cast))


def by_nothing(model):
    for node in places_of(model):
        node.replace_input_with(0, inserted(model, node, "Mul", node.inputs[0], integer(model, 0)))


def by_another_matrix(model):
    """What is turned into the queries is of the keys."""
    (_, sines), (cosines, _) = sides(model)
    source = cosines.inputs[0]
    quarter = sines.inputs[0].producer()
    quarter.inputs[0].producer().inputs[0].producer().replace_input_with(0, source)


def without_a_sign(model):
    for node in tuple(model.graph):
        if node.op_type == "Neg":
            node.outputs[0].replace_all_uses_with(node.inputs[0])


def by_squares(model):
    for product, _ in sides(model):
        product.replace_input_with(1, product.inputs[0])


def by_all_channels(model):
    """Every channel of a head is moved by all the others."""
    ones = ir.Value(name="ones", const_value=ir.tensor(np.ones((4, 4)), name="ones"), shape=ir.Shape([4, 4]))
    ones.type = ir.TensorType(ir.DataType.DOUBLE)
    model.graph.register_initializer(ones)
    for product, _ in sides(model):
        product.replace_input_with(0, inserted(model, product, "MatMul", product.inputs[0], ones))


def of_other_channels(model):
    """The first half of a head stays, and the second half is turned."""
    for node in tuple(model.graph):
        if node.op_type == "Concat" and node.inputs[0].name in ("0.q.turned", "0.k.turned"):
            node.replace_input_with(1, node.inputs[0])
            node.replace_input_with(0, next(sides(model))[0].inputs[0])


def of_an_unknown_head_count(model):
    for product, _ in sides(model):
        product.inputs[0].shape = ir.Shape(["batch", "heads", "sequence", 4])


def of_an_unknown_shape(model):
    for product, _ in sides(model):
        product.inputs[0].shape = None


def of_another_length(model):
    for product, _ in sides(model):
        product.inputs[0].shape = ir.Shape(["batch", 4, "patches", 4])


CHANGES = [
    (by_the_length, "the angles depend on the length"),
    (by_the_mask, "'Gather' reads an input of the model"),
    (by_the_example, "or on the example"),
    (by_nothing, "they do not depend on the place"),
    (by_another_matrix, "they are computed from 2 matrices split into heads"),
    (without_a_sign, "not pairs of channels turned"),
    (by_squares, "not pairs of channels turned"),
    (by_all_channels, "the channels are not turned in pairs"),
    (of_an_unknown_head_count, "the head count or the width of a head is not known"),
    (of_an_unknown_shape, "is not known"),
    (of_another_length, "no input has an axis 'patches'"),
]


@pytest.mark.parametrize(("change", "reason"), CHANGES, ids=lambda value: getattr(value, "__name__", ""))
def test_leaves_alone_what_is_something_else_and_says_why(change, reason):
    model = build(ARCH)
    change(model)
    RemoveUnusedNodesPass()(model)
    assert_untouched(RAISE, model, reason)


def test_channels_that_do_not_lead_the_head_stay():
    model = build(dataclasses.replace(ARCH, rotated=2))
    of_other_channels(model)
    RemoveUnusedNodesPass()(model)
    assert_untouched(RAISE, model, "the channels that depend on the place are not the first ones")


@pytest.mark.parametrize(
    ("turns", "positions", "reason"),
    [
        ("angles", None, "nothing limits the positions"),
        ("angles", 1 << 24, "positions are too many to try"),
        ("learned", POSITIONS + 1, "it cannot be computed beforehand"),
    ],
)
def test_the_places_must_be_known_and_have_rows(turns, positions, reason):
    assert_untouched(RaiseRotaryPass(positions=positions), build(dataclasses.replace(ARCH, turns=turns)), reason)


def test_a_static_length_needs_no_limit():
    model = build(dataclasses.replace(ARCH, turns="grid", **STATIC))
    assert_rewrites_once(RaiseRotaryPass(), model, raised_rotary=2)


@pytest.mark.parametrize("form", ["3d", "4d"])
def test_heads_that_are_not_turned_are_no_news(form):
    assert_untouched(RAISE, build(Architecture(form=form)))


@PROPERTY
@given(
    architectures(form="4d", front="ids"),
    st.sampled_from(TURNS),
    st.sampled_from(["half", "interleaved"]),
    st.sampled_from([(2, 0), (4, 0), (4, 2), (5, 2), (7, 4)]),
    st.sampled_from([0, 1, 2]),
    st.integers(0, 9),
    st.sampled_from(PADDINGS),
    st.integers(1, POSITIONS),
)
def test_keeps_the_output_of_any_model(arch, turns, rotary, widths, kv_heads, seed, padding, length):
    kind, sizes = turns
    heads = arch.heads * max(kv_heads, 1)
    knobs = {"qk": widths[0], "rotated": widths[1], "heads": heads, "kv_heads": kv_heads, "rotary": rotary}
    arch = dataclasses.replace(arch, turns=kind, **knobs, **sizes)
    model = build(arch, random_weights(arch, seed))
    mask = padding_mask(padding, length=LENGTH if sizes else length, seed=seed)
    feeds = random_feeds(model, mask, seed)
    before = run64(model, feeds)
    assert_rewrites_once(RAISE, model, raised_rotary=2 * arch.layers)
    NormalizeAttentionPass()(model)
    assert all("num_heads" in node.attributes for node in turned(model))
    assert_same(run64(model, feeds), before)
