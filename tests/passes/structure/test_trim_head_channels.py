from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compactor.passes.canonical.normalize_attention import NormalizeAttentionPass
from compactor.passes.canonical.tabulate_rotary import TabulateRotaryPass
from compactor.passes.structure.fold_value_biases import FoldValueBiasesPass
from compactor.passes.structure.remove_dead_heads import RemoveDeadHeadsPass
from compactor.passes.structure.trim_head_channels import TrimHeadChannelsPass, channel_index
from tests.attention import SPAN
from tests.models import Architecture, build, random_weights
from tests.passes.strategies import PROPERTY, pruned
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

ARCH = Architecture(heads=3, qk=4, v=5)  # width 8


def folded(arch, weights, **options):
    model = build(arch, weights, **options)
    FoldValueBiasesPass()(model)
    return model


def plant_widths(weights, qk=(2, 1, 2), v=(3, 1, 2)):
    """Leave head h its last qk[h] and v[h] channels; keys die first, then queries; columns first, then rows."""
    for head, (q_width, v_width) in enumerate(zip(qk, v, strict=True)):
        weights["0.key"][:, columns(4, head, range(1))] = 0
        weights["0.query"][:, columns(4, head, range(1, 4 - q_width))] = 0
        weights["0.query.bias"][columns(4, head, range(1, 4 - q_width))] = 0
        weights["0.value"][:, columns(5, head, range(1))] = 0
        weights["0.output"][columns(5, head, range(1, 5 - v_width))] = 0


@pytest.mark.parametrize("padding", PADDINGS)
def test_shrinks_to_the_widest_head_and_pads_the_others(padding):
    weights = random_weights(ARCH)
    plant_widths(weights)
    model = folded(ARCH, weights)
    feeds = random_feeds(model, padding_mask(padding))
    before = run64(model, feeds)

    assert_rewrites_once(TrimHeadChannelsPass(), model, dead_qk_channel=2 * 3, dead_v_channel=2 * 3)

    shapes = initializer_shapes(model)
    assert shapes.count((8, 3 * 2)) == 2  # Wq, Wk
    assert (8, 3 * 3) in shapes and (3 * 3, 8) in shapes  # Wv, Wo
    node = attention_node(model)
    assert node.attributes["q_num_heads"].value == 3
    assert node.attributes["scale"].value == 0.5  # the original head's, not 1/sqrt(2)
    assert_same(run64(model, feeds), before)


def test_a_constant_query_channel_that_meets_a_live_key_stays():
    weights = random_weights(ARCH)
    weights["0.query"][:] = 0  # the biases are not zero
    assert_untouched(TrimHeadChannelsPass(), folded(ARCH, weights))


@pytest.mark.parametrize("how", ["key", "query"])
def test_a_head_left_with_no_qk_channel_keeps_one_of_zeros(how):
    weights = random_weights(ARCH)
    make_uniform(weights, ARCH, 0, range(3), how)
    model = folded(ARCH, weights)
    feeds = random_feeds(model, padding_mask("holes"))
    before = run64(model, feeds)

    assert_rewrites_once(TrimHeadChannelsPass(), model, dead_qk_channel=3 * 3)

    assert initializer_shapes(model).count((8, 3)) == 2  # Wq and Wk
    assert_same(run64(model, feeds), before)


def test_one_side_may_be_as_narrow_as_it_can_be():
    weights = random_weights(ARCH)
    plant_widths(weights, v=(5, 1, 1))
    weights["0.value"][:, 0] = 1.0
    model = folded(ARCH, weights)
    feeds = random_feeds(model)
    before = run64(model, feeds)
    assert_rewrites_once(TrimHeadChannelsPass(), model, dead_qk_channel=2 * 3)
    assert_same(run64(model, feeds), before)


