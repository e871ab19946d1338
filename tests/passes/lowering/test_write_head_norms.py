from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx_ir.passes.common import ShapeInferencePass

from compactor.passes.graph.matching import CANONICAL
from compactor.passes.lowering.decompose_attention import DecomposeAttentionPass
from compactor.passes.lowering.lower_opset import LowerOpsetPass
from compactor.passes.lowering.pack_tokens import PackTokensPass
from compactor.passes.lowering.write_head_norms import WriteHeadNormsPass
from tests.models import Architecture, build, random_weights
from tests.passes.strategies import PROPERTY, architectures
from tests.running import (
    PADDINGS,
    assert_rewrites_once,
    assert_same,
    assert_untouched,
    operators,
    padding_mask,
    random_feeds,
    run32,
    run64,
)

ARCH = Architecture(head_norm="rms", layers=2, front="ids")
STANDARD = {"rms": "RMSNormalization", "layer": "LayerNormalization"}


def of_heads(model, head_norm):
    """The standard norms of (N, H, d)."""
    heads = [node for node in model.graph if node.op_type == STANDARD[head_norm]]
    return [node for node in heads if node.inputs[0].producer().op_type == "Reshape"]


@pytest.mark.parametrize("rotary", ["", "half"])
@pytest.mark.parametrize("kv_heads", [0, 2])
@pytest.mark.parametrize("head_norm", ["rms", "layer"])
def test_norms_of_heads_are_standard_ones_between_reshapes(head_norm, kv_heads, rotary):
    model = build(dataclasses.replace(ARCH, head_norm=head_norm, kv_heads=kv_heads, rotary=rotary))
    feeds = random_feeds(model, padding_mask("holes"))
    before = run64(model, feeds)

    assert_rewrites_once(WriteHeadNormsPass(), model, written_head_norm=4)

    nodes = of_heads(model, head_norm)
    assert [node.inputs[0].producer().inputs[1].const_value.numpy().tolist() for node in nodes] == [
        *([-1, 4, 4], [-1, kv_heads or 4, 4]) * 2
    ]
    assert all(node.attributes["epsilon"].value == 2.0**-20 for node in nodes)
    assert CANONICAL not in model.graph.opset_imports
    assert not any(node.domain for node in model.graph)
    assert_same(run64(model, feeds), before)


def test_a_norm_without_a_shift_has_none():
    weights = random_weights(dataclasses.replace(ARCH, head_norm="layer", layers=1))
    del weights["0.key_norm.shift"]
    model = build(dataclasses.replace(ARCH, head_norm="layer", layers=1), weights)
    feeds = random_feeds(model)
    before = run64(model, feeds)
    WriteHeadNormsPass()(model)
    assert [len(node.inputs) for node in of_heads(model, "layer")] == [3, 2]
    assert_same(run64(model, feeds), before)


@pytest.mark.parametrize("optimize", [False, True])
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("opset", [23, 20])
@pytest.mark.parametrize("head_norm", ["rms", "layer"])
def test_onnx_runtime_agrees(head_norm, opset, padding, optimize):
    model = build(dataclasses.replace(ARCH, head_norm=head_norm, dtype=np.float32))
    feeds = random_feeds(model, padding_mask(padding))
    expected = run64(model, feeds)
    WriteHeadNormsPass()(model)
    if opset < 23:
        ShapeInferencePass()(model)
        DecomposeAttentionPass()(model)
        LowerOpsetPass(opset=opset)(model)
        assert "RMSNormalization" not in operators(model)
    assert_same(run32(model, feeds, optimize=optimize), expected, tolerance=2e-5)


@pytest.mark.parametrize("optimize", [False, True])
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("head_norm", ["rms", "layer"])
def test_packed_rows_are_normalised_like_padded_ones(head_norm, padding, optimize):
    arch = dataclasses.replace(ARCH, head_norm=head_norm, head="classifier", dtype=np.float32)
    model = build(arch)
    feeds = random_feeds(model, padding_mask(padding))
    expected = run64(model, feeds)
    packed = PackTokensPass()(model)
    assert packed.modified, packed.refused
    norms = [node for node in model.graph if node.domain == CANONICAL]
    assert [node.inputs[0].producer().op_type for node in norms] == ["Add"] * 4, "padding comes back behind them"
    operands = [value.producer() for node in model.graph if node.op_type == "Attention" for value in node.inputs[:2]]
    assert not set(norms) & set(operands)
    assert_same(run64(model, feeds), expected, tolerance=2e-5)
    WriteHeadNormsPass()(model)
    assert len(of_heads(model, head_norm)) == 4
    assert_same(run32(model, feeds, optimize=optimize), expected, tolerance=2e-5)


def test_heads_that_are_not_normalised_are_no_news():
    assert_untouched(WriteHeadNormsPass(), build(Architecture(rms=True)))


@PROPERTY
@given(
    architectures(front="ids", norm="pre"),
    st.sampled_from(["rms", "layer"]),
    st.integers(0, 2),
    st.booleans(),
    st.integers(0, 9),
    st.sampled_from(PADDINGS),
)
def test_keeps_the_output_of_any_model(arch, head_norm, kv_heads, rms, seed, padding):
    heads = arch.heads * max(kv_heads, 1)
    arch = dataclasses.replace(arch, head_norm=head_norm, heads=heads, kv_heads=kv_heads, rms=rms)
    model = build(arch, random_weights(arch, seed))
    feeds = random_feeds(model, padding_mask(padding, seed=seed), seed)
    before = run64(model, feeds)
    assert_rewrites_once(WriteHeadNormsPass(), model, written_head_norm=2 * arch.layers)
    assert_same(run64(model, feeds), before)
