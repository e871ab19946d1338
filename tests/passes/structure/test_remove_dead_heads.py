from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compactor.passes.structure.fold_value_biases import FoldValueBiasesPass
from compactor.passes.structure.remove_dead_heads import RemoveDeadHeadsPass
from tests.models import Architecture, build, random_weights
from tests.passes.strategies import PROPERTY, architectures
from tests.planting import UNMATCHED, attention_node, columns, kill_values, make_uniform
from tests.running import (
    PADDINGS,
    assert_rewrites_once,
    assert_same,
    assert_untouched,
    check,
    initializer_shapes,
    padding_mask,
    random_feeds,
    run32,
    run64,
)

ARCH = Architecture(qk=4, v=3, neurons=10)  # 4 heads, width 8


def folded(arch, weights, **options):
    model = build(arch, weights, **options)
    FoldValueBiasesPass()(model)
    return model


@pytest.mark.parametrize("how", ["value", "output"])
@pytest.mark.parametrize("dead", [(0,), (1, 3), (0, 1, 2)])
def test_shrinks_every_block_to_its_live_heads(dead, how):
    weights = random_weights(ARCH)
    kill_values(weights, ARCH, 0, dead, how)
    model = folded(ARCH, weights)
    feeds = random_feeds(model)
    before = run64(model, feeds)

    assert_rewrites_once(RemoveDeadHeadsPass(), model, dead_head=len(dead))

    live = 4 - len(dead)
    node = attention_node(model)
    assert node.attributes["q_num_heads"].value == node.attributes["kv_num_heads"].value == live
    assert node.attributes["scale"].value == ARCH.scale
    shapes = initializer_shapes(model)
    assert shapes.count((8, live * 4)) == 2  # Wq and Wk
    assert (8, live * 3) in shapes  # Wv
    assert (live * 3, 8) in shapes  # Wo
    assert_same(run64(model, feeds), before)


def test_a_value_bias_that_nobody_reads_keeps_no_head():
    weights = random_weights(ARCH)
    kill_values(weights, ARCH, 0, 1, "output")
    model = build(ARCH, weights)  # its value bias is not folded, as under a mask that may hide all keys
    feeds = random_feeds(model)
    before = run64(model, feeds)
    assert_rewrites_once(RemoveDeadHeadsPass(), model, dead_head=1)
    assert_same(run64(model, feeds), before)


def test_a_head_is_dead_when_column_and_row_take_turns():
    weights = random_weights(ARCH)
    weights["0.value"][:, columns(3, 2, [0, 1])] = 0
    weights["0.output"][columns(3, 2, [2])] = 0
    model = folded(ARCH, weights)
    feeds = random_feeds(model)
    before = run64(model, feeds)
    assert_rewrites_once(RemoveDeadHeadsPass(), model, dead_head=1)
    assert_same(run64(model, feeds), before)


@pytest.mark.parametrize("how", ["key", "query"])
@pytest.mark.parametrize("padding", PADDINGS)
def test_a_head_that_averages_its_values_stays(how, padding):
    weights = random_weights(ARCH)
    make_uniform(weights, ARCH, 0, [1, 2], how)
    model = folded(ARCH, weights)
    assert_untouched(RemoveDeadHeadsPass(), model)

    kill_values(weights, ARCH, 0, 0)
    model = folded(ARCH, weights)
    feeds = random_feeds(model, padding_mask(padding))
    before = run64(model, feeds)
    assert_rewrites_once(RemoveDeadHeadsPass(), model, dead_head=1)
    assert_same(run64(model, feeds), before)


def test_a_bias_that_was_not_folded_keeps_its_head():
    weights = random_weights(ARCH)
    kill_values(weights, ARCH, 0, 1)
    assert_untouched(RemoveDeadHeadsPass(), build(ARCH, weights))


def test_one_live_channel_keeps_the_head():
    weights = random_weights(ARCH)
    weights["0.value"][:, columns(3, 1, [0, 1])] = 0
    weights["0.output"][columns(3, 1, [0, 1])] = 0
    assert_untouched(RemoveDeadHeadsPass(), folded(ARCH, weights))


def test_the_smallest_weight_is_alive():
    weights = random_weights(ARCH)
    kill_values(weights, ARCH, 0, 1)
    weights["0.value"][3, 4] = 5e-324
    assert_untouched(RemoveDeadHeadsPass(), folded(ARCH, weights))


@pytest.mark.parametrize("how", ["value", "output"])
def test_a_block_without_any_live_head_is_left_to_another_pass(how):
    weights = random_weights(ARCH)
    kill_values(weights, ARCH, 0, range(4), how)
    assert_untouched(RemoveDeadHeadsPass(), folded(ARCH, weights))


