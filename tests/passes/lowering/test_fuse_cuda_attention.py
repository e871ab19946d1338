from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from onnx_ir.passes.common import ShapeInferencePass

from compactor.passes.lowering.align_widths import AlignWidthsPass
from compactor.passes.lowering.fuse_cuda_attention import FuseCudaAttentionPass
from tests.decoders import build_decoder, run_at_once, run_in_steps, texts, two_steps
from tests.models import Architecture, build
from tests.passes.caching.test_attach_caches import ARCH as DECODER
from tests.passes.caching.test_attach_caches import compact, pruned_weights
from tests.passes.strategies import PROPERTY, architectures
from tests.planting import attention_node
from tests.running import (
    PADDINGS,
    assert_rewrites_once,
    assert_same,
    assert_untouched,
    operators,
    padding_mask,
    random_feeds,
    run32,
)

ARCH = Architecture(layers=2, heads=2, qk=3, v=5, dtype=np.float32)


def fused_node(model):
    return next(node for node in model.graph if node.op_type == "MultiHeadAttention")


@pytest.mark.parametrize("mask", ["none", "plain", "additive", "gathered", "bias", "bias_only", "given"])
def test_fuses_and_keeps_the_output(mask):
    model = build(Architecture(layers=2, heads=2, qk=3, v=5, dtype=np.float32, mask=mask))
    feeds = random_feeds(model, padding_mask("holes"))
    before = run32(model, feeds)

    assert_rewrites_once(FuseCudaAttentionPass(), model, fused_attention=2)

    assert operators(model)["MultiHeadAttention"] == 2 and "Attention" not in operators(model)
    assert model.graph.opset_imports["com.microsoft"] == 1
    node = fused_node(model)
    assert node.attributes["num_heads"].value == 2
    assert node.attributes["scale"].value == pytest.approx(3**-0.5)
    assert_same(run32(model, feeds), before, 1e-5)
    assert_same(run32(model, feeds, optimize=True), before, 1e-5)


@pytest.mark.parametrize("padding", PADDINGS)
def test_a_bool_mask_becomes_one_additive_bias_with_all_its_axes(padding):
    model = build(ARCH)
    feeds = random_feeds(model, padding_mask(padding))
    before = run32(model, feeds)

    assert_rewrites_once(FuseCudaAttentionPass(), model, fused_attention=2)

    assert operators(model)["Where"] == 1
    node = fused_node(model)
    assert [node.inputs[i] for i in (3, 4)] == [None, None]  # no projection bias, no key_padding_mask
    assert [str(size) for size in node.inputs[5].shape] == ["batch", "1", "sequence", "sequence"]
    assert_same(run32(model, feeds), before, 1e-5)


def test_an_attention_without_a_mask_gets_none():
    model = build(Architecture(dtype=np.float32, mask="none"))
    FuseCudaAttentionPass()(model)
    assert len(fused_node(model).inputs) == 3


def test_a_causal_attention_stays_causal():
    model = build(Architecture(dtype=np.float32, mask="none"))
    attention_node(model).attributes["is_causal"] = ir.AttrInt64("is_causal", 1)
    feeds = random_feeds(model)
    before = run32(model, feeds)
    assert_rewrites_once(FuseCudaAttentionPass(), model, fused_attention=1)
    assert_same(run32(model, feeds), before, 1e-5)


def _set(name, value):
    return lambda node: node.attributes.__setitem__(name, ir.convenience.convert_attribute(name, value))


def _mask_shape(*shape):
    return lambda node: setattr(node.inputs[3], "shape", ir.Shape(shape))


