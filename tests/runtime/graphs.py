"""Tiny ONNX graphs for the tests of ``compactor.runtime``."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

WIDTH = 16
VOCAB = 11


def save(model: onnx.ModelProto, path) -> str:
    onnx.save(model, path)
    return str(path)


def make_model(nodes, inputs, outputs, initializers=(), functions=(), domains=()) -> onnx.ModelProto:
    imports = [helper.make_opsetid("", 23), *(helper.make_opsetid(domain, 1) for domain in domains)]
    tensors = [numpy_helper.from_array(array, name) for name, array in initializers]
    graph = helper.make_graph(nodes, "graph", inputs, outputs, tensors)
    return helper.make_model(graph, opset_imports=imports, ir_version=11, functions=functions)


def dense_layer() -> onnx.ModelProto:
    """Gelu(x W + b), and a node that does nothing; ONNX Runtime runs it as two nodes."""
    random = np.random.default_rng(0)
    return make_model(
        [
            helper.make_node("MatMul", ["x", "weight"], ["product"]),
            helper.make_node("Add", ["product", "bias"], ["sum"]),
            helper.make_node("Gelu", ["sum"], ["active"]),
            helper.make_node("Identity", ["active"], ["y"]),
        ],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", WIDTH])],
        [
            ("weight", random.standard_normal((WIDTH, WIDTH), np.float32)),
            ("bias", random.standard_normal(WIDTH, np.float32)),
        ],
    )


def embedding(*, scale: float = 1.0, inputs=("input_ids", "attention_mask")) -> onnx.ModelProto:
    """Embeds tokens and mixes them by masked attention, so that hidden positions matter if the mask is wrong."""
    random = np.random.default_rng(1)
    table = random.standard_normal((VOCAB, WIDTH), np.float32) * np.float32(scale)
    return make_model(
        [
            helper.make_node("Gather", ["table", "input_ids"], ["tokens"]),
            helper.make_node("Cast", ["attention_mask"], ["real"], to=TensorProto.BOOL),
            helper.make_node("Unsqueeze", ["real", "axes"], ["keys"]),
            helper.make_node("Shape", ["input_ids"], ["shape"]),
            helper.make_node("Slice", ["shape", "one", "two"], ["length"]),
            helper.make_node("Concat", ["one", "one", "length", "one"], ["square"], axis=0),
            helper.make_node("Expand", ["keys", "square"], ["mask"]),
            helper.make_node(
                "Attention",
                ["tokens", "tokens", "tokens", "mask"],
                ["last_hidden_state"],
                q_num_heads=2,
                kv_num_heads=2,
                scale=0.25,
            ),
        ],
        [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"]) for name in inputs],
        [helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, ["batch", "sequence", WIDTH])],
        [
            ("table", table),
            ("axes", np.array([1, 2])),
            ("one", np.array([1])),
            ("two", np.array([2])),
        ],
    )
