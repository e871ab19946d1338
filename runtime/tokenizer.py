"""The tokenizer of a folder, and what the folder says of how it is to be used.

An artefact's ``tokenizer.json`` does by itself what the checkpoint's tokenizer does: the export saw to that. Where a
tokenizer has no such form, ``transformers`` runs it, behind the same few methods.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from .errors import ArtefactError
from .folder import MODULES, read_object, read_transformer_settings

CONFIG = "tokenizer_config.json"

_UNLIMITED = 10**9  # transformers writes 10**30 for a tokenizer without a limit
_SIDES = ("right", "left")
_TOKEN_TYPES = "token_type_ids"


@dataclasses.dataclass(frozen=True)
class TokenizerSettings:
    """How a folder's tokenizer is used, by its ``tokenizer_config.json`` and those of sentence-transformers.

    Attributes:
        limit: Tokens of a sequence, at most; None where nothing says.
        padding_side: Where a batch is filled up. Answers do not depend on it, but of a question and its context the
            context comes first where it is ``left``, as in transformers' pipeline.
        truncation_side: Where a text that is too long is cut.
        token_types: Whether the tokenizer's token types reach the model; else they are all 0.
        splits_special: Whether a special token's text is read as any other text.
        cleans_up: Whether spaces before punctuation go, where tokens become text.
    """

    limit: int | None = None
    padding_side: str = "right"
    truncation_side: str = "right"
    token_types: bool = True
    splits_special: bool = False
    cleans_up: bool = False

    @classmethod
    def read(cls, folder: Path) -> TokenizerSettings:
        """Those of a folder; where a file is missing, the defaults.

        Raises:
            ArtefactError: A file is damaged, or a setting is none.
        """
        config = read_object(folder / CONFIG)
        names = config.get("model_input_names")
        settings = cls(
            limit=read_limit(folder),
            padding_side=config.get("padding_side") or "right",
            truncation_side=config.get("truncation_side") or "right",
            token_types=not isinstance(names, list) or _TOKEN_TYPES in names,
            splits_special=config.get("split_special_tokens") is True,
            cleans_up=config.get("clean_up_tokenization_spaces") is True,
        )
        for name in ("padding_side", "truncation_side"):
            if getattr(settings, name) not in _SIDES:
                raise ArtefactError(
                    f"'{name}' is {getattr(settings, name)!r}, which is no side",
                    where=str(folder / CONFIG),
                    todo=f"set it to one of {', '.join(_SIDES)}",
                )
        return settings


def read_limit(folder: Path) -> int | None:
    """The shortest of what the tokenizer and sentence-transformers say; an export writes what the model takes.

    Raises:
        ArtefactError: A file is damaged.
    """
    stated: list[Any] = [read_object(folder / CONFIG).get("model_max_length")]
    if (folder / MODULES).is_file():
        stated.append(read_transformer_settings(folder).get("max_seq_length"))
    return min((int(value) for value in stated if is_limit(value)), default=None)


def special_token(folder: Path, name: str) -> str | None:
    """The text of a special token (``mask_token``, ``unk_token``, ...); None where no file names it.

    Raises:
        ArtefactError: A file is damaged.
    """
    for file in (CONFIG, "special_tokens_map.json"):
        token = read_object(folder / file).get(name)
        token = token.get("content") if isinstance(token, Mapping) else token
        if isinstance(token, str):
            return token
    return None


def special_ids(tokenizer: Any) -> frozenset[int]:
    """The numbers of a tokenizer's special tokens."""
    if isinstance(tokenizer, SlowTokenizer):
        return tokenizer.special
    added: Mapping[int, Any] = tokenizer.get_added_tokens_decoder()
    return frozenset(number for number, token in added.items() if token.special)


_CLEANED = (
    *((f" {mark}", mark) for mark in ".?!,"),
    (" ' ", "'"),
    *((f" {ending}", ending) for ending in ("n't", "'m", "'s", "'ve", "'re")),
)


def clean_up(text: str) -> str:
    """A text without spaces before its punctuation, as ``clean_up_tokenization_spaces`` of transformers leaves it."""
    for spaced, close in _CLEANED:
        text = text.replace(spaced, close)
    return text


