"""A tokenizer that only transformers can run: a Marian folder as it is published, and what its artefact writes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers

import compactor
import compactor.runtime
from compactor.errors import ModelDirectoryError
from compactor.runtime.answers import Refused, Written
from tests.slow import slow_after_first

POSITIONS = 40
TEXTS = ["the old film is good", "a plot", "The CAST is  great and the end is poor"]


@pytest.fixture(scope="module")
def marian(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``source.spm``, ``target.spm`` and ``vocab.json``, no ``tokenizer.json``."""
    sentencepiece = pytest.importorskip("sentencepiece")
    home = tmp_path_factory.mktemp("marian")
    folder = home / "masked"
    folder.mkdir()
    lines = [
        f"the {kind} film is {how} and the {part} is {rest}"
        for kind in ("old", "new", "long", "short")
        for how in ("good", "bad", "great")
        for part in ("plot", "cast", "end")
        for rest in ("fine", "poor")
    ]
    (home / "lines.txt").write_text("\n".join(lines))
    for name in ("source", "target"):
        sentencepiece.SentencePieceTrainer.train(
            input=str(home / "lines.txt"),
            model_prefix=str(home / name),
            vocab_size=60,
            hard_vocab_limit=False,
            minloglevel=2,
        )
        (home / f"{name}.model").rename(folder / f"{name}.spm")
    pieces = sentencepiece.SentencePieceProcessor(str(folder / "source.spm"))
    vocabulary = {"</s>": 0, "<unk>": 1}
    for number in range(pieces.get_piece_size()):
        vocabulary.setdefault(pieces.id_to_piece(number), len(vocabulary))
    padding = vocabulary["<pad>"] = len(vocabulary)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    settings = {"source_lang": "en", "target_lang": "de", "model_max_length": 512, "tokenizer_class": "MarianTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    torch.manual_seed(0)
    config = transformers.MarianConfig(
        vocab_size=len(vocabulary),
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        max_position_embeddings=POSITIONS,
        pad_token_id=padding,
        eos_token_id=0,
        decoder_start_token_id=padding,
        forced_eos_token_id=0,
    )
    model = transformers.MarianMTModel(config).eval()
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, std=0.4) if "norm" not in name else None
    model.generation_config = transformers.GenerationConfig(
        pad_token_id=padding,
        eos_token_id=0,
        decoder_start_token_id=padding,
        max_new_tokens=8,
        num_beams=2,
        bad_words_ids=[[padding]],
    )
    model.save_pretrained(folder)
    return folder


def test_a_marian_folder_as_published(marian, tmp_path):
    compactor.export(marian, tmp_path / "out", precision=["fp32"])
    assert {path.name for path in (tmp_path / "out").glob("*.spm")} == {"source.spm", "target.spm"}
    model = compactor.runtime.load(tmp_path / "out", precision="fp32", threads=1)
    tokenizer = transformers.AutoTokenizer.from_pretrained(marian)
    reference = transformers.AutoModelForSeq2SeqLM.from_pretrained(marian).eval()
    for text, answer in zip(TEXTS, model(TEXTS), strict=True):
        with torch.inference_mode():
            written = reference.generate(**tokenizer(text, return_tensors="pt"))[0]
        assert answer == Written(tokenizer.decode(written, skip_special_tokens=True))


def _edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**(json.loads(path.read_text()) if path.is_file() else {}), **changes}))


def _written(folder: Path, text: str) -> str:
    """By transformers, as its pipeline makes a text of tokens."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    with torch.inference_mode():
        written = model.generate(**tokenizer(text, return_tensors="pt"))[0]
    return tokenizer.decode(written, skip_special_tokens=True, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize(
    ("file", "changes", "prefix"),
    slow_after_first(
        [
            ("config.json", {"prefix": "a new "}, "a new "),
            ("tokenizer_config.json", {"clean_up_tokenization_spaces": True}, ""),
            ("generation_config.json", {"repetition_penalty": 1.4, "num_beams": 3, "length_penalty": 0.3}, ""),
            ("generation_config.json", None, ""),
        ]
    ),
    ids=["prefix", "clean-up", "search", "search in config.json"],
)
def test_settings_of_writing(marian, tmp_path, file, changes, prefix):
    """Those of the search may stand in ``config.json``, where there is no file of their own."""
    shutil.copytree(marian, tmp_path / "masked")
    if changes is None:
        (tmp_path / "masked" / file).unlink()
        _edit(tmp_path / "masked/config.json", num_beams=3, max_length=11, no_repeat_ngram_size=1)
    else:
        _edit(tmp_path / "masked" / file, **changes)
    compactor.export(tmp_path / "masked", tmp_path / "out", precision=["fp32"])
    model = compactor.runtime.load(tmp_path / "out", precision="fp32", threads=1)
    for text in TEXTS:
        assert model(text).text == _written(tmp_path / "masked", prefix + text)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_return_sequences": 2},
        {"return_dict_in_generate": True},
        {"stop_strings": ["a"]},
        {"encoder_repetition_penalty": 2.0},
        {"bad_words_ids": [[9999]]},
        {"sequence_bias": [[[9999], 1.0]]},
        {"max_length": 500},
        {"decoder_start_token_id": None},
        {"do_sample": True, "temperature": 0.0},
    ],
    ids=lambda changes: next(reversed(changes)),
)
def test_settings_that_no_text_can_be_written_by(marian, tmp_path, changes):
    shutil.copytree(marian, tmp_path / "masked")
    _edit(tmp_path / "masked/generation_config.json", **changes)
    with pytest.raises(ModelDirectoryError, match=next(reversed(changes))):
        compactor.export(tmp_path / "masked", tmp_path / "out", precision=["fp32"])
    assert not (tmp_path / "out").exists()


def test_the_longest_text_is_written_and_no_longer_one(marian, tmp_path):
    """Its positions bind: the tokenizer says 512."""
    compactor.export(marian, tmp_path / "out", precision=["fp32"])
    model = compactor.runtime.load(tmp_path / "out", precision="fp32", threads=1)
    assert model.max_tokens == POSITIONS
    tokenizer = transformers.AutoTokenizer.from_pretrained(marian)
    drafts = ("the " * count + "o" * more for count in range(2, 20) for more in range(40))
    texts = {len(tokenizer(text).input_ids): text for text in drafts}
    answers = model([texts[POSITIONS], texts[POSITIONS + 1], TEXTS[0]])
    assert isinstance(answers[0], Written)
    assert isinstance(answers[1], Refused) and f"{POSITIONS}" in answers[1].reason
    assert isinstance(answers[2], Written)
