"""``_liveness.py``: the algebra on arrays."""

from __future__ import annotations

import numpy as np

from compactor.passes.graph.liveness import head_liveness, neuron_liveness, repeat_heads

D, H, QK, V = 3, 2, 2, 3


def arrays():
    random = np.random.default_rng(0)
    shapes = {
        "query": (D, H * QK),
        "query_bias": (H * QK,),
        "key": (D, H * QK),
        "value": (D, H * V),
        "output": (H * V, D),
    }
    return {name: random.uniform(1, 2, shape) for name, shape in shapes.items()}


def test_a_dense_block_is_alive():
    live = head_liveness(**arrays(), heads=H)
    assert live.qk.all() and live.v.all() and live.heads.all()
    assert not live.uniform.any()
    assert (live.qk_width, live.v_width) == (QK, V)


def test_a_key_column_of_zeros_takes_its_channel():
    a = arrays()
    a["key"][:, 1] = 0
    live = head_liveness(**a, heads=H)
    assert live.qk.tolist() == [[True, False], [True, True]]
    assert live.qk_width == 2


def test_a_query_column_of_zeros_takes_its_channel_only_without_a_bias():
    a = arrays()
    a["query"][:, [1, 2]] = 0
    assert head_liveness(**a, heads=H).qk.all()
    a["query_bias"][1] = 0
    assert head_liveness(**a, heads=H).qk.tolist() == [[True, False], [True, True]]
    a["query_bias"] = None
    assert head_liveness(**a, heads=H).qk.tolist() == [[True, False], [False, True]]


def test_a_value_channel_needs_its_column_and_its_row():
    a = arrays()
    a["value"][:, 0] = 0
    a["output"][4] = 0
    live = head_liveness(**a, heads=H)
    assert live.v.tolist() == [[False, True, True], [True, False, True]]
    assert live.v_width == 2


def test_a_live_head_without_qk_is_uniform_and_a_dead_one_is_not():
    a = arrays()
    a["key"][:] = 0
    a["value"][:, :V] = 0
    live = head_liveness(**a, heads=H)
    assert live.heads.tolist() == [False, True]
    assert live.uniform.tolist() == [False, True]
    assert (live.qk_width, live.v_width) == (0, V)


def test_dead_heads_do_not_count_for_the_width():
    a = arrays()
    a["value"][:, :V] = 0
    a["key"][:, 2] = 0
    assert head_liveness(**a, heads=H).qk_width == 1


def test_nothing_left():
    a = arrays()
    a["output"][:] = 0
    live = head_liveness(**a, heads=H)
    assert (live.qk_width, live.v_width, live.heads.any()) == (0, 0, False)


def test_a_neuron_needs_a_reader_and_one_driver():
    up, gate, down = np.ones((D, 4)), np.ones((D, 4)), np.ones((4, D))
    up[:, [0, 1]] = 0
    gate[:, [0]] = 0
    down[3] = 0
    assert neuron_liveness([up, gate], down).tolist() == [False, True, True, False]
    assert neuron_liveness([up], down).tolist() == [False, False, True, False]


def tables(*dead):
    """(R, H*d) with these columns zero."""
    table = np.ones((5, H * QK))
    table[:, list(dead)] = 0
    return table


def test_a_table_of_queries_keeps_a_channel_that_no_key_has():
    a = arrays()
    a["key"][:, [0, 1]] = 0
    live = head_liveness(**a, heads=H, query_table=tables(1))
    assert live.qk.tolist() == [[True, False], [True, True]]


def test_a_table_of_queries_keeps_no_channel_that_no_query_has():
    a = arrays()
    a["query"][:, [0, 1]] = 0
    a["query_bias"][0] = 0  # 1 is a constant, which the distances still weigh
    a["key"][:, [0, 1]] = 0
    assert head_liveness(**a, heads=H, query_table=tables()).qk.tolist() == [[False, True], [True, True]]


def test_a_table_of_keys_keeps_a_channel_that_no_query_has():
    a = arrays()
    a["query"][:, [0, 1]] = 0
    a["query_bias"][:] = 0
    live = head_liveness(**a, heads=H, key_table=tables(1))
    assert live.qk.tolist() == [[True, False], [True, True]]


def test_a_table_of_keys_makes_a_key_bias_count():
    a = arrays()
    a["key"][:, [0, 1]] = 0
    bias = np.array([1.0, 0, 0, 0])
    assert head_liveness(**a, heads=H, key_table=tables()).qk.tolist() == [[False, False], [True, True]]
    assert head_liveness(**a, heads=H, key_table=tables(), key_bias=bias).qk.tolist() == [[True, False], [True, True]]


def test_a_shared_head_is_that_of_each_of_its_queries():
    random = np.random.default_rng(0)
    a = {
        "query": random.standard_normal((D, 4 * QK)),
        "query_bias": None,
        "key": random.standard_normal((D, 2 * QK)),
        "value": random.standard_normal((D, 2 * V)),
        "output": random.standard_normal((4 * V, D)),
    }
    a["key"][:, 1] = 0
    a["value"][:, V:] = 0  # of both of the second group
    a["output"][:V] = 0  # of the first head alone
    live = head_liveness(**a, heads=4, kv_heads=2)
    assert live.heads.tolist() == [False, True, False, False]
    assert live.qk.tolist() == [[True, False]] * 2 + [[True, True]] * 2
    shared = live.by_group(2)
    assert shared.qk.tolist() == [[True, False], [False, False]]
    assert shared.v.tolist() == [[True] * V, [False] * V]


def test_heads_are_repeated_one_behind_the_other():
    assert repeat_heads(np.arange(4), 2, 6).tolist() == [0, 1, 0, 1, 0, 1, 2, 3, 2, 3, 2, 3]
    assert repeat_heads(np.arange(8).reshape(2, 4), 2, 4).tolist() == [
        [0, 1, 0, 1, 2, 3, 2, 3],
        [4, 5, 4, 5, 6, 7, 6, 7],
    ]
