from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compactor.passes.canonical.simplify_masks import SimplifyMasksPass
from tests.decoders import build_decoder, run_at_once, texts
from tests.models import Architecture, build, random_weights
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
    run64,
)

PADDING_SPELLINGS = ("additive", "scaled", "gathered", "gathered_additive")


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("form", ["3d", "4d"])
@pytest.mark.parametrize("mask", PADDING_SPELLINGS)
def test_every_spelling_of_padding_becomes_the_plain_one(mask, form, padding):
    model = build(Architecture(mask=mask, form=form, layers=2))
    feeds = random_feeds(model, padding_mask(padding))
    before = run64(model, feeds)

    assert_rewrites_once(SimplifyMasksPass(), model, padding_mask=2)

    counts = operators(model)
    assert counts["Expand"] == counts["Cast"] == counts["Unsqueeze"] == 1
    assert not {"Where", "GatherND", "And", "Sub", "Mul"} & counts.keys()
    masks = {node.inputs[3] for node in model.graph if node.op_type == "Attention"}
    assert [tuple(map(str, mask.shape)) for mask in masks] == [("batch", "1", "sequence", "sequence")]
    assert_same(run64(model, feeds), before)


@pytest.mark.parametrize("mask", ["additive", "scaled", "gathered"])
def test_onnx_runtime_runs_the_plain_form(mask):
    """It refuses a mask of (B, 1, 1, S), which the "scaled" spelling is."""
    model = build(Architecture(mask=mask, dtype=np.float32))
    assert_rewrites_once(SimplifyMasksPass(), model, padding_mask=1)
    feeds = random_feeds(model, padding_mask("holes"))
    assert_same(run32(model, feeds), run64(model, feeds), tolerance=1e-5)


@pytest.mark.parametrize("form", ["3d", "4d"])
def test_drops_a_mask_that_hides_nothing(form):
    model = build(Architecture(mask="visible", form=form))
    feeds = random_feeds(model, padding_mask("holes"))
    before = run64(model, feeds)
    assert_rewrites_once(SimplifyMasksPass(), model, visible_mask=1)
    assert len(attention_node(model).inputs) == 3
    assert_same(run64(model, feeds), before)


@pytest.mark.parametrize("mask", ["none", "plain", "causal", "bias", "bias_only", "given", "soft", "inverted"])
def test_leaves_any_other_mask_alone(mask):
    assert_untouched(SimplifyMasksPass(), build(Architecture(mask=mask)))


@pytest.mark.parametrize("mask", ["additive", "bias"])
def test_a_mask_per_batch_of_unknown_rank_is_left_alone(mask):
    model = build(Architecture(mask=mask))
    value = next(v for v in model.graph.inputs if v.name == "attention_mask")
    value.shape = None
    assert_untouched(SimplifyMasksPass(), model)


def test_an_input_of_another_name_is_not_the_padding_mask():
    model = build(Architecture(mask="additive"))
    next(v for v in model.graph.inputs if v.name == "attention_mask").name = "global_attention_mask"
    assert_untouched(SimplifyMasksPass(), model)


@PROPERTY
@given(architectures(), st.sampled_from(PADDING_SPELLINGS), st.integers(0, 9), st.sampled_from(PADDINGS))
def test_keeps_the_output_of_any_model(arch, mask, seed, padding):
    model = build(dataclasses.replace(arch, mask=mask), random_weights(arch, seed))
    feeds = random_feeds(model, padding_mask(padding, seed=seed), seed)
    before = run64(model, feeds)
    assert_rewrites_once(SimplifyMasksPass(), model, padding_mask=arch.layers)
    assert_same(run64(model, feeds), before)


# The lowest float: ONNX Runtime gives zeros where it hides every key from a query, and PyTorch weighs all alike


@pytest.mark.filterwarnings("ignore:overflow encountered in add")
@pytest.mark.parametrize("form", ["3d", "4d"])
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("mask", ["window_lowest", "window_scaled", "window_expanded", "window_added"])
def test_where_the_lowest_float_hides_every_key_all_are_weighed_alike(mask, padding, form):
    """transformers 4's ModernBERT: a padded query far from all real tokens sees nothing."""
    model = build(Architecture(mask=mask, form=form, layers=2, dtype=np.float32))
    feeds = random_feeds(model, padding_mask(padding, length=9))
    expected = run64(model, feeds)
    if padding == "left":  # the reason for the pass
        [name] = expected
        assert np.abs(run32(model, feeds)[name] - expected[name]).max() > 1e-3

    assert_rewrites_once(SimplifyMasksPass(), model, even_mask=2)

    masks = {node.inputs[3] for node in model.graph if node.op_type == "Attention"}
    assert len(masks) == 1, "written once for both layers"
    assert_same(run64(model, feeds), expected, tolerance=1e-6)
    for optimize in (False, True):
        assert_same(run32(model, feeds, optimize=optimize), expected, tolerance=2e-5)


def test_a_mask_that_something_else_reads_stays_for_it():
    model = build(Architecture(mask="window_lowest"), outputs=["local_mask"])
    feeds = random_feeds(model, padding_mask("left"))
    before = run64(model, feeds)
    assert_rewrites_once(SimplifyMasksPass(), model, even_mask=1)
    assert before["local_mask"].min() < -1e38
    assert_same(run64(model, feeds), before)


# Decoders: the padding is the encoder's, the queries are the decoder's


def masks_of(model):
    return [node.inputs[3] for node in model.graph if node.op_type == "Attention"]


def test_cross_attention_gets_the_encoders_padding_for_the_decoders_queries():
    arch = Architecture(layers=2)
    model = build_decoder(arch, cross_mask="additive")
    text = texts(arch, rows=3, sequences=3)
    before = run_at_once(model, text, run64)

    assert_rewrites_once(SimplifyMasksPass(), model, padding_mask=2)

    causal, padding = dict.fromkeys(masks_of(model))
    assert causal.name == "causal_mask", "that of self-attention stays as it is"
    assert list(map(str, padding.shape)) == ["batch", "1", "length", "keys"]
    assert padding.dtype == ir.DataType.BOOL
    np.testing.assert_allclose(run_at_once(model, text, run64), before, rtol=1e-10, atol=1e-10)


def test_onnx_runtime_runs_the_plain_form_of_a_decoder():
    arch = Architecture(dtype=np.float32)
    model = build_decoder(arch, cross_mask="additive")
    text = texts(arch, rows=2, sequences=2)
    SimplifyMasksPass()(model)
    np.testing.assert_allclose(run_at_once(model, text, run32), run_at_once(model, text, run64), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mask", ["plain", "soft", "none"])
def test_leaves_other_masks_of_cross_attention_alone(mask):
    assert_untouched(SimplifyMasksPass(), build_decoder(Architecture(), cross_mask=mask))
