"""A tiny model directory with a real tokenizer, for tests that need words to become tokens."""

from __future__ import annotations

import json
from pathlib import Path

WORDS = ("a", "bad", "film", "good", "is", "it", "not", "the", "what", "##ly", ".", ",", "?")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
CONFIG = {
    "model_type": "bert",
    "vocab_size": len(SPECIAL) + len(WORDS),
    "max_position_embeddings": 12,
    "type_vocab_size": 2,
    "pad_token_id": 0,
    "id2label": {"0": "negative", "1": "positive"},
    "label2id": {"negative": 0, "positive": 1},
}


def write_tokenizer(folder: Path) -> Path:
    """A BERT tokenizer of a few words, with its config."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    vocabulary = {token: i for i, token in enumerate((*SPECIAL, *WORDS))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.add_special_tokens(list(SPECIAL))
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = ("pad", "unk", "cls", "sep", "mask")
    fields: dict[str, object] = {f"{name}_token": token for name, token in zip(names, SPECIAL, strict=True)}
    fields["tokenizer_class"] = "PreTrainedTokenizerFast"
    fields["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
    (folder / "tokenizer_config.json").write_text(json.dumps(fields))
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


def ids(text: str) -> list[int]:
    """The token ids of ``[CLS] the film [SEP]``."""
    vocabulary = (*SPECIAL, *WORDS)
    return [vocabulary.index(token) for token in text.split()]