def _expose_logits(node):
    node.resize_outputs(4)
    for value, name in zip(node.outputs[1:], ("", "", "logits"), strict=True):
        value.name, value.type = name, ir.TensorType(ir.DataType.FLOAT)
    node.graph.outputs.append(node.outputs[3])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_set("kv_num_heads", 2), "share key/value heads"),
        (_set("softcap", 3.0), "soft cap"),
        (lambda node: node.attributes.pop("scale"), "pinned scale"),
        (_expose_logits, "exposes its logits"),
        (_mask_shape("sequence", "sequence"), "spelled out"),
        (_mask_shape("batch", 1, 1, "sequence"), "spelled out"),
        (_mask_shape("batch", 2, "sequence", "sequence"), "2 values on its head axis"),
    ],
)
def test_leaves_an_attention_alone_and_says_why(change, reason):
    model = build(Architecture(dtype=np.float32))
    change(attention_node(model))
    assert_untouched(FuseCudaAttentionPass(), model, reason)


def test_a_4d_attention_is_left_alone():
    assert_untouched(FuseCudaAttentionPass(), build(Architecture(form="4d", dtype=np.float32)), "3-D form")


@PROPERTY
@given(architectures(form="3d", dtype=np.float32))
def test_any_attention_keeps_its_output(arch):
    model = build(arch)
    feeds = random_feeds(model, padding_mask("left"))
    before = run32(model, feeds) if arch.mask != "scaled" else None  # ONNX Runtime's Attention refuses (B, 1, 1, S)
    result = FuseCudaAttentionPass()(model)
    if before is None:
        assert result.refused and not result.modified
    else:
        assert_same(run32(model, feeds), before, 1e-4)


# A decoder's caches


def fused_decoder(arch):
    """The cache-free graph of a pruned decoder, and its two steps with every attention fused."""
    weights = pruned_weights(arch)
    model = compact(arch, weights)
    AlignWidthsPass(same=True)(model)
    ShapeInferencePass()(model)
    steps = two_steps(model)
    for graph in steps:
        left = operators(graph)["Attention"]
        ShapeInferencePass()(graph)
        assert not FuseCudaAttentionPass()(graph).refused
        assert operators(graph)["MultiHeadAttention"] == left and "Attention" not in operators(graph)
    return build_decoder(arch, weights), steps


@pytest.mark.parametrize("share", [1, 3])
@pytest.mark.parametrize("optimize", [False, True])
def test_a_decoder_keeps_its_caches_and_its_logits(share, optimize):
    arch = dataclasses.replace(DECODER, dtype=np.float32)
    model, steps = fused_decoder(arch)
    text = texts(arch, rows=2 * share, sequences=2)
    found = run_in_steps(*steps, text, lambda graph, feeds: run32(graph, feeds, optimize=optimize))
    np.testing.assert_allclose(found, run_at_once(model, text, run32), rtol=1e-4, atol=1e-4)


def test_cached_keys_go_into_the_operator_as_they_are():
    _, (first, following) = fused_decoder(dataclasses.replace(DECODER, dtype=np.float32))
    fused = [node for node in following.graph if node.op_type == "MultiHeadAttention"]
    for node in fused:
        cached = [value.name for value in node.inputs if value is not None and value.is_graph_input()]
        assert len(cached) == 2 and cached[0].endswith(".key") and cached[1].endswith(".value")
    assert sum(len(node.outputs) == 3 for node in fused) == sum(
        ".decoder.key" in str(v.name) for v in first.graph.outputs
    )


def test_caches_of_different_widths_are_left_alone():
    arch = dataclasses.replace(DECODER, dtype=np.float32)
    _, following = two_steps(compact(arch, pruned_weights(arch)))
    ShapeInferencePass()(following)
    refused = FuseCudaAttentionPass()(following).refused
    assert refused and all("not equally wide" in refusal.reason for refusal in refused)


@pytest.mark.parametrize("padding", PADDINGS)
def test_a_query_that_sees_no_key_keeps_its_zeros(padding):
    model = build(Architecture(mask="window", dtype=np.float32, layers=2))
    feeds = random_feeds(model, padding_mask(padding, length=9))
    before = run32(model, feeds)
    assert FuseCudaAttentionPass()(model).modified
    assert operators(model)["ReduceMax"] == 1  # found once for all layers
    assert_same(run32(model, feeds), before, tolerance=1e-5)