def test_a_dead_head_does_not_hold_the_width_up():
    weights = random_weights(ARCH)
    plant_widths(weights)
    kill_values(weights, ARCH, 0, 1)
    for name in ("query", "key"):  # wide, but nothing reads it
        weights[f"0.{name}"][:, columns(4, 1)] = 1.0
    model = folded(ARCH, weights)
    feeds = random_feeds(model)
    before = run64(model, feeds)
    assert_rewrites_once(TrimHeadChannelsPass(), model, dead_qk_channel=2 * 3, dead_v_channel=2 * 3)
    assert_same(run64(model, feeds), before)


def test_leaves_values_alone_while_they_have_a_bias():
    weights = random_weights(ARCH)
    plant_widths(weights, qk=(3, 3, 3))
    weights["0.key"][:, columns(4, range(3), [0])] = 1.0
    weights["0.query"][:, columns(4, range(3), [0])] = 1.0
    assert_untouched(TrimHeadChannelsPass(), build(ARCH, weights), "the value bias is not folded")


def test_leaves_a_block_without_any_live_head_alone():
    weights = random_weights(ARCH)
    kill_values(weights, ARCH, 0, range(3))
    assert_untouched(TrimHeadChannelsPass(), folded(ARCH, weights))


def test_leaves_a_dense_block_alone():
    assert_untouched(TrimHeadChannelsPass(), folded(ARCH, random_weights(ARCH)))


@pytest.mark.parametrize("case", UNMATCHED)
def test_leaves_a_block_alone_and_says_why(case):
    make, reason = UNMATCHED[case]
    assert_untouched(TrimHeadChannelsPass(), make(), reason)


def test_onnx_runtime_agrees_on_widths_that_differ():
    arch = Architecture(heads=3, qk=4, v=5, dtype=np.float32)
    weights = random_weights(arch)
    plant_widths(weights)
    model = folded(arch, weights)
    feeds = random_feeds(model, padding_mask("left"))
    before = run32(model, feeds)
    assert_rewrites_once(TrimHeadChannelsPass(), model, dead_qk_channel=2 * 3, dead_v_channel=2 * 3)
    assert_same(run32(model, feeds), before, tolerance=1e-5)


def test_channel_index_lists_live_channels_head_by_head():
    live = np.array([[False, True, True], [True, False, False], [False, False, False]])
    assert channel_index(live, 2).tolist() == [1, 2, 3, -1, -1, -1]


@PROPERTY
@given(pruned(), st.integers(0, 9), st.sampled_from(PADDINGS), st.booleans())
def test_keeps_the_output_of_any_model(case, seed, padding, heads_first):
    arch, weights = case
    model = folded(arch, weights)
    feeds = random_feeds(model, padding_mask(padding, seed=seed), seed)
    before = run64(model, feeds)
    if heads_first:
        RemoveDeadHeadsPass()(model)
    TrimHeadChannelsPass()(model)
    assert not TrimHeadChannelsPass()(model).modified
    assert_same(run64(model, feeds), before)


# Rotary embeddings

TURNED = Architecture(heads=2, qk=8, v=3, rotary="half")


def silence(weights, name, heads, channels, size=8):
    """No query or key in these channels, biases included."""
    index = columns(size, heads, channels)
    weights[f"0.{name}"][:, index] = 0
    weights[f"0.{name}.bias"][index] = 0


def rotary_nodes(model):
    return [node for node in model.graph if node.op_type == "RotaryEmbedding"]


@pytest.mark.parametrize("rotary", ["half", "interleaved"])
def test_pairs_that_no_head_turns_go_with_their_columns_of_the_tables(rotary):
    arch = dataclasses.replace(TURNED, rotary=rotary)
    weights = random_weights(arch)
    pairs = {"half": [(0, 4), (1, 5), (2, 6), (3, 7)], "interleaved": [(0, 1), (2, 3), (4, 5), (6, 7)]}[rotary]
    silence(weights, "query", range(2), pairs[1])
    silence(weights, "key", 0, pairs[3])  # the other head turns it
    model = folded(arch, weights)
    feeds = random_feeds(model, padding_mask("left"))
    before = run64(model, feeds)
    table = rotary_nodes(model)[0].inputs[1].const_value.numpy()

    assert_rewrites_once(TrimHeadChannelsPass(), model, dead_qk_channel=2 * 2)

    for node in rotary_nodes(model):
        np.testing.assert_array_equal(node.inputs[1].const_value.numpy(), table[:, [0, 2, 3]])
        assert node.attributes["rotary_embedding_dim"].value == 6
    assert_same(run64(model, feeds), before)


