from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compactor.passes.graph.matching import add_initializer, new_node
from compactor.passes.structure.absorb_norms import AbsorbNormsPass
from tests.builder import infer_shapes
from tests.models import VOCAB, Architecture, build, random_weights
from tests.passes.strategies import pruned
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

BERT = Architecture(layers=2, activation="relu", norms="affine", front="ids", head="classifier")
SCALES = ("first", "0.attention_norm", "0.feed_forward_norm", "1.attention_norm", "1.feed_forward_norm")


def absorbs(model, **counts):
    """The pass fires with these counts and keeps the outputs of every padding; returns what it refused."""
    feeds = [random_feeds(model, padding_mask(padding)) for padding in PADDINGS]
    before = [run64(model, each) for each in feeds]
    result = assert_rewrites_once(AbsorbNormsPass(), model, **counts)
    for each, expected in zip(feeds, before, strict=True):
        assert_same(run64(model, each), expected)
    return [refusal.reason for refusal in result.refused]


def vectors_of(model):
    """The vectors that activations are still multiplied by."""
    return [
        value.const_value.numpy()
        for node in model.graph
        if node.op_type == "Mul"
        for value in node.inputs
        if value.const_value is not None and value.const_value.size > 1
    ]


def multiply(model, node, index, value, vector):
    """Let ``node`` read ``value`` times ``vector``."""
    product = new_node("Mul", [value, add_initializer(model.graph, "vector", vector)])
    product.outputs[0].type = value.type
    model.graph.insert_before(node, product)
    node.replace_input_with(index, product.outputs[0])
    infer_shapes(model)


@pytest.mark.parametrize("head", ["classifier", "tokens", "span", "hidden", "mean"])
def test_nothing_is_left_of_a_norm_but_the_addition(head):
    model = build(dataclasses.replace(BERT, head=head))
    additions = operators(model)["Add"]
    assert not absorbs(model, absorbed_scale=5, absorbed_shift=5)
    assert "Mul" not in operators(model)
    assert operators(model)["Add"] == additions - 5


@pytest.mark.parametrize("front", ["ids", "hidden"])
@pytest.mark.parametrize("gated", [False, True])
def test_every_sign_is_a_scale(front, gated):
    arch = dataclasses.replace(BERT, front=front, gated=gated)
    weights = random_weights(arch)
    for name in SCALES:
        weights[f"{name}.scale"][::2] *= -1
    model = build(arch, weights)
    pinned = front == "hidden"
    refused = absorbs(model, absorbed_scale=5, absorbed_shift=5 - pinned)
    assert len(refused) == pinned, "the input has nothing in front of it that a shift could go into"
    assert not vectors_of(model)


def test_between_an_input_and_an_output_one_product_stays():
    arch = dataclasses.replace(BERT, front="hidden", head="hidden")
    model = build(arch)
    scale = np.prod([random_weights(arch)[f"{name}.scale"] for name in SCALES], axis=0)
    shift, reason = absorbs(model, absorbed_scale=4, absorbed_shift=3, narrowed_scale=1)
    assert "the shift stays" in shift
    assert "both sides are wanted as they are" in reason
    (left,) = vectors_of(model)
    np.testing.assert_allclose(left, scale)


def test_a_norm_alone_between_an_input_and_an_output_is_left_alone():
    model = build(Architecture(layers=0, norms="affine"))
    assert_untouched(AbsorbNormsPass(), model, "both sides are wanted as they are: 'first' is an output")


def test_a_channel_that_the_embeddings_norm_forgets_is_written_as_zero():
    weights = random_weights(BERT)
    weights["first.scale"][[0, 3]] = 0
    model = build(BERT, weights)
    assert not absorbs(model, absorbed_scale=5, absorbed_shift=5)
    assert not vectors_of(model)
    words = model.graph.initializers["w.embedding.scaled"].const_value.numpy()
    assert not words[:, [0, 3]].any() and words[:, [1, 2]].all()


