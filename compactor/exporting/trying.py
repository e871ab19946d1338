"""Open an artefact once before it is published: texts become the tokens that the checkpoint's tokenizer gives.

What ``runtime.load`` would refuse is refused here, while the checkpoint is at hand and nothing is published.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from compactor.companions.tokenizer import SourceTokenizer
from compactor.errors import ModelDirectoryError
from compactor.quiet import quiet
from compactor.runtime.artefacts import Artefact
from compactor.runtime.encoding import QUESTIONS, Encoded
from compactor.runtime.errors import RuntimeSetupError
from compactor.runtime.image_steps import CONFIG as IMAGE_SETTINGS
from compactor.runtime.model import Model, load
from compactor.tasks import Task

_TEXTS = (
    "A gripping film, isn't it?",
    "two  spaces,\ta tab and UPPER case: Ünïcödé, 東京 and 3.14 %",
    "don't stop (now) ... e-mail me: someone@example.org",
)
_MOST = 1024  # tokens of the long text that is tried: more would take long, and tell little more


def try_answers(folder: Path, tokenizer: SourceTokenizer | None, task: Task, *, where: str) -> None:
    """Load the artefact in ``folder``, and have it answer.

    Args:
        folder: The artefact, complete, and not yet published.
        tokenizer: The checkpoint's; None where it has none: then it answers an image, where it takes them.
        task: What the model does.
        where: The model directory, for messages.

    Raises:
        ModelDirectoryError: It does not load; its tokens are not the checkpoint's; or it fails on a text.
    """
    if tokenizer is None:
        if task.image and (folder / IMAGE_SETTINGS).is_file():
            _load(folder, where)([np.zeros((48, 64, 3), np.uint8)])
        return
    model = _load(folder, where)
    _compare(model, tokenizer, task, Artefact.open(folder).prefix, where)
    if task.generates:
        _write(folder, tokenizer, where)
        return
    for item in _items(model, tokenizer, task):
        model([item])


def _write(folder: Path, tokenizer: SourceTokenizer, where: str) -> None:
    """Two tokens, by the folder's own settings: a text takes long, and how it is searched is transformers'."""
    import torch

    from compactor.runtime.generation import EncoderDecoder

    ids = torch.tensor([tokenizer.reference(_TEXTS[0], verbose=False)["input_ids"][:8]])
    model = EncoderDecoder.open(folder, precision="fp32", provider="cpu", threads=1)
    try:
        with quiet():
            model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=2, min_length=0)
    except Exception as error:  # transformers raises what it likes for settings that do not go together
        line = (str(error).strip().splitlines() or [repr(error)])[0]
        raise ModelDirectoryError(
            f"transformers' generate refuses the folder's settings: {line}",
            where=where,
            todo="repair generation_config.json, or the settings of generation in config.json",
        ) from error


def _load(folder: Path, where: str) -> Model:
    try:
        return load(folder, precision="fp32", provider="cpu", threads=1)
    except RuntimeSetupError as error:
        raise ModelDirectoryError(error.what, where=where, todo=error.todo) from error


def _compare(model: Model, tokenizer: SourceTokenizer, task: Task, prefix: str, where: str) -> None:
    """Raises ModelDirectoryError where a text or a pair has other tokens here than in the reference."""
    reference = tokenizer.reference
    pairs = list(itertools.pairwise(_TEXTS))
    items: list[str | tuple[str, str]] = list(_TEXTS) if task.name != QUESTIONS else []
    if task.name in (QUESTIONS, "text-classification"):
        items += pairs
    for item, found in zip(items, model.encode(items, prompt=""), strict=True):
        if not isinstance(found, Encoded):
            continue  # too long for a model this small
        first: str | None
        second: str | None
        first, second = (item, None) if isinstance(item, str) else item
        if task.name == QUESTIONS and reference.padding_side == "left":
            first, second = second, first
        first = prefix + first if task.generates and first is not None else first
        with quiet():
            expected = reference(first, second, return_token_type_ids=True, verbose=False)
        window = found.windows[0]
        if len(found.windows) == 1 and (window.ids, window.type_ids) != (
            expected["input_ids"],
            expected["token_type_ids"],
        ):
            raise ModelDirectoryError(
                f"the tokenizer cannot be carried over: {item!r} becomes other tokens than in the checkpoint",
                where=where,
                todo="save the tokenizer with transformers (save_pretrained), and export again",
            )


def _items(model: Model, tokenizer: SourceTokenizer, task: Task) -> Iterator[Any]:
    """A text, a pair where the task takes them, and a long one."""
    long = _long(model)
    if task.name == QUESTIONS:
        yield from (("Who is it?", text) for text in (_TEXTS[0], long))
        return
    mask = f" {tokenizer.reference.mask_token}" if task.name == "fill-mask" else ""
    yield from (f"{text}{mask}" for text in (_TEXTS[0], long))
    if task.name == "text-classification":
        yield (_TEXTS[0], _TEXTS[1])


def _long(model: Model) -> str:
    """A text of about as many tokens as the model takes."""
    most = min(model.max_tokens or _MOST, _MOST)
    texts = [" ".join(["a"] * count) for count in range(most, 0, -max(1, most // 32))]
    return next(
        (text for text, found in zip(texts, model.encode(texts), strict=True) if isinstance(found, Encoded)), "a"
    )
