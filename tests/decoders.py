"""Small decoders in the canonical form, without a cache: what ``attach-caches`` takes, and what its graphs must equal.

Weights are those of ``models.random_weights``, and for cross-attention the same under ``"0.cross.query"``, so that what
plants structure into a layer ``0`` plants it into ``"0.cross"`` too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass, ShapeInferencePass

from compactor.passes.caching.attach_caches import AttachCachesPass, Step
from tests.builder import Builder
from tests.models import VOCAB, Architecture, Weights, _Transformer, random_weights

Arrays = dict[str, np.ndarray]
Run = Callable[[ir.Model, Mapping[str, np.ndarray]], Arrays]

POSITIONS = 12
HIDDEN = -1e9


def decoder_weights(arch: Architecture, seed: int = 0) -> Weights:
    """Dense weights whose biases are never zero."""
    weights = random_weights(arch, seed)
    other = random_weights(arch, seed + 100)
    for i in range(arch.layers):
        for name in ("query", "key", "value", "output"):
            weights[f"{i}.cross.{name}"] = other[f"{i}.{name}"]
            weights[f"{i}.cross.{name}.bias"] = other[f"{i}.{name}.bias"]
        for part in ("scale", "shift"):
            weights[f"{i}.cross_norm.{part}"] = other[f"{i}.attention_norm.{part}"]
    random = np.random.default_rng(seed)
    weights["embedding"] = random.standard_normal((VOCAB, arch.width)).astype(arch.dtype)
    weights["positions"] = random.standard_normal((POSITIONS, arch.width)).astype(arch.dtype)
    weights["head.bias"] = random.uniform(0.1, 1, VOCAB).astype(arch.dtype)
    return weights


def build_decoder(
    arch: Architecture, weights: Weights | None = None, *, self_mask: str = "causal", cross_mask: str = "additive"
) -> ir.Model:
    """Write the graph: ``input_ids``, ``encoder_hidden_states``, ``encoder_attention_mask``, ``past_length``,
    ``causal_mask`` -> ``logits``.

    Args:
        arch: What its layers look like; ``mask``, ``front`` and ``head`` mean nothing here.
        weights: From ``decoder_weights``, zeros planted.
        self_mask: ``causal``, or ``biased``: a position bias is added to it.
        cross_mask: ``plain``, ``additive``, ``none``, or ``soft``: padding is only disliked.
    """
    weights = decoder_weights(arch) if weights is None else weights
    real = ir.DataType.DOUBLE if arch.dtype is np.float64 else ir.DataType.FLOAT
    values = [
        ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
        for name, dtype, shape in (
            ("input_ids", ir.DataType.INT64, ["batch", "length"]),
            ("encoder_hidden_states", real, ["batch", "keys", arch.width]),
            ("encoder_attention_mask", ir.DataType.INT64, ["batch", "keys"]),
            ("past_length", ir.DataType.INT64, []),
            ("causal_mask", real, [1, 1, "length", "length"]),
        )
    ]
    builder = Builder(values, arch.dtype)
    _Decoder(builder, arch, weights, {str(v.name): v for v in values}, frozenset()).write_steps(self_mask, cross_mask)
    model = ir.Model(builder.graph, ir_version=11)
    RemoveUnusedNodesPass()(model)
    ShapeInferencePass()(model)
    return model


class _Decoder(_Transformer):
    def write_steps(self, self_mask: str, cross_mask: str) -> None:
        b, arch, inputs = self.b, self.arch, self.inputs
        length = b.node("Squeeze", b.node("Shape", inputs["causal_mask"], start=2, end=3))
        places = b.node("Range", b.constant(0), length, b.constant(1))
        places = b.node("Add", places, inputs["past_length"])
        tokens = b.node("Gather", self.weight("embedding"), inputs["input_ids"], axis=0)
        x = b.node("Add", tokens, b.node("Gather", self.weight("positions"), places, axis=0), name="embedded")
        x = self.norm("first", x)
        own = inputs["causal_mask"]
        if self_mask == "biased":
            own = b.node("Add", own, b.number(0.5))
        other = self.cross_mask(cross_mask)
        states = inputs["encoder_hidden_states"]
        for i in range(arch.layers):
            x = self.residual(x, f"{i}.attention_norm", lambda y, i=i: self.attention(i, y, own), f"{i}.residual")
            x = self.residual(
                x,
                f"{i}.cross_norm",
                lambda y, i=i: self.attention(f"{i}.cross", y, other, states),
                f"{i}.cross.residual",
            )
            x = self.residual(
                x, f"{i}.feed_forward_norm", lambda y, i=i: self.feed_forward(i, y), f"{i}.second_residual"
            )
        head = b.constant(np.ascontiguousarray(self.weights["embedding"].T), "w.head")
        b.graph.outputs.append(b.node("Add", b.node("MatMul", x, head), self.weight("head.bias"), name="logits"))

    def cross_mask(self, kind: str) -> ir.Value | None:
        b, real = self.b, self.inputs["encoder_attention_mask"]
        if kind == "none":
            return None
        queries = b.node("Shape", self.inputs["input_ids"], start=1, end=2)
        target = b.node("Concat", b.constant([1]), b.constant([1]), queries, b.constant([1]), axis=0)
        if kind == "plain":
            visible = b.node("Cast", real, to=ir.DataType.BOOL.value)
            return b.node("Expand", b.node("Unsqueeze", visible, b.constant([1, 2])), target)
        keys = b.node("Unsqueeze", real, b.constant([1, 2]))
        to = ir.DataType.DOUBLE.value if b.dtype is np.float64 else ir.DataType.FLOAT.value
        missing = b.node("Sub", b.number(1), b.node("Cast", keys, to=to))
        return b.node("Expand", b.node("Mul", missing, b.number(HIDDEN if kind == "additive" else -1.0)), target)


def two_steps(model: ir.Model, *, explicit: bool = False) -> tuple[ir.Model, ir.Model]:
    """The graphs of the first step and of every next one."""
    made = []
    for step in Step.__args__:
        graph = model.clone()
        result = AttachCachesPass(step=step, explicit=explicit)(graph)
        assert result.modified and not result.refused, result.refused
        made.append(graph)
    return made[0], made[1]


def texts(arch: Architecture, *, rows: int, sequences: int, seed: int = 0) -> Arrays:
    """Tokens (R, 6) to decode, and encoded sequences (G, 5, D), of which all but the first are padded."""
    random = np.random.default_rng(seed)
    mask = np.arange(5) < random.integers(1, 6, sequences)[:, None]
    mask[0] = True
    return {
        "tokens": random.integers(0, VOCAB, (rows, 6)),
        "states": random.standard_normal((sequences, 5, arch.width)).astype(arch.dtype),
        "mask": mask.astype(np.int64),
    }


def run_at_once(model: ir.Model, text: Arrays, run: Run) -> np.ndarray:
    """Logits (R, S, V) of the graph without a cache; sequences are repeated for their rows."""
    tokens, share = text["tokens"], len(text["tokens"]) // len(text["mask"])
    length = tokens.shape[1]
    triangle = np.where(np.tri(length, dtype=bool), 0, HIDDEN).astype(text["states"].dtype)[None, None]
    feeds: dict[str, Any] = {
        "input_ids": tokens,
        "encoder_hidden_states": text["states"].repeat(share, axis=0),
        "encoder_attention_mask": text["mask"].repeat(share, axis=0),
        "past_length": np.array(0),
        "causal_mask": triangle,
    }
    return run(model, feeds)["logits"]


def run_in_steps(first: ir.Model, following: ir.Model, text: Arrays, run: Run, *, prompt: int = 2) -> np.ndarray:
    """The same by the two graphs: ``prompt`` tokens at once, then one by one."""
    tokens, mask = text["tokens"], text["mask"]
    feeds = {
        "input_ids": tokens[:, :prompt],
        "encoder_hidden_states": text["states"],
        "encoder_attention_mask": mask,
    }
    outputs = run(first, feeds)
    logits = [outputs.pop("logits")]
    caches = {name.replace("present", "past_key_values"): array for name, array in outputs.items()}
    for place in range(prompt, tokens.shape[1]):
        outputs = run(following, {"input_ids": tokens[:, place : place + 1], "encoder_attention_mask": mask, **caches})
        logits.append(outputs.pop("logits"))
        assert not any(".encoder." in name for name in outputs), "keys and values of the encoder come out once"
        caches |= {name.replace("present", "past_key_values"): array for name, array in outputs.items()}
    return np.concatenate(logits, axis=1)
