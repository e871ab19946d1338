"""Plant dead structure into weights, and attention blocks that no pass may touch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import onnx_ir as ir

from tests.models import Architecture, Weights, build, random_weights


def columns(size: int, heads: int | Iterable[int], channels: Iterable[int] | None = None) -> list[int]:
    """The columns of ``heads`` (of some of their ``channels``) in a matrix whose heads are ``size`` wide."""
    heads = [heads] if isinstance(heads, int) else heads
    return [head * size + c for head in heads for c in (range(size) if channels is None else channels)]


def kill_values(
    weights: Weights, arch: Architecture, layer: int, heads: int | Iterable[int], how: str = "value"
) -> None:
    """Dead heads: no column of Wv (``how="value"``) or no row of Wo (``"output"``)."""
    index = columns(arch.v, heads)
    if how == "value":
        weights[f"{layer}.value"][:, index] = 0
    else:
        weights[f"{layer}.output"][index] = 0


def make_uniform(
    weights: Weights, arch: Architecture, layer: int, heads: int | Iterable[int], how: str = "key"
) -> None:
    """Heads that average V: no column of Wk (``how="key"``), or none of Wq and no query bias (``"query"``)."""
    index = columns(arch.qk, heads)
    weights[f"{layer}.{how}"][:, index] = 0
    if how == "query":
        weights[f"{layer}.query.bias"][index] = 0


def empty_feed_forward(weights: Weights, layer: int) -> None:
    """No neuron reads anything."""
    weights[f"{layer}.up"][:] = 0
    if f"{layer}.gate" in weights:
        weights[f"{layer}.gate"][:] = 0


def dead_head_model(**knobs: object) -> ir.Model:
    """One layer whose head 1 is dead and whose channel 0 is dead in Q.K and V of every head."""
    options = {name: knobs.pop(name) for name in ("outputs", "inputs") if name in knobs}
    arch = dataclasses.replace(Architecture(), **knobs)
    weights = random_weights(arch)
    kill_values(weights, arch, 0, 1)
    weights["0.value"][:, columns(arch.v, range(arch.heads), [0])] = 0
    weights["0.query"][:, columns(arch.qk, range(arch.heads), [0])] = 0
    weights["0.query.bias"][columns(arch.qk, range(arch.heads), [0])] = 0
    return build(arch, weights, **options)


def attention_node(model: ir.Model) -> ir.Node:
    """The first Attention of the graph."""
    return next(node for node in model.graph if node.op_type == "Attention")


def _changed(change: Callable[[ir.Model, ir.Node], None], **knobs: object) -> Callable[[], ir.Model]:
    def make() -> ir.Model:
        model = dead_head_model(**knobs)
        change(model, attention_node(model))
        return model

    return make


def _drop(name: str) -> Callable[[ir.Model, ir.Node], None]:
    return lambda model, node: node.attributes.pop(name)


def _share_kv(model: ir.Model, node: ir.Node) -> None:
    node.attributes["kv_num_heads"] = ir.AttrInt64("kv_num_heads", 2)


def _soft_cap(model: ir.Model, node: ir.Node) -> None:
    node.attributes["softcap"] = ir.AttrFloat32("softcap", 5.0)


def _add_output(model: ir.Model, node: ir.Node) -> None:
    node.resize_outputs(4)
    for value, name in zip(node.outputs[1:], ("present_key", "present_value", "logits"), strict=True):
        value.name, value.type = name, ir.TensorType(ir.DataType.DOUBLE)
    model.graph.outputs.append(node.outputs[3])


def _forget_mask_shape(model: ir.Model, node: ir.Node) -> None:
    node.inputs[3].shape = None


def _symbolic_head_axis(model: ir.Model, node: ir.Node) -> None:
    node.inputs[3].shape = ir.Shape(["batch", "heads", "sequence", "sequence"])


def _stack_weight(model: ir.Model, node: ir.Node) -> None:
    weight = node.inputs[0].producer().inputs[0].producer().inputs[1]
    weight.const_value = ir.tensor(weight.const_value.numpy()[None], name=weight.name)
    weight.shape = ir.Shape(weight.const_value.shape)


UNMATCHED: Mapping[str, tuple[Callable[[], ir.Model], str]] = {
    "four-dimensional": (lambda: dead_head_model(form="4d"), "not in the 3-D form"),
    "of-unequal-widths": (_changed(_share_kv), "4 query heads of 4 channels, 2 key heads of 8"),
    "no-scale": (_changed(_drop("scale")), "the scale is not pinned"),
    "soft-cap": (_changed(_soft_cap), "soft cap"),
    "logits-read": (_changed(_add_output), "exposes its logits"),
    **{
        f"{role}-is-input": (lambda role=role: dead_head_model(inputs=[f"0.{role}"]), f"{role} projection: the weight")
        for role in ("query", "key", "value", "output")
    },
    "query-bias-is-input": (lambda: dead_head_model(inputs=["0.query.bias"]), "query projection: the Add before it"),
    **{
        f"{role}-is-output": (lambda role=role: dead_head_model(outputs=[f"0.{role}"]), f"'0.{role}' is used outside")
        for role in ("query", "key", "value", "attention")
    },
    "weight-with-three-axes": (_changed(_stack_weight), "not a constant matrix"),
    "mask-of-unknown-shape": (_changed(_forget_mask_shape), "the shape of the attention mask is not known"),
    "mask-of-unknown-heads": (_changed(_symbolic_head_axis), "on its head axis for 4 heads"),
}
"""Attention blocks with dead structure that no pass may touch, each with the reason it must give."""


def as_float32(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Floating-point arrays in float32, the others as they are."""
    return {k: v.astype(np.float32) if v.dtype == np.float64 else v for k, v in arrays.items()}


def read_elsewhere(model: ir.Model, name: str) -> ir.Model:
    """Let another node read the value ``name``, and a new output read that."""
    value = next(value for node in model.graph for value in node.outputs if value.name == name)
    reader = ir.Node("", "Identity", [value], name=f"{name}.reader")
    reader.outputs[0].name, reader.outputs[0].type, reader.outputs[0].shape = f"{name}.copy", value.type, value.shape
    model.graph.append(reader)
    model.graph.outputs.append(reader.outputs[0])
    return model
