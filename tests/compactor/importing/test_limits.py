"""How many tokens a model takes, in every family: a text of just so many is answered, one of one more is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

import compactor
import compactor.runtime
from compactor.runtime.answers import Refused
from tests.compactor import families
from tests.slow import slow_after_first

TEXT_FAMILIES = [family for family in families.CLASSES if family != "vit"]


def save_tokenizer(folder: Path, config: Any) -> None:
    """One token a word, and none around the text: a text of N words has N tokens."""
    words = [f"word{number}" for number in range(config.vocab_size)]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, words[3]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token=words[3], pad_token=words[config.pad_token_id or 0]
    )
    fast.save_pretrained(folder)


def check(folder: Path, out: Path, longest: int | None, reference: Any) -> None:
    """Export; then texts of ``longest`` tokens, and of one more."""
    compactor.export(folder, out, precision=["fp32"])
    model = compactor.runtime.load(out, precision="fp32", threads=1)
    assert longest is None or model.max_tokens == longest
    most = model.max_tokens
    assert most is not None
    exact, over = (" ".join(["word7"] * count) for count in (most, most + 1))
    answers = model([exact, over, "word8 word9"])
    assert isinstance(answers[1], Refused) and str(most) in answers[1].reason
    for text, answer in ((exact, answers[0]), ("word8 word9", answers[2])):
        ids = torch.tensor([[int(word.removeprefix("word")) for word in text.split()]])
        with torch.no_grad():
            expected = reference(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0].softmax(-1)
        torch.testing.assert_close(torch.from_numpy(answer.scores), expected, atol=2e-4, rtol=0)


@pytest.mark.parametrize("family", slow_after_first(TEXT_FAMILIES))
def test_the_longest_text_is_answered_and_no_longer_one(family: str, tmp_path: Path) -> None:
    folder = families.save(tmp_path / "masked", family)
    model = families.build(family)
    save_tokenizer(folder, model.config)
    offset = model.config.pad_token_id + 1 if family in ("roberta", "xlm-roberta", "mpnet") else 0
    check(folder, tmp_path / "out", families.POSITIONS - offset, model)


@pytest.mark.parametrize("stated", [None, 10**30, 12, 4096])
def test_the_tokenizer_may_say_less_and_never_more(stated: int | None, tmp_path: Path) -> None:
    folder = families.save(tmp_path / "masked", "roberta")
    model = families.build("roberta")
    save_tokenizer(folder, model.config)
    path = folder / "tokenizer_config.json"
    content = {**json.loads(path.read_text()), "model_max_length": stated}
    path.write_text(json.dumps(content))
    positions = families.POSITIONS - model.config.pad_token_id - 1
    check(folder, tmp_path / "out", 12 if stated == 12 else positions, model)
