"""A tiny BART with planted zeros, a tokenizer of a few words and settings of its own for the search."""

from __future__ import annotations

import json
from pathlib import Path

WORDS = ("a", "bad", "film", "good", "is", "it", "not", "the", "what", "very", "dull", "fine")
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
VOCABULARY = len(SPECIAL) + len(WORDS)
POSITIONS = 48
LAYERS, WIDTH = 2, 32
ROWS = [
    {"document": "the film is very very good", "summary": "good film"},
    {"document": "what a dull film it is", "summary": "dull film"},
    {"document": "it is not bad", "summary": "it is fine"},
    {"document": "a fine film", "summary": "fine"},
    {"document": "the film is not what it is", "summary": "the film is"},
    {"document": "very dull", "summary": "dull"},
]


def save(folder: Path, *, seed: int = 0) -> Path:
    """The model directory, as transformers saves it."""
    import torch
    from transformers import BartConfig, BartForConditionalGeneration

    torch.manual_seed(seed)
    config = BartConfig(
        vocab_size=VOCABULARY,
        d_model=WIDTH,
        encoder_layers=LAYERS,
        decoder_layers=LAYERS,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=48,
        max_position_embeddings=POSITIONS,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=2,
        forced_eos_token_id=2,
        init_std=0.5,  # so that it has something to say
    )
    model = BartForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02)  # biases are never zero
        first = model.model.decoder.layers[0]
        first.encoder_attn.out_proj.weight[:, :16] = 0  # two heads of four
        first.self_attn.out_proj.weight[:, 24:] = 0  # one
        first.fc2.weight[:, 20:] = 0
        model.model.encoder.layers[1].self_attn.out_proj.weight[:, :8] = 0
    model.generation_config.max_length = 9
    model.generation_config.num_beams = 2
    model.save_pretrained(folder)
    return save_tokenizer(folder)


def save_tokenizer(folder: Path) -> Path:
    """One word is one token, between ``<s>`` and ``</s>``."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate((*SPECIAL, *WORDS))}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer.add_special_tokens(list(SPECIAL))
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    fields = {f"{name}_token": token for name, token in zip(("bos", "pad", "eos", "unk"), SPECIAL, strict=True)}
    fields["tokenizer_class"] = "PreTrainedTokenizerFast"
    (folder / "tokenizer_config.json").write_text(json.dumps(fields))
    return folder


def write_data(file: Path) -> Path:
    """Documents and their summaries, as JSON lines."""
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return file
