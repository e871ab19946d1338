from __future__ import annotations

import shutil
import types

import numpy as np
import onnxruntime
import pytest
import torch

from compactor.runtime import decoding
from compactor.runtime.decoding import ENCODER, FIRST, NEXT, CachedDecoder, graph_path, run_on
from compactor.runtime.sessions import open_session
from tests.runtime.graphs import WIDTH, dense_layer

VOCABULARY = 30


@pytest.fixture(scope="module")
def decoder(pruned_bart):
    return CachedDecoder.open(pruned_bart.path)


@pytest.fixture(scope="module")
def text(pruned_bart):
    """Two encoded texts, one of them padded."""
    ids = torch.tensor([[0, 8, 9, 10, 2], [0, 8, 2, 1, 1]])
    mask = (ids != 1).long()
    with torch.no_grad():
        states = pruned_bart.module.get_encoder()(ids, attention_mask=mask).last_hidden_state
    return states.numpy(), mask.numpy()


def tokens(rows, length=6, seed=0):
    return np.random.default_rng(seed).integers(3, VOCABULARY, (rows, length))


def by_pytorch(module, ids, states, mask):
    """Logits for rows of which each text has equally many, computed at once and without a cache."""
    share = len(ids) // len(states)
    with torch.no_grad():
        return module(
            encoder_outputs=(torch.from_numpy(states).repeat_interleave(share, 0),),
            attention_mask=torch.from_numpy(mask).repeat_interleave(share, 0),
            decoder_input_ids=torch.from_numpy(ids),
            use_cache=False,
        ).logits.numpy()


@pytest.mark.parametrize("prompt", [1, 2, 6])
@pytest.mark.parametrize("share", [1, 3, 4])
def test_decodes_step_by_step_what_pytorch_does_at_once(share, prompt, decoder, text, pruned_bart):
    ids = tokens(2 * share, seed=share)
    expected = by_pytorch(pruned_bart.module, ids, *text)
    np.testing.assert_allclose(decoder.decode(ids, *text, prompt=prompt), expected, rtol=1e-4, atol=1e-4)


def test_int8_decodes_about_the_same(text, pruned_bart):
    ids = tokens(2)
    expected = by_pytorch(pruned_bart.module, ids, *text)
    logits = CachedDecoder.open(pruned_bart.path, precision="int8").decode(ids, *text)
    assert 0 < np.abs(logits - expected).max() < 0.5 * np.abs(expected).max()


def test_cache_shapes_are_read_from_the_sessions(decoder):
    heads = {name: shape[1] for name, shape in decoder.cache_shapes.items()}
    assert heads["past_key_values.0.decoder.key"] == 2 and heads["past_key_values.0.encoder.key"] == 1
    assert heads["past_key_values.1.decoder.key"] == 4
    assert not any(name.startswith("past_key_values.1.encoder") for name in heads)


def test_caches_grow_by_a_token_a_step_and_those_of_the_text_stay(decoder, text):
    states, mask = text
    ids = tokens(4)
    logits, first = decoder.start(ids[:, :3], states, mask)
    assert logits.shape() == [4, 3, VOCABULARY] and first.length == 3
    _, second = decoder.step(ids[:, 3:4], mask, first)
    assert second.length == 4
    assert {value.shape()[0] for value in second.own.values()} == {4}
    assert {value.shape()[2] for value in first.own.values()} == {3}
    assert {value.shape()[2] for value in second.own.values()} == {4}
    assert {tuple(value.shape()[::2]) for value in second.shared.values()} == {(2, 5)}, "of the texts, not the rows"
    assert all(second.shared[name] is value for name, value in first.shared.items())


def test_reordered_caches_go_on_with_other_rows(decoder, text, pruned_bart):
    """Rows 2 and 3 both go on from row 3, as beams of the second text do."""
    states, mask = text
    ids = tokens(4)
    _, caches = decoder.start(ids[:, :5], states, mask)
    order = np.array([1, 0, 3, 3])
    chosen = caches.reorder(lambda value: onnxruntime.OrtValue.ortvalue_from_numpy(value.numpy()[order]))
    logits, _ = decoder.step(ids[order][:, 5:6], mask, chosen)
    expected = by_pytorch(pruned_bart.module, ids[order], states, mask)[:, 5:]
    np.testing.assert_allclose(logits.numpy(), expected, rtol=1e-4, atol=1e-4)
    assert caches.length == chosen.length == 5
    assert all(chosen.shared[name] is value for name, value in caches.shared.items())


# Graphs that are not there, or do not belong together


