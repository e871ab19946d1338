from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compactor.passes.lowering.pack_tokens import FILL_LOGITS, PackTokensPass
from tests.models import LABELS, Architecture, build, random_weights
from tests.passes.strategies import architectures, disentangled
from tests.planting import attention_node
from tests.running import (
    PADDINGS,
    assert_untouched,
    check,
    operators,
    padding_mask,
    random_feeds,
    run32,
    run64,
)

ARCH = Architecture(layers=2, front="ids", head="hidden")


def assert_same_where_real(after, before, mask, *, fill=0.0, tolerance=1e-10):
    """Equal on real positions, ``fill`` on padded ones; outputs without a position axis are equal."""
    assert list(after) == list(before)
    for name, expected in before.items():
        assert after[name].shape == expected.shape
        if expected.shape[:2] == mask.shape:
            np.testing.assert_allclose(after[name][mask == 1], expected[mask == 1], rtol=tolerance, atol=tolerance)
            assert (after[name][mask == 0] == np.float32(fill)).all()
        else:
            np.testing.assert_allclose(after[name], expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize("mask", ["plain", "additive", "gathered", "bias", "causal"])
def test_equals_the_unpacked_graph_on_real_positions(mask, norm, padding):
    if mask == "causal" and padding in ("left", "holes"):
        padding = "right"  # others leave the first queries without a key
    model = build(dataclasses.replace(ARCH, mask=mask, norm=norm))
    real = padding_mask(padding)
    feeds = random_feeds(model, real)
    before = run64(model, feeds)

    result = PackTokensPass()(model)

    check(model)
    assert {event.rule: event.count for event in result.applied}["spread-attention"] == 2
    assert_same_where_real(run64(model, feeds), before, real)


def test_token_wise_operators_run_on_real_tokens_only():
    model = build(ARCH)
    PackTokensPass()(model)
    counts = operators(model)
    # In: one Gather for the embeddings, one for each attention. Out: q, k and v of each attention, and the output.
    # And the two embedding tables.
    assert counts["Gather"] == 1 + 2 + 2 * 3 + 1 + 2
    assert counts["Where"] == counts["NonZero"] == 1
    real = padding_mask("right")
    exposed = [v for n in model.graph if n.op_type in ("MatMul", "Gelu", "LayerNormalization") for v in n.outputs[:1]]
    inner = [v for v in exposed if v.name != "first"]
    for value in inner:
        value.type, value.shape = ir.TensorType(ir.DataType.DOUBLE), None
    model.graph.outputs.extend(inner)
    outputs = run64(model, random_feeds(model, real))
    for value in inner:
        assert outputs[value.name].shape[0] == real.sum() if outputs[value.name].ndim == 2 else value.name == "first"


@pytest.mark.parametrize("padding", PADDINGS)
def test_position_0_is_kept_whether_real_or_not(padding):
    model = build(dataclasses.replace(ARCH, head="classifier"))
    real = padding_mask(padding)
    feeds = random_feeds(model, real)
    before = run64(model, feeds)
    assert PackTokensPass()(model).modified
    assert_same_where_real(run64(model, feeds), before, real)


@pytest.mark.parametrize("padding", PADDINGS)
def test_an_argmax_over_positions_never_lands_on_padding(padding):
    model = build(dataclasses.replace(ARCH, head="span", dtype=np.float32))
    real = padding_mask(padding)
    feeds = random_feeds(model, real)
    before = run32(model, feeds)
    assert PackTokensPass(fill={"start_logits": FILL_LOGITS, "end_logits": FILL_LOGITS})(model).modified
    check(model)
    after = run32(model, feeds)
    assert_same_where_real(after, before, real, fill=FILL_LOGITS, tolerance=1e-5)
    for name in ("start_logits", "end_logits"):
        assert real[np.arange(len(real)), after[name].argmax(axis=1)].all()
    scores = after["start_logits"][:, :, None] + after["end_logits"][:, None, :]
    assert np.isfinite(scores).all()  # the sum of two is still a number


def test_each_output_has_its_own_fill():
    model = build(dataclasses.replace(ARCH, head="tokens"), outputs=["1.feed_forward_norm", "0.attention_norm"])
    PackTokensPass(fill={"classifier": -5.0, "0.attention_norm": 2.0})(model)
    check(model)
    real = padding_mask("holes")
    after = run64(model, random_feeds(model, real))
    for name, fill in (("classifier", -5.0), ("1.feed_forward_norm", 0.0), ("0.attention_norm", 2.0)):
        assert (after[name][real == 0] == fill).all()


def test_padded_positions_never_hold_another_examples_values():
    """One example changes; nothing of the others may move, padded positions included."""
    model = build(dataclasses.replace(ARCH, head="tokens"))
    PackTokensPass()(model)
    real = padding_mask("right")
    feeds = random_feeds(model, real)
    before = run64(model, feeds)["classifier"]
    feeds["input_ids"] = feeds["input_ids"].copy()
    feeds["input_ids"][1] = (feeds["input_ids"][1] + 1) % 13
    after = run64(model, feeds)["classifier"]
    assert (after[[0, 2]] == before[[0, 2]]).all()
    assert not (after[1] == before[1]).all()


@pytest.mark.parametrize("head", ["tokens", "classifier"])
@pytest.mark.parametrize("run", [run32, run64])
def test_an_example_of_nothing_but_padding_does_not_disturb_the_others(head, run):
    dtype = np.float32 if run is run32 else np.float64
    model = build(dataclasses.replace(ARCH, head=head, dtype=dtype))
    real = padding_mask("right")
    feeds = random_feeds(model, real)
    before = run(model, feeds)
    PackTokensPass()(model)
    empty = real.copy()
    empty[1] = 0
    after = run(model, {**feeds, "attention_mask": empty})
    others = [0, 2]
    for name, expected in before.items():
        if expected.ndim == 3:
            np.testing.assert_allclose(
                after[name][others][real[others] == 1], expected[others][real[others] == 1], rtol=1e-5, atol=1e-5
            )
            assert (after[name][1] == 0).all()
        else:
            np.testing.assert_allclose(after[name][others], expected[others], rtol=1e-5, atol=1e-5)


def test_inputs_that_are_hidden_states_are_packed_too():
    model = build(dataclasses.replace(ARCH, front="hidden", norm="pre"))
    first = next(node for node in model.graph if node.name == "first")
    first.outputs[0].replace_all_uses_with(first.inputs[0])
    check(model)
    real = padding_mask("left")
    feeds = random_feeds(model, real)
    before = run64(model, feeds)
    assert PackTokensPass()(model).modified
    check(model)
    assert_same_where_real(run64(model, feeds), before, real)


@pytest.mark.parametrize("wanted", ["0.query", "0.value", "0.residual", "0.active", "0.up"])
def test_inner_values_may_be_outputs(wanted):
    model = build(ARCH, outputs=[wanted])
    real = padding_mask("holes")
    feeds = random_feeds(model, real)
    before = run64(model, feeds)
    assert PackTokensPass()(model).modified
    check(model)
    assert_same_where_real(run64(model, feeds), before, real)


def test_an_attention_result_that_is_an_output_is_refused():
    """Its padded queries are copies of other rows inside."""
    assert_untouched(PackTokensPass(), build(ARCH, outputs=["0.attention"]), "read by more than token-wise operators")


def test_an_attention_result_that_is_averaged_is_refused():
    model = build(ARCH)
    attention = attention_node(model)
    axis = ir.Value(name="axis", const_value=ir.tensor(np.array([1]), name="axis"))
    model.graph.register_initializer(axis)
    mean = ir.Node("", "ReduceMean", [attention.outputs[0], axis], name="mean")
    mean.outputs[0].name, mean.outputs[0].type = "mean", ir.TensorType(ir.DataType.DOUBLE)
    model.graph.append(mean)
    model.graph.outputs.append(mean.outputs[0])
    check(model)
    assert_untouched(PackTokensPass(), model, "read by more than token-wise operators")


def _mean_of_what_is_real(model, *, masked=True):
    """Append a mean over the tokens, as poolings write it: a product with the mask, summed, by how many there are."""
    graph, (hidden,) = model.graph, model.graph.outputs
    mask = next(value for value in graph.inputs if value.name == "attention_mask")
    dtype = hidden.dtype

    def add(kind, *inputs, **attributes):
        node = ir.node(kind, inputs, attributes)
        node.outputs[0].name = f"pooled_{kind}_{len(graph)}"
        graph.append(node)
        return node.outputs[0]

    def constant(*numbers):
        value = ir.Value(name=f"axes_{len(graph.initializers)}")
        value.const_value = ir.tensor(np.array(numbers, np.int64), name=value.name)
        graph.register_initializer(value)
        return value

    seen = add("Unsqueeze", add("Cast", mask, to=dtype), constant(2))
    product = add("Mul", hidden, seen) if masked else hidden
    total = add("ReduceSum", product, constant(1), keepdims=0)
    mean = add("Div", total, add("ReduceSum", seen, constant(1), keepdims=0))
    mean.type = ir.TensorType(dtype)
    graph.outputs.append(mean)
    check(model)
    return model


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("norm", ["post", "pre"])
def test_what_is_multiplied_by_the_mask_may_be_mixed(norm, padding):
    """A mean over real tokens behind the packed part, beside the hidden states themselves."""
    model = _mean_of_what_is_real(build(dataclasses.replace(ARCH, norm=norm)))
    real = padding_mask(padding)
    feeds = random_feeds(model, real)
    before = run64(model, feeds)
    result = PackTokensPass()(model)
    assert result.modified and not result.refused
    assert_same_where_real(run64(model, feeds), before, real)


def test_a_sum_of_padding_too_is_refused():
    model = _mean_of_what_is_real(build(ARCH), masked=False)
    assert_untouched(PackTokensPass(), model, "mixes positions outside attention")


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        pytest.param(build(dataclasses.replace(ARCH, mask="none")), "no input 'attention_mask'", id="no-mask"),
        pytest.param(build(dataclasses.replace(ARCH, mask="given")), "no input 'attention_mask'", id="other-input"),
        pytest.param(build(dataclasses.replace(ARCH, form="4d")), "not in the 3-D form", id="four-dimensional"),
        *(
            pytest.param(build(dataclasses.replace(ARCH, mask=mask)), "not proven to hide padding", id=f"mask-{mask}")
            for mask in ("soft", "inverted", "visible")
        ),
        *(
            pytest.param(build(dataclasses.replace(ARCH, head=head)), "mixes positions", id=f"head-{head}")
            for head in ("mean", "mixed", "transposed")
        ),
        pytest.param(build(dataclasses.replace(ARCH, dims=(None, None))), "", id="sizes-without-names"),
    ],
)
def test_leaves_the_graph_alone_and_says_why(model, reason):
    assert_untouched(PackTokensPass(), model, reason)