@pytest.mark.parametrize("side", ["query", "key"])
def test_a_pair_with_one_dead_half_stays(side):
    weights = random_weights(TURNED)
    silence(weights, side, range(2), [1, 2, 3])  # their partners 5, 6 and 7 live
    assert_untouched(TrimHeadChannelsPass(), folded(TURNED, weights))


def test_a_pair_of_constant_keys_stays():
    weights = random_weights(TURNED)
    weights["0.key"][:, columns(8, range(2), [1, 5])] = 0  # the biases are turned by the position of the key
    assert_untouched(TrimHeadChannelsPass(), folded(TURNED, weights))


def test_where_nothing_is_turned_any_more_the_embedding_goes():
    weights = random_weights(TURNED)
    silence(weights, "query", range(2), range(8))
    model = folded(TURNED, weights)
    feeds = random_feeds(model, padding_mask("holes"))
    before = run64(model, feeds)
    assert_rewrites_once(TrimHeadChannelsPass(), model, dead_qk_channel=7 * 2)
    assert not rotary_nodes(model)
    assert_same(run64(model, feeds), before)


def test_tables_that_are_computed_keep_their_pairs():
    arch = dataclasses.replace(TURNED, angles=True, form="4d")
    weights = random_weights(arch)
    silence(weights, "query", range(2), [1, 5])
    model = build(arch, weights)
    TabulateRotaryPass()(model)
    NormalizeAttentionPass()(model)
    FoldValueBiasesPass()(model)
    assert_untouched(TrimHeadChannelsPass(), model, "tables of the rotary embedding are not constants")


@PROPERTY
@given(st.data(), st.sampled_from(["half", "interleaved"]), st.sampled_from([0, 2, 6]), st.sampled_from(PADDINGS))
def test_whatever_dies_of_what_is_turned_changes_no_number(data, rotary, rotated, padding):
    arch = dataclasses.replace(TURNED, rotary=rotary, rotated=rotated)
    weights = random_weights(arch)
    for name in ("query", "key"):
        for head in range(2):
            silence(weights, name, head, data.draw(st.lists(st.integers(0, 7), max_size=8)))
    kill_values(weights, arch, 0, data.draw(st.lists(st.integers(0, 1), max_size=1)))
    model = folded(arch, weights)
    feeds = random_feeds(model, padding_mask(padding))
    before = run64(model, feeds)
    RemoveDeadHeadsPass()(model)
    TrimHeadChannelsPass()(model)
    check(model)
    assert_same(run64(model, feeds), before)
    assert not TrimHeadChannelsPass()(model).modified


# Logits of distances, and keys and values that are shared


@pytest.mark.parametrize(("relative", "silent"), [("c2p", "key"), ("p2c", "query")])
def test_a_channel_alive_only_through_a_table_stays(relative, silent):
    arch = Architecture(heads=2, qk=4, v=3, mask="both_real", relative=relative)
    weights = random_weights(arch)
    silence(weights, silent, range(2), [0, 2], size=4)
    for name in (relative, f"{relative}.bias"):
        weights[f"0.{name}"][..., columns(4, range(2), [2])] = 0  # so that 2 is dead, and 0 alive by its table alone
    model = folded(arch, weights)
    feeds = random_feeds(model, padding_mask("left"))
    before = run64(model, feeds)

    assert_rewrites_once(TrimHeadChannelsPass(), model, dead_qk_channel=2)

    term = next(node for node in model.graph if node.op_type == "RelativeLogits")
    assert term.inputs[1].const_value.numpy().shape == (2 * SPAN, 2 * 3)
    assert_same(run64(model, feeds), before)


