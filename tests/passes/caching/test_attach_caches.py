from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx_ir.passes.common import ShapeInferencePass

from compactor.passes.caching.attach_caches import AttachCachesPass
from compactor.passes.canonical.label_layers import LabelLayersPass
from compactor.passes.lowering.decompose_attention import DecomposeAttentionPass
from compactor.passes.lowering.lower_opset import LowerOpsetPass
from tests.decoders import build_decoder, decoder_weights, run_at_once, run_in_steps, texts, two_steps
from tests.models import Architecture
from tests.passes.strategies import architectures, prune_layer
from tests.passes.test_structure import STRUCTURE
from tests.planting import columns, kill_values
from tests.running import assert_untouched, check, operators, run32, run64

ARCH = Architecture(layers=2, heads=4, qk=4, v=3, neurons=8)
LABEL = LabelLayersPass(stack="decoder")
STEPS = ("first", "next")


def compact(arch=ARCH, weights=None, **masks):
    """A decoder without a cache, after all structural passes."""
    model = build_decoder(arch, weights, **masks)
    for rewrite in STRUCTURE:
        (LABEL if isinstance(rewrite, LabelLayersPass) else rewrite)(model)
    ShapeInferencePass()(model)
    check(model)
    return model


def pruned_weights(arch=ARCH):
    """Heads and widths that differ between layers and between the attentions of a layer."""
    weights = decoder_weights(arch)
    kill_values(weights, arch, 0, [1])  # three heads
    weights["0.cross.output"][columns(arch.v, [0, 2, 3])] = 0  # one head
    weights["0.cross.key"][:, columns(arch.qk, 1, [2])] = 0  # ... of three Q.K channels
    weights["1.value"][:, columns(arch.v, range(4), [0])] = 0  # four heads of two value channels
    weights["1.cross.query"][:, columns(arch.qk, range(4), [0, 1])] = 0  # four of two Q.K channels
    weights["1.cross.query.bias"][columns(arch.qk, range(4), [0, 1])] = 0
    return weights


def caches(values):
    return {value.name: list(value.shape)[1::2] for value in values if value.name.count(".") == 3}


@st.composite
def pruned_decoders(draw):
    arch = draw(architectures(form="3d", dtype=np.float64))
    weights = decoder_weights(arch, draw(st.integers(0, 9)))
    for layer in range(arch.layers):
        prune_layer(draw, arch, weights, layer, attentions=(f"{layer}", f"{layer}.cross"))
    return arch, weights


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(pruned_decoders(), st.sampled_from([1, 2]), st.sampled_from([1, 3, 4]), st.integers(1, 5), st.booleans())
def test_the_steps_of_any_pruned_decoder_give_what_it_gives_at_once(case, sequences, share, prompt, explicit):
    arch, weights = case
    text = texts(arch, rows=sequences * share, sequences=sequences, seed=prompt)
    expected = run_at_once(build_decoder(arch, weights), text, run64)
    model = compact(arch, weights)
    if not any("decoder.layers" in label and label.endswith(".attention") for label in attention_labels(model)):
        assert_untouched(AttachCachesPass(), model, "no self-attention is left")
        return
    first, following = two_steps(model, explicit=explicit)
    steps = run_in_steps(first, following, text, run64, prompt=prompt)
    np.testing.assert_allclose(steps, expected, rtol=1e-9, atol=1e-9)


def attention_labels(model):
    return [node.metadata_props["compactor.layer"] for node in model.graph if node.op_type == "Attention"]


@pytest.mark.parametrize("share", [1, 3, 4])
@pytest.mark.parametrize("explicit", [False, True])
@pytest.mark.parametrize("optimize", [False, True])
def test_onnx_runtime_agrees(explicit, share, optimize):
    arch = dataclasses.replace(ARCH, dtype=np.float32)
    text = texts(arch, rows=2 * share, sequences=2)
    expected = run_at_once(build_decoder(arch, pruned_weights(arch)), text, run32)
    graphs = two_steps(compact(arch, pruned_weights(arch)), explicit=explicit)
    steps = run_in_steps(*graphs, text, lambda model, feeds: run32(model, feeds, optimize=optimize))
    np.testing.assert_allclose(steps, expected, rtol=1e-4, atol=1e-4)