@pytest.mark.parametrize("mask", ["bias", "bias_only"])
def test_a_mask_with_values_per_head_keeps_those_of_the_live_heads(mask):
    arch = Architecture(mask=mask, layers=2)
    weights = random_weights(arch)
    kill_values(weights, arch, 0, [0, 2])
    kill_values(weights, arch, 1, [1])  # both layers read the same mask
    model = folded(arch, weights)
    feeds = random_feeds(model, padding_mask("holes"))
    before = run64(model, feeds)

    assert_rewrites_once(RemoveDeadHeadsPass(), model, dead_head=3)

    gathers = [node for node in model.graph if node.op_type == "Gather"]
    assert [node.inputs[1].const_value.numpy().tolist() for node in gathers] == [[1, 3], [0, 2, 3]]
    assert_same(run64(model, feeds), before)


def test_a_mask_of_heads_without_a_batch_axis():
    arch = Architecture(mask="bias_only")
    weights = random_weights(arch)
    kill_values(weights, arch, 0, [0, 2])
    model = folded(arch, weights)
    bias = next(value for value in model.graph.inputs if value.name == "position_bias")
    bias.shape = type(bias.shape)([4, "sequence", "sequence"])
    feeds = random_feeds(model)
    feeds["position_bias"] = np.random.default_rng(0).standard_normal((4, 6, 6))
    before = run64(model, feeds)
    assert_rewrites_once(RemoveDeadHeadsPass(), model, dead_head=2)
    assert_same(run64(model, feeds), before)


def test_a_shared_initializer_keeps_its_other_readers():
    weights = random_weights(ARCH)
    weights["0.key"] = weights["0.query"].copy()
    weights["0.value"][:, 3:6] = 0
    arch = Architecture(qk=4, v=3, neurons=10, layers=2)
    deep = random_weights(arch)
    deep.update(weights)
    for name in ("query", "query.bias", "value", "output"):
        deep[f"1.{name}"] = deep[f"0.{name}"].copy()
    deep["1.value"] = random_weights(arch, 1)["1.value"]
    model = folded(arch, deep)
    feeds = random_feeds(model)
    before = run64(model, feeds)

    result = assert_rewrites_once(RemoveDeadHeadsPass(), model, dead_head=1)

    assert [event.layer for event in result.applied] == ["0.attention"]
    assert_same(run64(model, feeds), before)


@pytest.mark.parametrize("case", UNMATCHED)
def test_leaves_a_block_alone_and_says_why(case):
    make, reason = UNMATCHED[case]
    assert_untouched(RemoveDeadHeadsPass(), make(), reason)


def test_onnx_runtime_agrees():
    arch = Architecture(qk=4, v=3, dtype=np.float32)
    weights = random_weights(arch)
    kill_values(weights, arch, 0, [0, 2])
    model = folded(arch, weights)
    feeds = random_feeds(model, padding_mask("holes"))
    before = run32(model, feeds)
    assert_rewrites_once(RemoveDeadHeadsPass(), model, dead_head=2)
    assert_same(run32(model, feeds), before, tolerance=1e-5)


@PROPERTY
@given(architectures(), st.integers(0, 9), st.sampled_from(PADDINGS), st.data())
def test_keeps_the_output_of_any_model(arch, seed, padding, data):
    weights = random_weights(arch, seed)
    removed = 0
    for layer in range(arch.layers):
        dead = data.draw(st.sets(st.integers(0, arch.heads - 1)))
        kill_values(weights, arch, layer, dead, data.draw(st.sampled_from(["value", "output"])))
        removed += len(dead) if len(dead) < arch.heads else 0
    model = folded(arch, weights)
    feeds = random_feeds(model, padding_mask(padding, seed=seed), seed)
    before = run64(model, feeds)
    if removed:
        assert_rewrites_once(RemoveDeadHeadsPass(), model, dead_head=removed)
    else:
        assert_untouched(RemoveDeadHeadsPass(), model)
    assert_same(run64(model, feeds), before)


def test_rotary_embeddings_turn_the_heads_that_are_left():
    arch = Architecture(rotary="half")
    weights = random_weights(arch)
    kill_values(weights, arch, 0, [0, 2])
    model = build(arch, weights)
    FoldValueBiasesPass()(model)
    feeds = random_feeds(model, padding_mask("left"))
    before = run64(model, feeds)
    assert_rewrites_once(RemoveDeadHeadsPass(), model, dead_head=2)
    nodes = [node for node in model.graph if node.op_type == "RotaryEmbedding"]
    assert [node.attributes["num_heads"].value for node in nodes] == [2, 2]
    assert_same(run64(model, feeds), before)


# Logits of distances


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("relative", ["c2p", "p2c", "both"])
def test_heads_go_through_the_tables_of_distances(relative, padding):
    arch = Architecture(mask="both_real", relative=relative, layers=2)
    weights = random_weights(arch)
    kill_values(weights, arch, 0, [1, 2])
    model = folded(arch, weights)
    feeds = random_feeds(model, padding_mask(padding))
    before = run64(model, feeds)
    tables = {node.name: node.inputs[1].const_value.numpy() for node in model.graph if node.op_type == "RelativeLogits"}

    assert_rewrites_once(RemoveDeadHeadsPass(), model, dead_head=2)

    for node in model.graph:
        if node.op_type == "RelativeLogits":
            kept = columns(4, [0, 3] if node.name.startswith("0.") else range(4))
            assert node.attributes["num_heads"].value == len(kept) // 4
            np.testing.assert_array_equal(node.inputs[1].const_value.numpy(), tables[node.name][:, kept])
            assert node.outputs[0].shape[1] == len(kept) // 4
    assert_same(run64(model, feeds), before)