@pytest.mark.parametrize("position", [1, -1])
def test_reading_another_position_than_0_is_refused(position):
    model = build(dataclasses.replace(ARCH, head="classifier"))
    first = next(node for node in model.graph if node.name == "first_token")
    index = ir.Value(name="index", const_value=ir.tensor(np.array(position), name="index"))
    index.type, index.shape = ir.TensorType(ir.DataType.INT64), ir.Shape([])
    model.graph.register_initializer(index)
    first.replace_input_with(1, index)
    check(model)
    assert_untouched(PackTokensPass(), model, "mixes positions")


def test_a_second_run_changes_nothing():
    model = build(dataclasses.replace(ARCH, head="tokens"))
    assert PackTokensPass()(model).modified
    check(model)
    assert not PackTokensPass()(model).modified


@settings(max_examples=40)
@given(
    architectures(front="ids"),
    st.sampled_from(["plain", "additive", "gathered", "bias"]),
    st.sampled_from(["hidden", "classifier", "span", "tokens"]),
    st.integers(0, 9),
    st.sampled_from(PADDINGS),
)
def test_keeps_the_output_of_any_model(arch, mask, head, seed, padding):
    arch = dataclasses.replace(arch, mask=mask, head=head)
    model = build(arch, random_weights(arch, seed))
    real = padding_mask(padding, seed=seed)
    feeds = random_feeds(model, real, seed)
    before = run64(model, feeds)
    assert PackTokensPass()(model).modified
    check(model)
    assert_same_where_real(run64(model, feeds), before, real)