def test_a_rotated_pair_of_which_a_table_reads_either_half_stays():
    """The tables read what is not turned: a half may be alive by them alone, whichever it is."""
    for half in (0, 1):
        arch = Architecture(heads=2, qk=4, v=3, rotary="half", mask="both_real", relative="c2p", front="ids")
        weights = random_weights(arch)
        silence(weights, "key", range(2), [0, 2], size=4)
        for name in ("c2p", "c2p.bias"):
            weights[f"0.{name}"][..., columns(4, range(2), [2 * half])] = 0
        model = folded(arch, weights)
        feeds = random_feeds(model, padding_mask("left"))
        before = run64(model, feeds)
        TrimHeadChannelsPass()(model)
        check(model)
        assert_same(run64(model, feeds), before)


@pytest.mark.parametrize("rotary", ["", "half"])
def test_heads_that_share_keys_and_values_keep_the_channels_of_any_of_them(rotary):
    arch = Architecture(heads=4, kv_heads=2, qk=4, v=3, rotary=rotary, front="ids")
    weights = random_weights(arch)
    silence(weights, "query", range(4), [1, 3], size=4)  # of all queries
    silence(weights, "query", [0, 2], [0, 2], size=4)  # of one query of each group
    weights["0.output"][columns(3, range(4), [0])] = 0
    weights["0.output"][columns(3, [1, 3], [1])] = 0
    model = folded(arch, weights)
    feeds = random_feeds(model, padding_mask("holes"))
    before = run64(model, feeds)

    assert_rewrites_once(TrimHeadChannelsPass(), model, dead_qk_channel=4 * 2, dead_v_channel=4 * 1)

    node = attention_node(model)
    assert [tuple(value.shape)[-1] for value in node.inputs[:3]] == [4 * 2, 2 * 2, 2 * 2]
    assert_same(run64(model, feeds), before)


def test_a_dead_query_head_does_not_hold_the_channels_of_its_group_up():
    arch = Architecture(heads=4, kv_heads=2, qk=4, v=3)
    weights = random_weights(arch)
    kill_values(weights, arch, 0, [0], "output")
    silence(weights, "query", [1, 2, 3], [1, 3], size=4)
    model = folded(arch, weights)
    feeds = random_feeds(model)
    before = run64(model, feeds)
    assert_rewrites_once(TrimHeadChannelsPass(), model, dead_qk_channel=4 * 2)
    assert_same(run64(model, feeds), before)


def test_each_group_keeps_channels_of_its_own():
    arch = Architecture(heads=4, kv_heads=2, qk=4, v=4)
    weights = random_weights(arch)
    silence(weights, "query", [0, 1], [0, 1], size=4)
    silence(weights, "query", [2, 3], [2, 3], size=4)
    weights["0.output"][columns(4, [0, 1], [1, 3])] = 0
    weights["0.output"][columns(4, [2, 3], [0, 2])] = 0
    model = folded(arch, weights)
    feeds = random_feeds(model, padding_mask("left"))
    before = run64(model, feeds)
    assert_rewrites_once(TrimHeadChannelsPass(), model, dead_qk_channel=4 * 2, dead_v_channel=4 * 2)
    assert_same(run64(model, feeds), before)


@pytest.mark.parametrize("bare", ["", "query", "key"])
@pytest.mark.parametrize("rotary", ["", "half"])
def test_channels_that_a_norm_counts_stay(rotary, bare):
    """A mean over a head counts its zeros; values have none."""
    arch = Architecture(heads=3, qk=4, v=5, head_norm="rms", rotary=rotary)
    weights = random_weights(arch)
    plant_widths(weights)
    weights.pop(f"0.{bare}_norm.scale", None)
    model = folded(arch, weights)
    feeds = random_feeds(model)
    before = run64(model, feeds)
    assert_rewrites_once(TrimHeadChannelsPass(), model, dead_v_channel=(5 - 3) * 3)
    assert_same(run64(model, feeds), before)
