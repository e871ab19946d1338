"""What a model takes as input and what its labels mean, by its config: all that a workload needs to know of it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compactor.errors import ModelDirectoryError, UsageError
from compactor.positions import max_tokens

Feeds = dict[str, NDArray[Any]]


@dataclasses.dataclass(frozen=True)
class InputSpec:
    """What the model takes.

    Attributes:
        vocabulary: Token ids lie below this; 0 for images.
        max_tokens: The longest sequence; None where nothing says.
        padding: Token id at padded positions.
        special: Token ids that mean more than a piece of text; random tokens are none of them.
        token_types: Token types lie below this.
        image: Channels, height and width, for models of images.
        task: The task's name; None where it is unknown.
        labels: The ids of the labels by name.
        label_count: How many labels there are.
        folder: The folder with the tokenizer; None where there is none.
    """

    vocabulary: int
    max_tokens: int | None = None
    padding: int = 0
    special: frozenset[int] = frozenset()
    token_types: int = 1
    image: tuple[int, int, int] | None = None
    task: str | None = None
    labels: Mapping[str, int] = dataclasses.field(default_factory=dict)
    label_count: int = 0
    folder: Path | None = None

    @classmethod
    def from_config(
        cls,
        config: Mapping[str, Any],
        *,
        task: str | None,
        folder: Path | None = None,
        image: bool = False,
        limit: int | None = None,
    ) -> InputSpec:
        """By ``config.json`` and the tokenizer.

        Args:
            config: The content of ``config.json``.
            task: What the model does; None where nothing says.
            folder: Where the tokenizer lies; None where there is none.
            image: Whether it looks at images instead of tokens.
            limit: The longest sequence; None takes what the config says.

        Raises:
            ModelDirectoryError: The config does not say what is needed.
        """
        labels = _labels(config)
        common: dict[str, Any] = {"task": task, "labels": labels, "folder": folder}
        common["label_count"] = len(labels) or int(config.get("num_labels") or 2)
        if image:
            return cls(0, image=_image(config), **common)
        vocabulary = config.get("vocab_size")
        if not isinstance(vocabulary, int) or vocabulary < 2:
            raise ModelDirectoryError("the model's config has no usable 'vocab_size'", where=_where(folder))
        padding = config.get("pad_token_id")
        return cls(
            vocabulary,
            max_tokens=limit or max_tokens(dict(config)),
            padding=padding if isinstance(padding, int) and 0 <= padding < vocabulary else 0,
            special=_special_tokens(config, folder),
            token_types=int(config.get("type_vocab_size") or 1),
            **common,
        )

    def check_length(self, length: int, *, where: str | None = None, option: str = "--seq") -> None:
        """Refuse a sequence that the model cannot take.

        Raises:
            UsageError: It is too long, or not a length at all.
        """
        if length < 1:
            raise UsageError(f"expected a length of 1 or more, got {length}", where=where, todo=f"change {option}")
        if self.max_tokens is not None and length > self.max_tokens:
            raise UsageError(
                f"{length} tokens are more than the model takes: its maximum is {self.max_tokens}",
                where=where or _where(self.folder),
                todo=f"choose {option} of at most {self.max_tokens}",
            )

    def random_tokens(self, random: np.random.Generator, *shape: int) -> Feeds:
        """Inputs without padding of random ordinary tokens, each of shape ``shape``."""
        usable = np.setdiff1d(np.arange(self.vocabulary), [*self.special, self.padding])
        if not len(usable):  # a toy vocabulary of special tokens alone
            usable = np.setdiff1d(np.arange(self.vocabulary), [self.padding])
        return {
            "input_ids": usable[random.integers(0, len(usable), shape)].astype(np.int64),
            "attention_mask": np.ones(shape, np.int64),
            "token_type_ids": np.zeros(shape, np.int64),
        }

    def random_images(self, random: np.random.Generator, count: int) -> Feeds:
        """``pixel_values`` of shape (count, channels, height, width), as after normalisation."""
        assert self.image is not None
        return {"pixel_values": random.standard_normal((count, *self.image), np.float32)}

    @property
    def fill(self) -> dict[str, int]:
        """What each input of tokens holds at padded positions."""
        return {} if self.image else {"input_ids": self.padding, "attention_mask": 0, "token_type_ids": 0}


def _where(folder: Path | None) -> str | None:
    return None if folder is None else str(folder)


def _labels(config: Mapping[str, Any]) -> dict[str, int]:
    """Label ids by name; from ``id2label``, which is the one that models are saved with, or from ``label2id``."""
    by_id, by_name = config.get("id2label"), config.get("label2id")
    try:
        if isinstance(by_id, Mapping):
            return {str(name): int(number) for number, name in by_id.items()}
        return {str(name): int(number) for name, number in by_name.items()} if isinstance(by_name, Mapping) else {}
    except (TypeError, ValueError) as error:
        raise ModelDirectoryError(f"'id2label' or 'label2id' of the model's config is damaged: {error}") from error


def _image(config: Mapping[str, Any]) -> tuple[int, int, int]:
    tower = config.get("vision_config")  # CLIP's, SigLIP's
    config = tower if isinstance(tower, Mapping) and "image_size" not in config else config
    size = config.get("image_size")
    height, width = size if isinstance(size, Sequence) and len(size) == 2 else (size, size)
    channels = config.get("num_channels", 3)
    sizes = [number for number in (channels, height, width) if isinstance(number, int) and number > 0]
    if len(sizes) != 3:
        raise ModelDirectoryError("the model's config does not say how large an image is", todo="set 'image_size'")
    return sizes[0], sizes[1], sizes[2]


def _special_tokens(config: Mapping[str, Any], folder: Path | None) -> frozenset[int]:
    """What the config and ``tokenizer.json`` name as special; without the latter, the config alone."""
    found = {value for name, value in config.items() if name.endswith("_token_id") and isinstance(value, int)}
    path = None if folder is None else folder / "tokenizer.json"
    if path is not None and path.is_file():
        try:
            added = json.loads(path.read_text(encoding="utf-8")).get("added_tokens") or []
            found |= {int(token["id"]) for token in added if token.get("special")}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ModelDirectoryError(f"the tokenizer is damaged: {error}", where=str(path)) from error
    return frozenset(found)
