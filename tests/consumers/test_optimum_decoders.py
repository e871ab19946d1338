"""An encoder-decoder's artefact opens in optimum as it is and generates what the masked model does; where it cannot."""

from __future__ import annotations

import pytest
import torch
from optimum.onnxruntime import ORTModelForSeq2SeqLM

import compactor
from compactor.runtime.generation import EncoderDecoder
from tests.compactor import families
from tests.runtime.test_generation import LENGTH, prompts


def assert_same_tokens(module, model):
    for beams in (1, 4):
        for seed in range(3):
            options = {**prompts(4, seed), "max_length": LENGTH, "num_beams": beams, "do_sample": False}
            with torch.no_grad():
                expected = module.generate(**options)
            assert torch.equal(model.generate(**options), expected)


def export(folder, plant):
    module = families.build_encoder_decoder("bart", planted=plant, seed=2)
    module.save_pretrained(folder / "model")
    return module, compactor.export(folder / "model", folder / "out", precision=["fp32"]).path


def test_layers_of_different_heads_and_widths(pruned_bart):
    """One attention over the text is gone as well, in the last layer."""
    assert_same_tokens(pruned_bart.module, ORTModelForSeq2SeqLM.from_pretrained(pruned_bart.path))


def test_int8_graphs_by_their_names(pruned_bart):
    model = ORTModelForSeq2SeqLM.from_pretrained(
        pruned_bart.path,
        subfolder="onnx",
        encoder_file_name="encoder_model_quantized.onnx",
        decoder_file_name="decoder_model_quantized.onnx",
        decoder_with_past_file_name="decoder_with_past_model_quantized.onnx",
    )
    own = EncoderDecoder.open(pruned_bart.path, precision="int8", threads=1)
    options = {**prompts(3), "max_length": LENGTH, "num_beams": 2, "do_sample": False}
    assert torch.equal(model.generate(**options), own.generate(**options))


def test_a_merged_decoder_is_what_it_takes_where_it_finds_one(pruned_bart, tmp_path):
    artefact = compactor.export(pruned_bart.folder, tmp_path / "out", precision=["fp32"], decoder="merged").path
    model = ORTModelForSeq2SeqLM.from_pretrained(artefact)
    assert model.use_merged
    assert_same_tokens(pruned_bart.module, model)


def test_the_first_layer_no_longer_looks_at_the_text(tmp_path):
    """Then the first cache of cross-attention is the second layer's; optimum pairs caches by their place."""

    def plant(encoder, decoder):
        decoder.layers[0].encoder_attn.out_proj.weight.zero_()
        decoder.layers[1].self_attn.out_proj.weight[:, : families.HEAD_DIM] = 0

    module, artefact = export(tmp_path, plant)
    assert_same_tokens(module, ORTModelForSeq2SeqLM.from_pretrained(artefact))


def test_optimum_cannot_go_without_the_self_attention_of_a_layer(tmp_path):
    """It makes as many layers of caches as there are of self-attention, and drops what is left of the others'."""

    def plant(encoder, decoder):
        decoder.layers[1].self_attn.out_proj.weight.zero_()

    module, artefact = export(tmp_path, plant)
    model = ORTModelForSeq2SeqLM.from_pretrained(artefact)
    with pytest.raises(ValueError, match=r"Input past_key_values\.1\.encoder\.key is required by model"):
        model.generate(**prompts(2), max_length=LENGTH)

    own = EncoderDecoder.open(artefact, threads=1)
    assert_same_tokens(module, own)
