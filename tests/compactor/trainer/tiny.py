"""A model and sentences that a trainer learns in seconds: whether a text holds more good words than bad ones."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

GOOD, BAD, OTHER = ("good", "fine", "lovely"), ("bad", "dull", "awful"), ("film", "plot", "a", "the", "story", "was")
HEADS, WIDTH, NEURONS, LAYERS = 4, 32, 48, 2


def write_tokenizer(folder: Path, *, max_length: int = 32) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *GOOD, *BAD, *OTHER]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        eos_token="[SEP]",
        model_max_length=max_length,
    ).save_pretrained(folder)


def bert_config(**changes: Any) -> Any:
    from transformers import BertConfig

    sizes = {
        "vocab_size": 4 + len((*GOOD, *BAD, *OTHER)),
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "intermediate_size": NEURONS,
        "max_position_embeddings": 32,
        "num_labels": 2,
        "initializer_range": 0.1,
    }
    return BertConfig(**{**sizes, **changes})


def write_model(folder: Path, *, seed: int = 0, **changes: Any) -> Path:
    """A random BERT classifier whose biases are not zero, with its tokenizer."""
    import torch
    from transformers import BertForSequenceClassification

    torch.manual_seed(seed)
    model = BertForSequenceClassification(bert_config(**changes))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.05)
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def write_sentences(path: Path, count: int, *, seed: int = 0) -> Path:
    """TSV of ``count`` labelled sentences."""
    draw = random.Random(seed)
    rows = ["sentence\tlabel"]
    for _ in range(count):
        label = draw.randrange(2)
        words = draw.choices(OTHER, k=draw.randint(2, 8)) + draw.choices((BAD, GOOD)[label], k=2)
        draw.shuffle(words)
        rows.append(f"{' '.join(words)}\t{label}")
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path