# Masks of query and key: a padded query sees nothing, and weighs all keys alike

EVEN = dataclasses.replace(ARCH, mask="both_real", zeroed=True)


@pytest.mark.parametrize("head", ["hidden", "classifier", "span", "tokens"])
@pytest.mark.parametrize("padding", [*PADDINGS, "left and holes"])
@pytest.mark.parametrize("relative", ["", "both"])
def test_a_first_token_that_is_padded_weighs_all_keys_alike(relative, padding, head):
    arch = dataclasses.replace(EVEN, relative=relative, head=head, layers=3)
    model = build(arch)
    real = padding_mask("left") * padding_mask("holes") if padding == "left and holes" else padding_mask(padding)
    real[:, -1] = 1
    feeds = random_feeds(model, real)
    before = run64(model, feeds)

    result = PackTokensPass()(model)

    check(model)
    assert {event.rule: event.count for event in result.applied}["spread-attention"] == 3
    after = run64(model, feeds)
    assert_same_where_real(after, before, real)


@pytest.mark.parametrize(
    "arch",
    [
        pytest.param(dataclasses.replace(EVEN, zeroed=False), id="not-zeroed"),
        pytest.param(dataclasses.replace(EVEN, mask="window_additive"), id="padded-queries-see-what-is-near"),
        pytest.param(dataclasses.replace(EVEN, mask="window_lowest"), id="near-else-the-lowest-float"),
        pytest.param(dataclasses.replace(EVEN, mask="window_added"), id="the-lowest-float-for-either"),
        pytest.param(dataclasses.replace(EVEN, norm="pre", head="classifier", zeroed=False), id="pre-norm"),
    ],
)
def test_padded_tokens_that_differ_are_not_packed(arch):
    assert_untouched(PackTokensPass(), build(arch), "a padded query weighs all keys alike, and the padded ones are not")


