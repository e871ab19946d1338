"""``EncoderDecoder`` generates, token for token, what the masked model does in PyTorch."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from transformers import GenerationMixin, LogitsProcessorList

from compactor.runtime.generation import CacheOfSessions, EncoderDecoder

VOCABULARY, PADDING, LENGTH = 30, 1, 15


@pytest.fixture(scope="module")
def model(pruned_bart):
    return EncoderDecoder.open(pruned_bart.path, threads=1)


def prompts(count, seed=0, side="right"):
    """``count`` random texts of 3 to 12 tokens, padded on one side, with their mask."""
    random = np.random.default_rng(seed)
    lengths = random.integers(3, 13, count)
    lengths[0] = 12
    columns = np.arange(12)
    mask = columns < lengths[:, None]
    if side == "left":
        mask = mask[:, ::-1]
    ids = np.where(mask, random.integers(3, VOCABULARY, mask.shape), PADDING)
    return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask.astype(np.int64))}


def both(pruned_bart, model, texts, seed=0, **options):
    """What PyTorch generates, and what the sessions do."""
    made = []
    for each in (pruned_bart.module, model):
        torch.manual_seed(seed)
        with torch.no_grad():
            made.append(each.generate(**texts, **{"max_length": LENGTH, **options}))
    return made


def assert_same_tokens(pruned_bart, model, texts, **options):
    expected, generated = both(pruned_bart, model, texts, **options)
    assert generated.shape == expected.shape
    assert torch.equal(generated, expected), options
    return generated


@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize("side", ["right", "left"])
def test_fifty_random_prompts_in_padded_batches(side, beams, pruned_bart, model):
    """Some end early: a token that the model often writes counts as an end as well."""
    options = {"num_beams": beams, "do_sample": False, "eos_token_id": [2, 4]}
    texts = set()
    for seed in range(10):
        texts |= set(map(tuple, assert_same_tokens(pruned_bart, model, prompts(5, seed, side), **options).tolist()))
    assert len(texts) > 10, "the model says something of its own to many prompts"
    assert len({text.index(4) if 4 in text else None for text in texts}) > 2, "at different lengths"


@pytest.mark.parametrize(
    "options",
    [
        *({"num_beams": beams} for beams in (2, 3, 5, 6)),
        {"num_beams": 3, "length_penalty": 2.0},
        {"num_beams": 3, "length_penalty": -1.0, "early_stopping": True},
        {"num_beams": 2, "early_stopping": "never"},
        {"no_repeat_ngram_size": 2},
        {"num_beams": 4, "no_repeat_ngram_size": 3},
        {"num_beams": 2, "encoder_no_repeat_ngram_size": 2},
        {"min_length": 10},
        {"num_beams": 2, "min_new_tokens": 8},
        {"max_length": 5},
        {"max_length": None, "max_new_tokens": 4},
        {"num_beams": 2, "forced_bos_token_id": 7},
        {"num_beams": 3, "forced_eos_token_id": 9, "max_length": 6},
        {"num_beams": 4, "num_return_sequences": 3},
        {"repetition_penalty": 1.5},
        {"num_beams": 2, "encoder_repetition_penalty": 1.5},
        {"suppress_tokens": [5, 6], "begin_suppress_tokens": [7]},
        {"bad_words_ids": [[8], [9, 10]], "num_beams": 2},
        {"use_cache": False},
        {"use_cache": False, "num_beams": 3},
    ],
    ids=str,
)
def test_every_way_of_choosing_among_logits(options, pruned_bart, model):
    assert_same_tokens(pruned_bart, model, prompts(4), do_sample=False, **options)


@pytest.mark.parametrize(
    "options",
    [{}, {"top_k": 5, "temperature": 1.7}, {"top_p": 0.8}, {"num_return_sequences": 3}, {"num_beams": 3}],
    ids=str,
)
def test_samples_with_equal_seeds(options, pruned_bart, model):
    drawn = [assert_same_tokens(pruned_bart, model, prompts(3), seed=s, do_sample=True, **options) for s in (0, 1)]
    assert drawn[0].shape != drawn[1].shape or not torch.equal(*drawn)


def test_a_prompt_for_the_decoder(pruned_bart, model):
    """Several tokens in the first step, and those of rows that are shorter padded."""
    start = torch.tensor([[2, 8, 9], [2, 5, 7]])
    for beams in (1, 3):
        assert_same_tokens(pruned_bart, model, prompts(2), decoder_input_ids=start, num_beams=beams, do_sample=False)


def test_without_a_mask_every_token_is_real(pruned_bart, model):
    texts = {"input_ids": torch.randint(3, VOCABULARY, (2, 7), generator=torch.Generator().manual_seed(0))}
    assert_same_tokens(pruned_bart, model, texts, num_beams=2, do_sample=False)


def test_scores_come_with_the_text(pruned_bart, model):
    options = {"num_beams": 2, "do_sample": False, "output_scores": True, "return_dict_in_generate": True}
    expected, generated = both(pruned_bart, model, prompts(2), **options)
    torch.testing.assert_close(generated.sequences_scores, expected.sequences_scores, rtol=1e-4, atol=1e-4)
    assert isinstance(generated.past_key_values, CacheOfSessions)


def test_defaults_are_those_of_the_artefact(pruned_bart, model, tmp_path):
    copy = shutil.copytree(pruned_bart.path, tmp_path / "copy")
    path = copy / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_beams": 3, "max_length": 9}))
    opened = EncoderDecoder.open(copy, threads=1)
    assert (opened.generation_config.num_beams, opened.generation_config.max_length) == (3, 9)
    expected = model.generate(**prompts(2), num_beams=3, max_length=9)
    assert torch.equal(opened.generate(**prompts(2)), expected)
    path.unlink()
    assert EncoderDecoder.open(copy, threads=1).generation_config.eos_token_id == 2, "that of config.json"


def test_int8_generates(pruned_bart):
    model = EncoderDecoder.open(pruned_bart.path, precision="int8", threads=1)
    generated = model.generate(**prompts(3), num_beams=2, max_length=LENGTH)
    assert generated.shape[0] == 3 and (generated[:, 0] == 2).all()


def test_the_search_is_transformers_own(model):
    assert isinstance(model, GenerationMixin)
    for search in ("_sample", "_beam_search", "_get_logits_processor", "_get_stopping_criteria"):
        assert getattr(type(model), search) is getattr(GenerationMixin, search)
    assert model.can_generate() and not model.is_remote_code()


def test_torch_has_one_thread_meanwhile_and_its_own_again_afterwards(model):
    seen = []

    def look(tokens, scores):
        seen.append(torch.get_num_threads())
        return scores

    def fail(tokens, scores):
        raise RuntimeError("on purpose")

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        model.generate(**prompts(1), max_length=4, logits_processor=LogitsProcessorList([look]))
        assert set(seen) == {1} and torch.get_num_threads() == 3
        with pytest.raises(RuntimeError, match="on purpose"):
            model.generate(**prompts(1), max_length=4, logits_processor=LogitsProcessorList([fail]))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


# One step


def test_a_call_gives_logits_and_caches_to_go_on_from(pruned_bart, model):
    texts = prompts(2)
    ids = torch.tensor([[2, 5, 6], [2, 7, 8]])
    with torch.no_grad():
        expected = pruned_bart.module(**texts, decoder_input_ids=ids, use_cache=False).logits
    whole = model(**texts, decoder_input_ids=ids)
    torch.testing.assert_close(whole.logits, expected, rtol=1e-4, atol=1e-4)
    first = model(**texts, decoder_input_ids=ids[:, :1])
    rest = model(
        attention_mask=texts["attention_mask"],
        encoder_outputs=(first.encoder_last_hidden_state,),
        decoder_input_ids=ids[:, 1:],
        past_key_values=first.past_key_values,
    )
    torch.testing.assert_close(rest.logits, expected[:, 1:], rtol=1e-4, atol=1e-4)
    assert first.past_key_values.get_seq_length() == 1 and rest.past_key_values.get_seq_length() == 3


def test_a_call_without_a_text_or_decoder_tokens(model):
    with pytest.raises(ValueError, match="the encoder needs input_ids"):
        model(decoder_input_ids=torch.tensor([[2]]))
    with pytest.raises(ValueError, match="the decoder needs decoder_input_ids"):
        model(**prompts(1))


@pytest.mark.parametrize("name", ["output_attentions", "output_hidden_states"])
def test_what_the_graphs_do_not_compute_is_refused(name, model):
    with pytest.raises(ValueError, match=f"give logits only: leave out {name}"):
        model(**prompts(1), decoder_input_ids=torch.tensor([[2]]), **{name: True})
    with pytest.raises(ValueError, match=f"give logits only: leave out {name}"):
        model.generate(**prompts(1), max_length=4, return_dict_in_generate=True, **{name: True})


@pytest.mark.parametrize("missing", ["encoder_model", "decoder_model", "decoder_with_past_model"])
def test_names_the_graph_that_is_missing(missing, pruned_bart, tmp_path):
    copy = shutil.copytree(pruned_bart.path, tmp_path / "copy")
    (copy / "onnx" / f"{missing}.onnx").unlink()
    with pytest.raises(FileNotFoundError, match=f"there is no '{missing}.onnx'"):
        EncoderDecoder.open(copy)


def test_graphs_of_two_models_are_not_mixed(pruned_bart, tmp_path):
    """The first step of one, the next one of another whose caches are none of a cross-attention's."""
    copy = shutil.copytree(pruned_bart.path, tmp_path / "copy")
    shutil.copy(copy / "onnx" / "encoder_model.onnx", copy / "onnx" / "decoder_with_past_model.onnx")
    with pytest.raises(ValueError, match="only one of the decoder's graphs has"):
        EncoderDecoder.open(copy)