def test_a_channel_that_a_norm_between_layers_forgets_keeps_its_zero_and_nothing_else():
    weights = random_weights(BERT)
    weights["0.feed_forward_norm.scale"][2] = 0
    model = build(BERT, weights)
    (reason,) = absorbs(model, absorbed_scale=4, absorbed_shift=4, narrowed_scale=1)
    assert reason == "1 of 8 channels are scaled by 0, which no weight can undo"
    (left,) = vectors_of(model)
    assert left.tolist() == [1, 1, 0, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("factor", [1e3, 1e-3])
def test_a_channel_that_would_be_far_larger_elsewhere_stays(factor):
    weights = random_weights(BERT)
    weights["1.attention_norm.scale"][5] *= factor
    model = build(BERT, weights)
    (reason,) = absorbs(model, absorbed_scale=4, absorbed_shift=4, narrowed_scale=1)
    assert "1 of 8 channels would be stored up to" in reason
    (left,) = vectors_of(model)
    assert (np.delete(left, 5) == 1).all()


def test_a_factor_for_all_channels_is_no_ratio_between_them():
    weights = random_weights(BERT)
    for name in SCALES:
        weights[f"{name}.scale"] *= 1 / 8
    assert not absorbs(build(BERT, weights), absorbed_scale=5, absorbed_shift=5)


def test_all_channels_stay_where_together_they_would_leave_the_reach():
    weights = random_weights(BERT)
    weights["1.attention_norm.scale"] *= 2.0**24
    model = build(BERT, weights)
    (reason,) = absorbs(model, absorbed_scale=4, absorbed_shift=4, narrowed_scale=1)
    assert reason == "all channels would leave the range of float16"
    assert len(vectors_of(model)) == 1


def test_a_table_that_the_head_shares_is_not_touched():
    """Tied embeddings: their matrix is stored once, and both ends want it as it is."""
    arch = dataclasses.replace(BERT, head="tokens")
    weights = random_weights(arch)
    weights["classifier"] = np.ascontiguousarray(weights["embedding"].T)
    weights["classifier.bias"] = np.linspace(0.1, 1, VOCAB)
    model = build(arch, weights)
    reasons = absorbs(model, absorbed_scale=4, absorbed_shift=4, narrowed_scale=1)
    assert any("table of embeddings" in reason for reason in reasons)
    assert "w.embedding" in model.graph.initializers and "w.classifier" in model.graph.initializers


def test_a_shift_stays_where_what_is_in_front_of_it_is_read_elsewhere():
    model = build(BERT, outputs=["0.residual"])
    (reason,) = absorbs(model, absorbed_scale=5, absorbed_shift=4)
    assert reason == "the shift stays: what is in front of it is read elsewhere too"
    model = build(dataclasses.replace(BERT, norm="pre", head="hidden"))
    refused = absorbs(model, absorbed_scale=5, absorbed_shift=1)
    assert refused == ["the shift stays: what is in front of it is read elsewhere too"] * 4


def test_a_norm_without_scale_or_shift_is_absorbed_as_far_as_there_is_one():
    weights = random_weights(BERT)
    del weights["0.attention_norm.shift"], weights["1.attention_norm.shift"], weights["1.feed_forward_norm.scale"]
    assert not absorbs(build(BERT, weights), absorbed_scale=4, absorbed_shift=2)


def test_biases_that_are_missing_are_made():
    weights = {name: array for name, array in random_weights(BERT).items() if not name.endswith("output.bias")}
    del weights["0.down.bias"]
    assert not absorbs(build(BERT, weights), absorbed_scale=5, absorbed_shift=5)


def test_a_scale_behind_a_sublayer_goes_into_its_matrix():
    """As LayerScale writes it: x + w * f(x), in front of a norm with statistics."""
    arch = Architecture(front="ids", head="classifier")
    model = build(arch)
    residual = next(node for node in model.graph if node.name == "0.second_residual")
    scale = np.linspace(1e-5, 1, arch.width)
    scale[3] = 0
    multiply(model, residual, 0, residual.inputs[0], scale)
    assert not absorbs(model, absorbed_scale=1)
    assert not vectors_of(model)


@pytest.mark.parametrize("seed", range(8))  # in some, a factor times a scale over that scale rounds
def test_what_is_added_to_its_own_multiple_is_left_alone(seed):
    arch = dataclasses.replace(BERT, layers=1)
    model = build(arch)
    residual = next(node for node in model.graph if node.name == "0.second_residual")
    vector = np.random.default_rng(seed).uniform(1, 2, arch.width)
    multiply(model, residual, 0, residual.inputs[1], vector)
    refused = absorbs(model, absorbed_scale=3, absorbed_shift=2)
    assert "what it scales is added to what it makes of that" in refused
    (kept,) = vectors_of(model)
    np.testing.assert_array_equal(kept, vector)


@pytest.mark.parametrize("weight", ["0.query", "0.output", "0.feed_forward_norm.shift"])
def test_weights_that_a_caller_may_give_pin(weight):
    model = build(BERT, inputs=[f"{weight}"])
    feeds = random_feeds(model)
    before = run64(model, feeds)
    result = AbsorbNormsPass()(model)
    assert result.modified
    check(model)
    assert_same(run64(model, feeds), before)
    assert weight in [value.name.removeprefix("w.") for value in model.graph.inputs]


def test_a_graph_without_such_norms_is_not_touched():
    assert_untouched(AbsorbNormsPass(), build(Architecture(layers=2)))


def test_float32_keeps_its_precision_over_a_range_of_scales():
    arch = dataclasses.replace(BERT, dtype=np.float32, layers=6)
    weights = random_weights(arch)
    random = np.random.default_rng(0)
    for name in [name for name in weights if name.endswith(".scale")]:
        weights[name] *= np.exp2(random.uniform(-1.5, 0.5, arch.width)).astype(np.float32)
    exact = {name: array.astype(np.float64) for name, array in weights.items()}
    model, reference = build(arch, weights), build(dataclasses.replace(arch, dtype=np.float64), exact)
    feeds = random_feeds(model)
    truth, plain = run64(reference, feeds)["logits"], run32(model, feeds)["logits"]
    assert AbsorbNormsPass()(model).modified
    check(model)
    absorbed = run32(model, feeds)["logits"]
    assert np.abs(absorbed - truth).max() < 4 * np.abs(plain - truth).max() + 1e-7


@st.composite
def affine(draw):
    """A model whose norms have no statistics, with dead structure; scales of either sign, some 0, some far out."""
    drawn = {
        "mask": draw(st.sampled_from(["plain", "additive", "visible", "none"])),
        "activation": draw(st.sampled_from(["relu", "gelu", "erf-gelu"])),  # which do not overflow on the way
    }
    arch, weights = draw(pruned(norms="affine", **drawn))
    seed = np.random.default_rng(draw(st.integers(0, 99)))
    for name in [name for name in weights if name.endswith(".scale")]:
        fates = seed.choice(4, arch.width, p=[0.7, 0.15, 0.1, 0.05])
        weights[name] *= np.select([fates == 1, fates == 2, fates == 3], [-1, 0, 1e4], 1)
    return arch, weights


@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(affine(), st.integers(0, 9), st.sampled_from(PADDINGS))
def test_any_model_keeps_its_outputs(case, seed, padding):
    arch, weights = case
    model = build(arch, weights)
    feeds = random_feeds(model, padding_mask(padding, seed=seed), seed)
    before = run64(model, feeds)
    result = AbsorbNormsPass()(model)
    check(model)
    size = max(1.0, *(np.abs(array).max() for array in before.values()))
    after = run64(model, feeds)
    for name, array in before.items():
        np.testing.assert_allclose(after[name] / size, array / size, rtol=1e-10, atol=1e-10)
    assert result.modified or result.refused or arch.layers == 0
    again = AbsorbNormsPass()(model)
    assert not again.modified, again.applied
