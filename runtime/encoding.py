"""Texts to token ids, item by item: what cannot be answered is refused with its reason, the rest goes on.

Uses the ``tokenizers`` library alone: no torch, no transformers, unless the artefact's tokenizer has no
``tokenizer.json``.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .answers import Refused
from .errors import ArtefactError

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

QUESTIONS = "question-answering"

_STRIDE = 128  # tokens of a context that two windows share, as in the paper's evaluation on SQuAD
_KEYS = {QUESTIONS: ("question", "context")}  # what a pair's parts are called
_PAIR = ("text", "text_pair")
_PAIRED = {QUESTIONS, "text-classification"}


@dataclasses.dataclass(frozen=True)
class Encoded:
    """One item as the model takes it.

    Attributes:
        windows: Its token sequences: one, or as many as it takes to cover a long context.
        text: What positions in the text count from: the text, of a question and its context the context.
        role: Of a text that is searched with or for: ``query``, ``document``, or None where nobody said.
        prompt_tokens: How many tokens at the beginning of its window are a prompt's, special ones included.
    """

    windows: tuple[Encoding, ...]
    text: str
    role: str | None = None
    prompt_tokens: int = 0

    @property
    def tokens(self) -> int:
        """Of its longest window."""
        return max(len(window) for window in self.windows)


class TextEncoder:
    """A model's tokenizer. It is never changed once it is open, so threads may share it.

    Args:
        folder: Where the tokenizer lies.
        task: What the model does.
        limit: Tokens of a sequence, at most; None sets no limit.
        truncate: Cut what is longer, from its end, instead of refusing it.
        vocabulary: How many tokens the model knows; None where nothing says.

    Raises:
        ArtefactError: There is no tokenizer, or it is damaged.
    """

    def __init__(
        self, folder: Path, *, task: str, limit: int | None, truncate: bool = False, vocabulary: int | None = None
    ) -> None:
        self.limit, self.truncate = limit, truncate
        self._keys, self._paired = _KEYS.get(task, _PAIR), task in _PAIRED
        self._needs_pair = task == QUESTIONS
        self.tokenizer = _open(folder)
        # Where the tokenizer has tokens that the model does not know, a text with one would break its whole batch.
        self._known = vocabulary if vocabulary is not None and self.tokenizer.get_vocab_size() > vocabulary else None
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        if limit is not None and self._needs_pair:
            stride = min(_STRIDE, limit // 4)
            self.tokenizer.enable_truncation(limit, stride=stride, strategy="only_second")
            # Of a question too long for this, nothing of a context fits behind.
            self._longest_question = limit - stride - self.tokenizer.num_special_tokens_to_add(is_pair=True) - 1
        elif limit is not None and truncate:
            self.tokenizer.enable_truncation(limit, strategy="longest_first")

    def encode(self, items: Sequence[Any]) -> list[Encoded | Refused]:
        """One entry an item, in their order.

        Args:
            items: Texts; pairs as tuples, lists or mappings (``text`` and ``text_pair``, ``question`` and ``context``).
        """
        found: list[Encoded | Refused | None] = []
        inputs: list[str | tuple[str, str]] = []
        for item in items:
            read = self._read(item)
            found.append(read if isinstance(read, Refused) else None)
            if not isinstance(read, Refused):
                inputs.append(read)
        encodings = iter(zip(inputs, self._run(inputs), strict=True))
        return [self._check(*next(encodings)) if entry is None else entry for entry in found]

    def _run(self, inputs: Sequence[str | tuple[str, str]]) -> Sequence[Encoding | Refused]:
        if not inputs:
            return []
        try:
            return list(self.tokenizer.encode_batch(list(inputs)))
        except Exception as error:  # the library's own bare one: of one item, and it names none
            if len(inputs) == 1:
                return [Refused(f"the tokenizer refuses it: {error}")]
        return [self._run([each])[0] for each in inputs]

    def _read(self, item: Any) -> str | tuple[str, str] | Refused:
        """The text or pair that ``item`` is."""
        first, second = self._keys
        if isinstance(item, Mapping):
            if first not in item:
                return Refused(f"expected '{first}' in the item, found {_listed(item)}")
            single = item.get(second) is None and not self._needs_pair
            item = item[first] if single else (item[first], item.get(second))
        if isinstance(item, str):
            if self._needs_pair:
                return Refused(f"expected a {first} and a {second}, got a single text")
            return _readable(item, "text")
        if not isinstance(item, Sequence) or isinstance(item, bytes | bytearray):
            return Refused(f"expected a text, got {_kind(item)}")
        if not self._paired:
            return Refused("expected one text, got several: this task takes no pairs")
        if len(item) != 2:
            return Refused(f"expected a pair, got {len(item)} parts")
        parts = [_readable(part, name) for part, name in zip(item, self._keys, strict=True)]
        refused = next((part for part in parts if isinstance(part, Refused)), None)
        return refused or (str(parts[0]), str(parts[1]))

    def _check(self, text: str | tuple[str, str], encoding: Encoding | Refused) -> Encoded | Refused:
        if isinstance(encoding, Refused):
            return encoding
        if all(encoding.special_tokens_mask):
            return Refused("the text is empty: no token is left of it")
        if self._needs_pair and self.limit is not None:
            question = encoding.sequence_ids.count(0)
            if question > self._longest_question:
                return Refused(
                    f"the question has {question} tokens, which leaves no room for a context: "
                    f"the model takes {self.limit} in all"
                )
        if self.limit is not None and len(encoding) > self.limit:
            return Refused(f"the text is too long: {len(encoding)} tokens, and the model takes {self.limit}")
        if self._known is not None and max(encoding.ids) >= self._known:
            return Refused(f"it has token {max(encoding.ids)}, and the model knows {self._known}: a foreign tokenizer")
        windows = (encoding, *encoding.overflowing) if self._needs_pair else (encoding,)
        return Encoded(windows, text if isinstance(text, str) else text[1])


class Collator:
    """Pads sequences to one batch.

    Args:
        inputs: Name and numpy type of each input of the graph.
        padding: Token id at padded positions.

    Raises:
        ArtefactError: The graph wants something that no text gives.
    """

    _MADE = ("input_ids", "attention_mask", "token_type_ids")

    def __init__(self, inputs: Mapping[str, type[np.generic]], padding: int) -> None:
        foreign = [name for name in inputs if name not in self._MADE]
        if foreign:
            raise ArtefactError(
                f"the graph takes '{foreign[0]}', which no text gives",
                todo="this loads models of texts; run the graph with compactor.runtime.sessions",
            )
        self._inputs, self._padding = inputs, padding

    def __call__(self, windows: Sequence[Encoding]) -> dict[str, NDArray[Any]]:
        """By input (B, S), S the longest of the B windows; padding is on the right."""
        longest = max(len(window) for window in windows)
        feeds = {
            name: np.full((len(windows), longest), self._padding if name == "input_ids" else 0, dtype)
            for name, dtype in self._inputs.items()
        }
        for row, window in enumerate(windows):
            length = len(window)
            for name, array in feeds.items():
                if name == "input_ids":
                    array[row, :length] = window.ids
                elif name == "attention_mask":
                    array[row, :length] = window.attention_mask
                else:
                    array[row, :length] = window.type_ids
        return feeds


def _open(folder: Path) -> Tokenizer:
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    try:
        if path.is_file():
            return Tokenizer.from_file(str(path))
        return _open_by_transformers(folder)
    except ArtefactError:
        raise
    except Exception as error:  # the tokenizers library raises bare Exception on a damaged file
        line = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise ArtefactError(f"the tokenizer cannot be opened: {line}", where=str(folder), todo="repair it") from error


def _open_by_transformers(folder: Path) -> Tokenizer:
    """A tokenizer that lies there in an older form, converted."""
    todo = "save the tokenizer with transformers: it writes a tokenizer.json"
    if not (folder / "tokenizer_config.json").is_file():
        raise ArtefactError("there is no tokenizer, so texts cannot become tokens", where=str(folder), todo=todo)
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise ArtefactError("there is no tokenizer.json", where=str(folder), todo=todo) from error
    tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ArtefactError("this tokenizer has no fast form", where=str(folder), todo=todo)
    converted: Tokenizer = type(backend).from_str(backend.to_str())  # one of our own
    return converted


def _readable(text: Any, name: str) -> str | Refused:
    if not isinstance(text, str):
        return Refused(f"expected a text as {name}, got {_kind(text)}")
    if not text.strip():
        return Refused(f"the {name} is empty")
    if any("\ud800" <= character <= "\udfff" for character in text):
        return Refused(f"the {name} is not valid Unicode: it holds half of a surrogate pair")
    return text


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"{type(value).__name__}"


def _listed(item: Mapping[Any, Any]) -> str:
    return ", ".join(json.dumps(str(key)) for key in list(item)[:5]) or "nothing"