def test_the_explicit_form_can_be_spelled_out_for_runtimes_without_attention():
    arch = dataclasses.replace(ARCH, dtype=np.float32)
    text = texts(arch, rows=4, sequences=2)
    expected = run_at_once(build_decoder(arch, pruned_weights(arch)), text, run32)
    graphs = two_steps(compact(arch, pruned_weights(arch)), explicit=True)
    for graph in graphs:
        for rewrite in (DecomposeAttentionPass(), LowerOpsetPass()):
            assert not rewrite(graph).refused
        assert "Attention" not in operators(graph)
    np.testing.assert_allclose(run_in_steps(*graphs, text, run32), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("explicit", [False, True])
def test_caches_have_their_layers_heads_and_widths_in_both_graphs(explicit):
    first, following = two_steps(compact(weights=pruned_weights()), explicit=explicit)
    expected = {  # heads, width of a head
        "0.decoder": ([3, 4], [3, 3]),
        "0.encoder": ([1, 3], [1, 3]),
        "1.decoder": ([4, 4], [4, 2]),
        "1.encoder": ([4, 2], [4, 3]),
    }
    both = {
        f"{layer}.{part}": shape
        for layer, shapes in expected.items()
        for part, shape in zip(("key", "value"), shapes, strict=True)
    }
    assert caches(first.graph.outputs) == {f"present.{name}": shape for name, shape in both.items()}
    assert caches(following.graph.inputs) == {f"past_key_values.{name}": shape for name, shape in both.items()}
    own = {f"present.{name}": shape for name, shape in both.items() if "decoder" in name}
    assert caches(following.graph.outputs) == own


def test_names_and_their_order_are_the_ecosystems():
    first, following = two_steps(compact())
    caches = [
        f"{layer}.{kind}.{part}" for layer in (0, 1) for kind in ("decoder", "encoder") for part in ("key", "value")
    ]
    assert [value.name for value in first.graph.inputs] == [
        *("input_ids", "encoder_hidden_states", "encoder_attention_mask"),
    ]
    assert [value.name for value in first.graph.outputs] == ["logits", *(f"present.{name}" for name in caches)]
    assert [value.name for value in following.graph.inputs] == [
        *("input_ids", "encoder_attention_mask", *(f"past_key_values.{name}" for name in caches)),
    ]
    assert [value.name for value in following.graph.outputs] == [
        *("logits", *(f"present.{name}" for name in caches if "decoder" in name)),
    ]


def test_where_a_layer_lacks_an_attention_the_caches_are_still_paired_by_place():
    """The first cache of self-attention, then the first of cross-attention, though it is of the second layer."""
    weights = decoder_weights(ARCH)
    weights["0.cross.output"][:] = 0
    first, following = two_steps(compact(weights=weights))
    expected = [f"{cache}.{part}" for cache in ("0.decoder", "1.encoder", "1.decoder") for part in ("key", "value")]
    assert [value.name for value in first.graph.outputs][1:] == [f"present.{name}" for name in expected]
    assert [value.name for value in following.graph.inputs][2:] == [f"past_key_values.{name}" for name in expected]


@pytest.mark.parametrize("explicit", [False, True])
def test_axes_that_differ_have_names_that_differ(explicit):
    first, following = two_steps(compact(), explicit=explicit)
    shapes = {value.name: [str(size) for size in value.shape] for value in (*first.graph.outputs,)}
    assert shapes["present.0.decoder.key"] == ["batch_size", "4", "decoder_sequence_length", "4"]
    assert shapes["present.0.encoder.value"] == ["encoder_batch_size", "4", "encoder_sequence_length", "3"]
    shapes = {value.name: [str(size) for size in value.shape] for value in following.graph.inputs}
    assert shapes["input_ids"][1] == "1", "one token a step"
    assert shapes["past_key_values.1.decoder.value"] == ["batch_size", "4", "past_decoder_sequence_length", "3"]
    assert shapes["past_key_values.1.encoder.key"] == ["encoder_batch_size", "4", "encoder_sequence_length", "4"]
    shapes = {value.name: [str(size) for size in value.shape] for value in following.graph.outputs}
    assert shapes["present.1.decoder.key"] == ["batch_size", "4", "total_decoder_sequence_length", "4"]


@pytest.mark.parametrize("explicit", [False, True])
@pytest.mark.parametrize("step", STEPS)
def test_passes_the_full_check_and_tells_every_attention(step, explicit):
    model = compact(weights=pruned_weights())
    result = AttachCachesPass(step=step, explicit=explicit)(model)
    check(model)
    assert [(event.layer, event.rule, event.count) for event in result.applied] == [
        (f"decoder.layers.{layer}.{kind}", "attached-cache", 1)
        for layer in (0, 1)
        for kind in ("attention", "cross_attention")
    ]


def test_the_next_step_does_not_project_the_encoders_states_again():
    first, following = two_steps(compact())
    projections = 2 * ARCH.layers  # of keys and of values
    assert operators(first)["MatMul"] - operators(following)["MatMul"] == projections


@pytest.mark.parametrize(("gone", "left"), [("0.cross", "1"), ("1", "0"), ("1.cross", "0")])
def test_a_layer_whose_attention_went_has_no_cache(gone, left):
    weights = decoder_weights(ARCH)
    weights[f"{gone}.output"][:] = 0
    text = texts(ARCH, rows=6, sequences=2)
    expected = run_at_once(build_decoder(ARCH, weights), text, run64)
    first, following = two_steps(compact(weights=weights))
    kind = "encoder" if "cross" in gone else "decoder"
    for values in (first.graph.outputs, following.graph.inputs):
        names = [name.partition(".")[2] for name in caches(values)]
        assert len(names) == 6 and f"{gone[0]}.{kind}.key" not in names and f"{left}.decoder.key" in names
    np.testing.assert_allclose(run_in_steps(first, following, text, run64), expected, rtol=1e-9, atol=1e-9)


def test_a_decoder_that_no_longer_looks_at_the_encoder():
    weights = decoder_weights(ARCH)
    for layer in (0, 1):
        weights[f"{layer}.cross.output"][:] = 0
    text = texts(ARCH, rows=2, sequences=2)
    expected = run_at_once(build_decoder(ARCH, weights), text, run64)
    first, following = two_steps(compact(weights=weights))
    assert [value.name for value in first.graph.inputs][1:] == ["encoder_hidden_states", "encoder_attention_mask"]
    np.testing.assert_allclose(run_in_steps(first, following, text, run64), expected, rtol=1e-9, atol=1e-9)


def test_a_cross_attention_without_a_mask_sees_every_token():
    text = texts(ARCH, rows=3, sequences=1)
    expected = run_at_once(build_decoder(ARCH, cross_mask="none"), text, run64)
    steps = run_in_steps(*two_steps(compact(cross_mask="none")), text, run64)
    np.testing.assert_allclose(steps, expected, rtol=1e-9, atol=1e-9)


# Refusals: all or nothing


def nothing_but_cross_attention():
    weights = decoder_weights(ARCH)
    for layer in (0, 1):
        weights[f"{layer}.output"][:] = 0
    return compact(weights=weights)


def without_labels():
    model = build_decoder(ARCH)
    for rewrite in STRUCTURE:
        if not isinstance(rewrite, LabelLayersPass):
            rewrite(model)
    return model


def reads_the_causal_mask_elsewhere():
    model = compact()
    mask = next(value for value in model.graph.inputs if value.name == "causal_mask")
    reader = ir.Node("", "Identity", [mask], name="reader")
    reader.outputs[0].name, reader.outputs[0].type = "copy", mask.type
    model.graph.append(reader)
    model.graph.outputs.append(reader.outputs[0])
    return model


def two_attentions_of_one_number():
    model = compact()
    for node in model.graph:
        layer = node.metadata_props.get("compactor.layer", "")
        if layer == "decoder.layers.1.cross_attention":
            node.metadata_props["compactor.layer"] = "decoder.layers.0.cross_attention_2"
    return model


def four_dimensional():
    model = compact()
    node = next(node for node in model.graph if node.op_type == "Attention")
    del node.attributes["q_num_heads"]
    return model


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: compact(self_mask="biased"), "the mask of the self-attention is more than causal"),
        (lambda: compact(cross_mask="soft"), "the mask of the cross-attention is more than padding"),
        (nothing_but_cross_attention, "no self-attention is left in the decoder"),
        (without_labels, "the attention has no layer number: run label-layers first"),
        (reads_the_causal_mask_elsewhere, "'Identity' reads the causal mask"),
        (two_attentions_of_one_number, "another attention of this layer has the same cache"),
        (four_dimensional, "not in the 3-D form"),
        (lambda: compact(dataclasses.replace(ARCH, kv_heads=2)), "a cache of turned, normalised or shared heads"),
        (lambda: compact(dataclasses.replace(ARCH, head_norm="rms")), "a cache of turned, normalised or shared heads"),
        (lambda: compact(dataclasses.replace(ARCH, rotary="half")), "a cache of turned, normalised or shared heads"),
    ],
)
def test_leaves_a_decoder_alone_and_says_why(make, reason, step):
    assert_untouched(AttachCachesPass(step=step), make(), reason)


def test_a_decoder_with_caches_gets_no_others():
    """The pass is all or nothing, so its second run meets what it wrote and refuses."""
    _, following = two_steps(compact())
    assert_untouched(AttachCachesPass(step="next"), following, "keeps a key/value cache")
