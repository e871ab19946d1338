"""Profiles: recorded on a CPU, made up for a GPU, and of small graphs that are run here.

``profiles/sst2_int8_cpu.json`` was written by ONNX Runtime 1.31: the int8 graph of an earlier bundled example, two
runs of 2x16 tokens of which 25 are real. Fields that nobody reads and most nodes outside layer 0 are left out.
``profiles/made_up_cuda.json`` was not recorded: there is no GPU here. It is written by hand in ONNX Runtime's format,
with the kernel events that its CUDA profiler puts behind the node that started them (its pull requests 8406 and 9567).
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from compactor.runtime.profiling import NodeEvent, Profile, profile_session, read_profile
from tests.runtime.graphs import WIDTH, dense_layer, make_model, save

PROFILES = Path(__file__).with_name("profiles")
RECORDED = PROFILES / "sst2_int8_cpu.json"
MADE_UP = PROFILES / "made_up_cuda.json"
TOKENS, BATCH, LENGTH = 25, 2, 16  # of RECORDED
HEADS, MODEL, NEURONS = 128, 384, 1264  # widths of its layer 0: heads together, model, feed-forward

RANDOM = np.random.default_rng(3)


def event(operator, inputs, outputs, **fields) -> NodeEvent:
    """A node with float inputs and outputs of these shapes, unless a shape comes with its type."""

    def typed(shapes):
        return tuple(shape if shape and isinstance(shape[0], str) else ("float", shape) for shape in shapes)

    given = {"run": 0, "name": "node", "provider": "cpu", "host_us": 10} | fields
    return NodeEvent(operator=operator, inputs=typed(inputs), outputs=typed(outputs), **given)


def floats(*shape):
    return RANDOM.standard_normal(shape, np.float32)


def value(name, *shape, kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def run_once(nodes, feeds, outputs, constants=(), *, domains=()) -> Profile:
    """The profile of one run of a graph."""
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in feeds.items()
    ]
    model = make_model(nodes, inputs, outputs, constants, domains=domains)
    return profile_session(model.SerializeToString(), {"case": [feeds]}, runs=1, warm_up=0, threads=1)["case"]


# Reading


def test_reads_every_node_of_every_run():
    events = read_profile(RECORDED)
    first, second = ([event for event in events if event.run == run] for run in (0, 1))
    assert len(events) == len(first) + len(second)
    assert [event.name for event in first] == [event.name for event in second]
    (found,) = [event for event in first if event.name == "layers.0.attention/MatMulIntegerToFloat_2"]
    assert found == NodeEvent(
        run=0,
        name="layers.0.attention/MatMulIntegerToFloat_2",
        operator="MatMulIntegerToFloat",
        provider="cpu",
        inputs=(("uint8", (TOKENS, MODEL)), ("float", ()), ("float", (HEADS,)), ("uint8", ())),
        outputs=(("float", (TOKENS, HEADS)),),
        host_us=48,
    )


def test_nodes_outside_a_run_and_events_of_other_kinds_are_left_out(tmp_path):
    args = {"op_name": "Relu", "provider": "CPUExecutionProvider"}
    written = [
        {"cat": "Node", "dur": 1, "ts": 5, "name": "early_kernel_time", "args": args},
        {"cat": "Node", "dur": 0, "ts": 11, "name": "node_fence_before", "args": args},
        {"cat": "Node", "dur": 3, "ts": 12, "name": "node_kernel_time", "args": args},
        {"cat": "Session", "dur": 10, "ts": 10, "name": "model_run", "args": {}},
    ]
    path = tmp_path / "profile.json"
    path.write_text("[\n" + ",\n".join(map(json.dumps, written)) + "\n]\n")
    assert [(event.name, event.run, event.host_us) for event in read_profile(path)] == [("node", 0, 3)]


def test_the_time_of_a_node_on_a_gpu_is_that_of_its_kernels():
    events = {event.name: event for event in read_profile(MADE_UP) if event.run == 1}
    matmul, shape = events["layers.0.attention/MatMul_0"], events["model/Shape_0"]
    assert (matmul.host_us, matmul.device_us, matmul.time_us) == (12, 11, 11)  # two kernels, 3 and 8
    assert (shape.host_us, shape.device_us, shape.time_us) == (4, None, 4)


def test_a_node_that_only_holds_other_nodes_is_left_out():
    assert "If" not in {event.operator for event in read_profile(MADE_UP)}


# Totals


def profile_of(*events, runs=1) -> Profile:
    return Profile(tuple(events), runs)


def test_adds_up_by_operator_for_one_run():
    profile = profile_of(
        event("MatMul", [(4, 8)], [(4, 2)], name="a", host_us=100, run=0),
        event("Add", [(4, 2)], [(4, 2)], name="b", host_us=20, run=0),
        event("MatMul", [(4, 8)], [(4, 2)], name="c", host_us=40, run=0),
        event("MatMul", [(4, 8)], [(4, 2)], name="a", host_us=110, run=1),
        event("Add", [(4, 2)], [(4, 2)], name="b", host_us=20, run=1),
        event("MatMul", [(4, 8)], [(4, 2)], name="c", host_us=50, run=1),
        runs=2,
    )
    assert profile.by_operator() == [
        {"name": "MatMul", "provider": "cpu", "count": 2, "ms": 0.15, "share": pytest.approx(15 / 17), "macs": 2 * 64},
        {"name": "Add", "provider": "cpu", "count": 1, "ms": 0.02, "share": pytest.approx(2 / 17), "macs": 0},
    ]
    assert profile.total_ms == 0.17
    assert profile.macs == 2 * 64


def test_the_same_operator_on_two_providers_makes_two_rows():
    profile = profile_of(
        event("Gather", [(4,)], [(4,)], name="a", provider="cuda"), event("Gather", [(4,)], [(4,)], name="b")
    )
    assert [(row["name"], row["provider"], row["share"]) for row in profile.by_operator()] == [
        ("Gather", "cuda", 0.5),
        ("Gather", "cpu", 0.5),
    ]


def test_adds_up_by_layer_in_the_order_they_run_and_the_rest_last():
    profile = profile_of(*read_profile(RECORDED), runs=2)
    layers = profile.by_layer()
    assert [layer["name"] for layer in layers] == ["layers.0.attention", "layers.0.feed_forward", "other"]
    assert sum(layer["ms"] for layer in layers) == pytest.approx(profile.total_ms, abs=1e-5)
    assert sum(layer["share"] for layer in layers) == pytest.approx(1, abs=1e-5)
    assert sum(row["share"] for row in profile.by_operator()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("layers.3.attention/MatMul_2", "layers.3.attention"),
        ("layers.11.feed_forward_2/MatMul_0/MatMulAddFusion", "layers.11.feed_forward_2"),
        ("/bert/encoder/layer.0/attention/self/query/MatMul", "layers.0"),
        ("/vit/blocks.7/mlp/fc1/Gemm", "layers.7"),
        ("model/Gather_0", "other"),
        ("Memcpy_token_3", "other"),
        ("/layer_norm.1/Mul", "other"),
    ],
)
def test_tells_the_layer_by_the_name(name, layer):
    assert event("MatMul", [], [], name=name).layer == layer


def test_a_profile_without_events_adds_up_to_nothing():
    empty = Profile((), 1)
    assert (empty.total_ms, empty.macs, empty.by_operator(), empty.by_layer(), empty.placement()) == (0, 0, [], [], {})


# Placement


def test_counts_nodes_by_provider():
    assert profile_of(*read_profile(MADE_UP), runs=3).placement() == {"cpu": 4, "cuda": 5}


def test_names_what_keeps_a_session_from_staying_on_the_gpu():
    assert profile_of(*read_profile(MADE_UP), runs=3).misplaced("cuda") == [
        "Memcpy_token_7 (MemcpyFromHost) copies between cpu and cuda",
        "model/Expand_0 (Expand) runs on cpu",
        "layers.0.attention/SkipLayerNormalization_0 (SkipLayerNormalization) runs on cpu",
        "Memcpy_token_8 (MemcpyToHost) copies between cpu and cuda",
    ]


def test_nothing_is_misplaced_in_a_session_on_the_cpu():
    assert profile_of(*read_profile(RECORDED), runs=2).misplaced("cpu") == []


@pytest.mark.parametrize(
    ("node", "computes"),
    [
        (event("Softmax", [(2, 4)], [(2, 4)]), True),
        (event("MatMulInteger", [("uint8", (2, 4))], [("int32", (2, 4))]), True),
        (event("Cast", [("int64", (2, 4))], [("float16", (2, 4))]), True),
        (event("Gather", [("int64", (2, 4))], [("int64", (2,))]), False),
        (event("Sqrt", [()], [()]), False),
        (event("NonZero", [("bool", (4,))], [("int64", (1, 3))]), False),
    ],
)
def test_tells_the_model_s_numbers_from_shapes_and_indexes(node, computes):
    assert node.computes is computes


def test_says_when_a_gpu_told_nothing_but_launch_times():
    on_gpu = event("MatMul", [(4, 8)], [(4, 2)], provider="cuda")
    assert profile_of(on_gpu, event("Shape", [], [])).launch_times_only()
    assert not profile_of(*read_profile(MADE_UP), runs=3).launch_times_only()
    assert not profile_of(*read_profile(RECORDED), runs=2).launch_times_only()


# Multiply-adds


def test_counts_the_packed_tokens_of_a_recorded_profile_and_not_the_padding():
    profile = profile_of(*read_profile(RECORDED), runs=2)
    macs = {
        name: sum(event.macs for event in profile.events if event.layer == name and event.run == 0)
        for name in ("layers.0.attention", "layers.0.feed_forward", "other")
    }
    attention = TOKENS * 4 * MODEL * HEADS + BATCH * LENGTH * LENGTH * 2 * HEADS  # projections, then Q K^T and P V
    feed_forward = TOKENS * 2 * MODEL * NEURONS
    head = BATCH * (MODEL * MODEL + MODEL * 2)  # pooler and classifier, once a sequence
    assert macs == {"layers.0.attention": attention, "layers.0.feed_forward": feed_forward, "other": head}
    assert profile.macs == attention + feed_forward + head


ROWS, OUT = 5, 7


@pytest.mark.parametrize(
    ("node", "left", "right", "shape"),
    [
        pytest.param({"op_type": "MatMul"}, (ROWS, WIDTH), (WIDTH, OUT), (ROWS, OUT), id="matmul"),
        pytest.param({"op_type": "MatMul"}, (3, ROWS, WIDTH), (WIDTH, OUT), (3, ROWS, OUT), id="matmul-3d"),
        pytest.param({"op_type": "MatMul"}, (ROWS, WIDTH), (3, WIDTH, OUT), (3, ROWS, OUT), id="matmul-left-repeated"),
        pytest.param({"op_type": "MatMul"}, (WIDTH,), (WIDTH, OUT), (OUT,), id="matmul-vector-left"),
        pytest.param({"op_type": "MatMul"}, (3, OUT, WIDTH), (WIDTH,), (3, OUT), id="matmul-vector-right"),
        pytest.param(
            {"op_type": "Gemm", "transA": 1}, (WIDTH, ROWS), (WIDTH, OUT), (ROWS, OUT), id="gemm-left-transposed"
        ),
        pytest.param(
            {"op_type": "Gemm", "transB": 1}, (ROWS, WIDTH), (OUT, WIDTH), (ROWS, OUT), id="gemm-right-transposed"
        ),
        pytest.param(
            {"op_type": "FusedMatMul", "domain": "com.microsoft", "transA": 1},
            (3, WIDTH, ROWS),
            (3, WIDTH, OUT),
            (3, ROWS, OUT),
            id="fused-matmul-transposed",
        ),
    ],
)
@pytest.mark.parametrize("constant", [False, True], ids=["", "packed"])
def test_counts_matrix_products(node, left, right, shape, constant):
    weight = floats(*right)
    profile = run_once(
        [helper.make_node(inputs=["x", "w"], outputs=["y"], **node)],
        {"x": floats(*left)} | ({} if constant else {"w": weight}),
        [value("y", *shape)],
        [("w", weight)] if constant else [],
        domains=["com.microsoft"],
    )
    assert profile.macs == int(np.prod(shape)) * WIDTH
    assert profile.uncounted() == []


def int8(*shape):
    return RANDOM.integers(-127, 128, shape).astype(np.int8)


@pytest.mark.parametrize("operator", ["MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul"])
def test_counts_integer_products(operator):
    inputs, kind = {
        "MatMulInteger": (["q", "w", "z"], TensorProto.INT32),
        "MatMulIntegerToFloat": (["q", "w", "s", "scales", "z"], TensorProto.FLOAT),
        "DynamicQuantizeMatMul": (["x", "w", "scales"], TensorProto.FLOAT),
    }[operator]
    feeds = {"x": floats(ROWS, WIDTH), "q": np.full((ROWS, WIDTH), 3, np.uint8), "s": np.float32(0.1)}
    profile = run_once(
        [helper.make_node(operator, inputs, ["y"], domain="" if operator == "MatMulInteger" else "com.microsoft")],
        {name: np.asarray(array) for name, array in feeds.items() if name in inputs},
        [value("y", ROWS, OUT, kind=kind)],
        [("w", int8(WIDTH, OUT)), ("scales", np.full(OUT, 0.01, np.float32)), ("z", np.uint8(128))],
        domains=["com.microsoft"],
    )
    assert [(event.operator, event.macs) for event in profile.events] == [(operator, ROWS * WIDTH * OUT)]


QUERIES, KEYS, D, DV = 5, 6, 8, 4  # lengths, then the widths of one head


@pytest.mark.parametrize("shared", [1, 2], ids=["own-keys", "shared-keys"])
@pytest.mark.parametrize("flat", [True, False], ids=["3d", "4d"])
def test_counts_standard_attention(flat, shared):
    heads, key_heads = 4, 4 // shared

    def tensor(length, count, width):
        return floats(BATCH, length, count * width) if flat else floats(BATCH, count, length, width)

    feeds = {"q": tensor(QUERIES, heads, D), "k": tensor(KEYS, key_heads, D), "v": tensor(KEYS, key_heads, DV)}
    counts = {"q_num_heads": heads, "kv_num_heads": key_heads} if flat else {}
    shape = (BATCH, QUERIES, heads * DV) if flat else (BATCH, heads, QUERIES, DV)
    profile = run_once([helper.make_node("Attention", ["q", "k", "v"], ["y"], **counts)], feeds, [value("y", *shape)])
    assert profile.macs == BATCH * heads * QUERIES * KEYS * (D + DV)


def test_counts_fused_attention_whose_projections_are_somewhere_else():
    feeds = {"q": floats(BATCH, QUERIES, WIDTH), "k": floats(BATCH, KEYS, WIDTH), "v": floats(BATCH, KEYS, WIDTH)}
    node = helper.make_node("MultiHeadAttention", ["q", "k", "v", "b"], ["y"], domain="com.microsoft", num_heads=2)
    profile = run_once(
        [node], feeds, [value("y", BATCH, QUERIES, WIDTH)], [("b", floats(3 * WIDTH))], domains=["com.microsoft"]
    )
    assert profile.macs == BATCH * QUERIES * KEYS * 2 * WIDTH


@pytest.mark.parametrize("quantized", [False, True])
def test_counts_fused_attention_with_its_projections(quantized):
    heads_width = 8  # narrower than the input, as in a pruned model
    mask = np.array([QUERIES, QUERIES - 2], np.int32)
    if quantized:
        feeds = {"x": RANDOM.integers(0, 255, (BATCH, QUERIES, WIDTH)).astype(np.uint8), "m": mask}
        weight, inputs = int8(WIDTH, 3 * heads_width), ["x", "w", "b", "s", "s", "m", "z"]
    else:
        feeds = {"x": floats(BATCH, QUERIES, WIDTH), "m": mask}
        weight, inputs = floats(WIDTH, 3 * heads_width), ["x", "w", "b", "m"]
    node = helper.make_node(
        "QAttention" if quantized else "Attention", inputs, ["y"], domain="com.microsoft", num_heads=2
    )
    constants = [("w", weight), ("b", floats(3 * heads_width)), ("s", np.float32(0.1)), ("z", np.uint8(128))]
    profile = run_once([node], feeds, [value("y", BATCH, QUERIES, heads_width)], constants, domains=["com.microsoft"])
    projections = BATCH * QUERIES * WIDTH * 3 * heads_width
    assert profile.macs == projections + BATCH * QUERIES * QUERIES * 2 * heads_width


def test_counts_the_patch_embedding_of_an_image_model():
    side, patch, channels = 16, 4, 3
    node = helper.make_node("Conv", ["x", "w", "b"], ["y"], kernel_shape=[patch] * 2, strides=[patch] * 2)
    profile = run_once(
        [node],
        {"x": floats(BATCH, channels, side, side)},
        [value("y", BATCH, WIDTH, side // patch, side // patch)],
        [("w", floats(WIDTH, channels, patch, patch)), ("b", floats(WIDTH))],
    )
    assert profile.macs == BATCH * (side // patch) ** 2 * WIDTH * channels * patch**2


def test_an_operator_without_a_formula_is_named_and_makes_the_sum_unknown():
    product = helper.make_node("MatMul", ["x", "w"], ["h"])
    einsum = helper.make_node("Einsum", ["h", "u"], ["y"], equation="ij,jk->ik", name="mixed")
    profile = run_once(
        [product, einsum],
        {"x": floats(ROWS, WIDTH)},
        [value("y", ROWS, 3)],
        [("w", floats(WIDTH, OUT)), ("u", floats(OUT, 3))],
    )
    assert profile.macs is None
    assert profile.uncounted() == ["mixed (Einsum)"]
    assert {row["name"]: row["macs"] for row in profile.by_operator()} == {"MatMul": ROWS * WIDTH * OUT, "Einsum": None}


@pytest.mark.parametrize(
    "node",
    [
        event("TRTKernel_graph_main_17_0_0", [(2, 16)], [(2, 2)]),
        event("GroupQueryAttention", [(2, 5, 16)] * 3, [(2, 5, 16)]),
        event("MultiHeadAttention", [(2, 5, 4, 3, 8)], [(2, 5, 32)]),  # queries, keys and values packed in one
        event("MatMul", [], []),  # a profile without shapes, as older versions of ONNX Runtime write
        event("Attention", [], []),
        event("Conv", [(2, 3, 16, 16), (8,)], [(2, 8, 4, 4)]),  # weights packed away
    ],
    ids=lambda node: node.operator,
)
def test_what_cannot_be_counted_is_unknown_and_not_zero(node):
    assert node.macs is None


# Sessions


def test_counts_the_runs_behind_the_warm_up_only(tmp_path):
    path = save(dense_layer(), tmp_path / "model.onnx")
    cases = {"small": [{"x": floats(2, WIDTH)}], "mixed": [{"x": floats(3, WIDTH)}, {"x": floats(9, WIDTH)}]}
    profiles = profile_session(path, cases, runs=4, warm_up=3, threads=1)
    assert {name: profile.runs for name, profile in profiles.items()} == {"small": 4, "mixed": 8}
    small, mixed = profiles["small"], profiles["mixed"]
    assert [(event.run, event.operator) for event in small.events] == [
        (run, operator) for run in range(4) for operator in ("Gemm", "Gelu")
    ]
    assert {event.outputs[0][1] for event in small.events} == {(2, WIDTH)}
    assert [event.outputs[0][1][0] for event in mixed.events if event.operator == "Gemm"] == [3, 9] * 4
    assert small.macs == 2 * WIDTH * WIDTH
    assert mixed.macs == 6 * WIDTH * WIDTH  # the mean of 3 and 9 rows
    assert small.total_ms > 0
    assert small.placement() == {"cpu": 2}


def test_gives_the_graph_the_inputs_it_declares_in_their_types():
    feeds = {"x": np.ones((2, WIDTH), np.float64), "input_ids": np.ones((2, 3), np.int64)}
    profiles = profile_session(dense_layer().SerializeToString(), {"case": [feeds]}, runs=1, threads=1)
    assert profiles["case"].events[0].inputs[0] == ("float", (2, WIDTH))


def test_leaves_no_file_behind(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    profile_session(dense_layer().SerializeToString(), {"case": [{"x": floats(2, WIDTH)}]}, runs=1, threads=1)
    assert list(tmp_path.iterdir()) == []