def test_finds_graphs_in_both_layouts(pruned_bart, tmp_path):
    assert graph_path(pruned_bart.path, NEXT, "int8") == pruned_bart.path / "onnx" / f"{NEXT}_quantized.onnx"
    (tmp_path / f"{FIRST}_fp16.onnx").touch()
    assert graph_path(tmp_path, FIRST, "fp16") == tmp_path / f"{FIRST}_fp16.onnx"


@pytest.mark.parametrize("missing", [FIRST, NEXT])
def test_names_the_graph_that_is_missing(missing, pruned_bart, tmp_path):
    copy = shutil.copytree(pruned_bart.path, tmp_path / "copy")
    (copy / "onnx" / f"{missing}.onnx").unlink()
    with pytest.raises(FileNotFoundError, match=f"there is no '{missing}.onnx'"):
        CachedDecoder.open(copy)
    with pytest.raises(FileNotFoundError, match=f"there is no '{ENCODER}_fp16.onnx'"):
        graph_path(pruned_bart.path, ENCODER, "fp16")


def fake_session(inputs=(), outputs=()):
    entries = [[types.SimpleNamespace(name=name, shape=shape) for name, shape in side] for side in (inputs, outputs)]
    return types.SimpleNamespace(get_inputs=lambda: entries[0], get_outputs=lambda: entries[1])


@pytest.mark.parametrize("axis", [1, 3])
def test_two_graphs_that_disagree_on_a_cache_are_refused(axis):
    name = "0.decoder.key"
    shape = ["batch", 3, "length", 5]
    other = [*shape[:axis], 4, *shape[axis + 1 :]]
    first = fake_session(outputs=[("logits", ["batch"]), (f"present.{name}", shape)])
    assert CachedDecoder(first, fake_session(inputs=[(f"past_key_values.{name}", shape)])).cache_shapes
    with pytest.raises(ValueError, match=r"'past_key_values.0.decoder.key' is \('batch', .* in one of the decoder's"):
        CachedDecoder(first, fake_session(inputs=[(f"past_key_values.{name}", other)]))


def test_two_graphs_of_different_layers_are_refused():
    shape = ["batch", 3, "length", 5]
    first = fake_session(outputs=[("present.0.decoder.key", shape), ("present.1.decoder.key", shape)])
    following = fake_session(inputs=[("past_key_values.0.decoder.key", shape)])
    with pytest.raises(ValueError, match=r"only one of the decoder's graphs has \['past_key_values.1.decoder.key'\]"):
        CachedDecoder(first, following)


# run_on


@pytest.fixture
def dense():
    return open_session(dense_layer().SerializeToString(), threads=1)


@pytest.mark.parametrize("wrap", [lambda x: x, onnxruntime.OrtValue.ortvalue_from_numpy])
def test_takes_arrays_and_values_and_leaves_out_what_the_graph_has_no_input_for(wrap, dense):
    x = np.random.default_rng(0).standard_normal((3, WIDTH), np.float32)
    outputs = run_on(dense, {"x": wrap(x), "unknown": np.zeros(2)}, "cpu")
    assert list(outputs) == ["y"]
    np.testing.assert_array_equal(outputs["y"].numpy(), dense.run(None, {"x": x})[0])


class OnAnotherDevice:
    """A session whose GPU is this CPU; writes down what it is asked to leave where."""

    def __init__(self, session):
        self._session, self.places = session, {}

    def __getattr__(self, name):
        return getattr(self._session, name)

    def io_binding(self):
        binding = self._session.io_binding()
        bind = binding.bind_output

        def bind_output(name, device):
            self.places[name] = device
            bind(name, "cpu")

        binding.bind_output = bind_output
        return binding


def test_on_a_gpu_caches_stay_there_and_logits_come_back(decoder, text, pruned_bart):
    first, following = OnAnotherDevice(decoder.first), OnAnotherDevice(decoder.following)
    on_gpu = CachedDecoder(first, following, device="cuda")
    ids = tokens(4)
    np.testing.assert_array_equal(on_gpu.decode(ids, *text), decoder.decode(ids, *text))
    for session in (first, following):
        assert session.places.pop("logits") == "cpu"
        assert session.places and set(session.places.values()) == {"cuda"}


def test_a_session_that_takes_turns_stops_spinning_when_a_run_has_ended(monkeypatch):
    seen = {}

    def opened(path, options, **others):
        seen[path] = options.get_session_config_entry("session.force_spinning_stop"), others["provider"]

    monkeypatch.setattr(decoding, "open_with_options", opened)
    decoding.open_in_turn("a graph", threads=1)
    assert seen == {"a graph": ("1", "cpu")}