def is_limit(value: object) -> bool:
    """Whether a value states a real number of tokens."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 1 <= value < _UNLIMITED


class Window(Protocol):
    """One sequence of S tokens, as the ``tokenizers`` library gives it."""

    @property
    def ids(self) -> list[int]:
        """(S,) their numbers."""

    @property
    def type_ids(self) -> list[int]:
        """(S,) of which part of a pair each is."""

    @property
    def attention_mask(self) -> list[int]:
        """(S,) 0 for what the model shall not look at."""

    @property
    def special_tokens_mask(self) -> list[int]:
        """(S,) 1 for what is no piece of a text."""

    @property
    def offsets(self) -> list[tuple[int, int]]:
        """(S,) the first character of each, and the one behind its last."""

    @property
    def word_ids(self) -> list[int | None]:
        """(S,) the word that each belongs to, as the tokenizer counts them."""

    @property
    def sequence_ids(self) -> list[int | None]:
        """(S,) the text of a pair that each belongs to."""

    @property
    def overflowing(self) -> Sequence[Window]:
        """The further windows of a text that was cut."""

    def token_to_word(self, token_index: int, /) -> int | None:
        """The word of a token; None of a special one."""

    def word_to_chars(self, word_index: int, sequence_index: int = 0, /) -> tuple[int, int] | None:
        """The first character of a word in a text of a pair, and the one behind its last."""

    def __len__(self) -> int:
        """S."""


def open_tokenizer(folder: Path, settings: TokenizerSettings) -> Any:
    """The tokenizer of ``folder``: one of the ``tokenizers`` library, or a ``SlowTokenizer`` with the same methods.

    It pads and cuts nothing.

    Raises:
        ArtefactError: There is none, it is damaged, or what it takes is not installed.
    """
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    if not path.is_file():
        return _open_slow(folder)
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception on a damaged file
        raise ArtefactError(
            f"the tokenizer cannot be opened: {_first_line(error)}", where=str(path), todo="repair it"
        ) from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.encode_special_tokens = settings.splits_special
    return tokenizer


@dataclasses.dataclass(frozen=True)
class PlainWindow:
    """A ``Window`` that is made here: of a ``SlowTokenizer``, which says nothing of places in a text, or filled up."""

    ids: list[int]
    type_ids: list[int]
    attention_mask: list[int]
    special_tokens_mask: list[int]
    offsets: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    word_ids: list[int | None] = dataclasses.field(default_factory=list)
    sequence_ids: list[int | None] = dataclasses.field(default_factory=list)
    overflowing: Sequence[Window] = ()

    def token_to_word(self, token_index: int, /) -> int | None:
        """Not known."""
        return None

    def word_to_chars(self, word_index: int, sequence_index: int = 0, /) -> tuple[int, int] | None:
        """Not known."""
        return None

    def __len__(self) -> int:
        return len(self.ids)


class SlowTokenizer:
    """A tokenizer that only ``transformers`` can run, behind the methods of the ``tokenizers`` library.

    Args:
        tokenizer: As ``AutoTokenizer`` opens it.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._truncation: dict[str, Any] = {}

    def enable_truncation(self, max_length: int, *, strategy: str, direction: str, **unused: Any) -> None:
        """Cut what is longer from now on."""
        self._tokenizer.truncation_side = direction
        self._truncation = {"truncation": strategy, "max_length": max_length}

    def encode_batch(
        self, inputs: Sequence[str | tuple[str, str]], *, add_special_tokens: bool = True
    ) -> list[PlainWindow]:
        """One sequence a text or pair."""
        return [self._encode(each, add_special_tokens) for each in inputs]

    def encode(self, text: str) -> PlainWindow:
        """The sequence of a text."""
        return self._encode(text, True)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text that token ids stand for."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens))

    def decode_batch(self, sequences: Sequence[Sequence[int]], *, skip_special_tokens: bool = True) -> list[str]:
        """The text of each, its spaces as they are."""
        return [
            str(
                self._tokenizer.decode(
                    list(ids), skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
                )
            )
            for ids in sequences
        ]

    @property
    def special(self) -> frozenset[int]:
        """The numbers of its special tokens."""
        return frozenset(self._tokenizer.all_special_ids)

    def token_to_id(self, token: str) -> int | None:
        """A token's number; None where it is none."""
        number: int | None = self._tokenizer.get_vocab().get(token)
        return number

    def get_vocab_size(self) -> int:
        """How many tokens there are, added ones included."""
        return len(self._tokenizer)

    def num_special_tokens_to_add(self, is_pair: bool) -> int:
        """Beside those of the text or pair."""
        return int(self._tokenizer.num_special_tokens_to_add(pair=is_pair))

    def _encode(self, item: str | tuple[str, str], add_special_tokens: bool) -> PlainWindow:
        first, second = (item, None) if isinstance(item, str) else item
        found: Mapping[str, list[int]] = self._tokenizer(
            first,
            second,
            add_special_tokens=add_special_tokens,
            return_token_type_ids=True,
            return_special_tokens_mask=True,
            verbose=False,
            **self._truncation,
        )
        ids = found["input_ids"]
        return PlainWindow(ids, found["token_type_ids"], [1] * len(ids), found["special_tokens_mask"])


def _open_slow(folder: Path) -> SlowTokenizer:
    todo = "save the tokenizer with transformers, beside the model"
    if not (folder / CONFIG).is_file():
        raise ArtefactError("there is no tokenizer, so texts cannot become tokens", where=str(folder), todo=todo)
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise ArtefactError(
            "this tokenizer has no tokenizer.json: only transformers can run it, and that is not installed",
            where=str(folder),
            todo="pip install transformers sentencepiece",
        ) from error
    try:
        return SlowTokenizer(AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False))
    except Exception as error:  # transformers raises what it likes for a damaged folder
        raise ArtefactError(
            f"the tokenizer cannot be opened: {_first_line(error)}",
            where=str(folder),
            todo="repair its files; some tokenizers want a package of their own, such as sentencepiece",
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [repr(error)])[0]