# Keys and values that query heads share


GROUPED = Architecture(heads=4, kv_heads=2, qk=4, v=3, front="ids", mask="plain")
UNEVEN = dataclasses.replace(GROUPED, heads=12, kv_heads=3, width=64)


def heads_of(model):
    node = attention_node(model)
    return node.attributes["q_num_heads"].value, node.attributes["kv_num_heads"].value


def without(arch, dead):
    """A folded model of which these query heads are dead, an input for it, and what it computes."""
    weights = random_weights(arch)
    kill_values(weights, arch, 0, dead, "output")
    model = folded(arch, weights)
    feeds = random_feeds(model, padding_mask("left"))
    return model, feeds, run64(model, feeds)


@pytest.mark.parametrize("rotary", ["", "half"])
@pytest.mark.parametrize(
    ("arch", "dead", "written"),
    [
        pytest.param(GROUPED, [2, 3], (2, 1), id="fewer-groups"),
        pytest.param(GROUPED, [0, 2], (2, 2), id="smaller-groups"),
        pytest.param(GROUPED, [0], (3, 3), id="a-head-of-keys-for-each-query"),
        pytest.param(UNEVEN, [9, 10, 11], (10, 5), id="keys-written-several-times"),
        pytest.param(
            dataclasses.replace(GROUPED, heads=8, kv_heads=2, width=64), [7], (8, 2), id="a-query-of-zeros-stays"
        ),
        pytest.param(
            dataclasses.replace(GROUPED, heads=12, kv_heads=3, width=64),
            [0, 4, 8, 9, 10, 11],
            (6, 2),
            id="a-group-and-a-query-of-each",
        ),
    ],
)
def test_groups_are_written_in_the_cheapest_form(arch, dead, written, rotary):
    model, feeds, before = without(dataclasses.replace(arch, rotary=rotary), dead)
    if written == (arch.heads, arch.kv_heads):
        assert_untouched(RemoveDeadHeadsPass(), model)
        return
    assert_rewrites_once(RemoveDeadHeadsPass(), model, dead_head=arch.heads - written[0])
    assert heads_of(model) == written
    turned = [node.attributes["num_heads"].value for node in model.graph if node.op_type == "RotaryEmbedding"]
    assert turned == (list(written) if rotary else [])
    assert_same(run64(model, feeds), before)


def test_query_heads_of_zeros_fill_up_the_last_piece():
    model, feeds, before = without(UNEVEN, [9, 10, 11])
    RemoveDeadHeadsPass()(model)
    check(model)
    query = attention_node(model).inputs[0].producer()
    matmul = query if query.op_type == "MatMul" else query.inputs[0].producer()
    weight = matmul.inputs[1].const_value.numpy().reshape(UNEVEN.width, 10, 4)
    assert [bool(weight[:, head].any()) for head in range(10)] == [True] * 9 + [False]
    assert_same(run64(model, feeds), before)


@pytest.mark.parametrize("mask", ["bias", "bias_only"])
def test_a_mask_of_heads_keeps_a_place_for_queries_of_zeros(mask):
    arch = dataclasses.replace(UNEVEN, mask=mask)
    model, feeds, before = without(arch, [9, 10, 11])
    RemoveDeadHeadsPass()(model)
    check(model)
    gather = next(node for node in model.graph if node.op_type == "Gather" and "live_heads" in node.inputs[1].name)
    assert gather.inputs[1].const_value.numpy().tolist() == [*range(9), 0]
    assert_same(run64(model, feeds), before)


@settings(max_examples=60)
@given(st.integers(1, 3), st.integers(2, 4), st.sampled_from([8, 64]), st.sampled_from(["", "half"]), st.data())
def test_any_groups_are_written_once_and_exactly(groups, times, width, rotary, data):
    heads = groups * times
    arch = Architecture(heads=heads, kv_heads=groups, qk=4, v=2, width=width, neurons=2, rotary=rotary, front="ids")
    dead = data.draw(st.sets(st.integers(0, heads - 1), max_size=heads - 1))
    model, feeds, before = without(arch, sorted(dead))
    changed = RemoveDeadHeadsPass()(model).modified
    check(model)
    queries, keys = heads_of(model)
    assert queries % keys == 0 and queries <= heads
    if not dead:
        assert not changed
    if len(dead) == times and {head // times for head in dead} == {min(dead) // times}:
        assert keys <= heads - times
    assert_same(run64(model, feeds), before)
    assert not RemoveDeadHeadsPass()(model).modified