def test_one_attention_of_another_mask_makes_padded_tokens_differ():
    model = build(EVEN)
    second = [node for node in model.graph if node.op_type == "Attention"][1]
    mask = next(value for value in model.graph.inputs if value.name == "attention_mask")
    axes = ir.Value(name="axes", const_value=ir.tensor(np.array([1, 2])))
    numbers = [ir.Value(name=name, const_value=ir.tensor(np.array(x))) for name, x in (("zero", 0.0), ("low", -1e30))]
    real = ir.Node("", "Cast", [mask], attributes=[ir.AttrInt64("to", ir.DataType.BOOL)], name="real")
    keys = ir.Node("", "Unsqueeze", [real.outputs[0], axes], name="keys")
    term = ir.Node("", "Where", [keys.outputs[0], *numbers], name="term")
    for value in (axes, *numbers):
        model.graph.register_initializer(value)
    for node in (real, keys, term):
        node.outputs[0].name = f"{node.name}.result"
        model.graph.insert_before(second, node)
    second.replace_input_with(3, term.outputs[0])
    assert_untouched(PackTokensPass(), model, "the padded ones are not equal")


@settings(max_examples=60)
@given(
    disentangled(mask="both_real", front="ids", zeroed=True, form="3d"),
    st.sampled_from(["hidden", "classifier", "span", "tokens"]),
    st.integers(0, 9),
    st.sampled_from(PADDINGS),
    st.sampled_from(PADDINGS),
    st.integers(1, 11).filter(lambda length: length != LABELS),  # or logits (B, LABELS) would look like (B, S)
)
def test_masks_of_query_and_key_are_exact_in_any_model(case, head, seed, padding, other, length):
    arch, weights = case
    arch = dataclasses.replace(arch, head=head)
    weights = random_weights(arch, seed) | {name: weights[name] for name in weights if "classifier" not in name}
    model = build(arch, weights)
    real = np.stack([padding_mask(kind, length=length, seed=seed)[1] for kind in (padding, other, "left", "holes")])
    feeds = random_feeds(model, real, seed)
    before = run64(model, feeds)
    assert PackTokensPass()(model).modified
    check(model)
    assert_same_where_real(run64(model, feeds), before, real)
