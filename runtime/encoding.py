"""Texts to token ids, item by item: what cannot be answered is refused with its reason, the rest goes on.

Uses the ``tokenizers`` library alone: no torch, no transformers, unless the artefact's tokenizer has no
``tokenizer.json``.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .answers import Refused
from .errors import ArtefactError
from .tokenizer import PlainWindow, SlowTokenizer, TokenizerSettings, Window, open_tokenizer, special_ids

if TYPE_CHECKING:
    from .sentences.roles import Expansion, Roles

QUESTIONS = "question-answering"

# Windows of a long context, as transformers' question-answering pipeline cuts them.
_WINDOW = 384
_STRIDE = 128
_KEYS = {QUESTIONS: ("question", "context")}  # what a pair's parts are called
_PAIR = ("text", "text_pair")
_PAIRED = {QUESTIONS, "text-classification"}
_OFFSETS = {QUESTIONS, "token-classification"}  # their answers are places in the text


@dataclasses.dataclass(frozen=True)
class Encoded:
    """One item as the model takes it.

    Attributes:
        windows: Its token sequences: one, or as many as it takes to cover a long context.
        text: What positions in the text count from: the text, of a question and its context the context.
        role: Of a text that is searched with or for: ``query``, ``document``, or None where nobody said.
        prompt_tokens: How many tokens at the beginning of its window are a prompt's, special ones included.
        filled: How many tokens at the end of its window fill a query up.
    """

    windows: tuple[Window, ...]
    text: str
    role: str | None = None
    prompt_tokens: int = 0
    filled: int = 0

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
        truncate: Cut what is longer, as the tokenizer's own settings say, instead of refusing it.
        vocabulary: How many tokens the model knows; None where nothing says.
        prefix: What stands before every text.
        roles: How long queries and documents may be, and what fills a query up.

    Raises:
        ArtefactError: There is no tokenizer, it is damaged, or it does not do what the task needs.

    Attributes:
        context_first: Whether of a question and its context the context comes first.
    """

    def __init__(
        self,
        folder: Path,
        *,
        task: str,
        limit: int | None,
        truncate: bool = False,
        vocabulary: int | None = None,
        prefix: str = "",
        roles: Roles | None = None,
    ) -> None:
        self.limit, self.truncate, self._prefix = limit, truncate, prefix
        self._keys, self._paired = _KEYS.get(task, _PAIR), task in _PAIRED
        self._asks = task == QUESTIONS
        self.settings = settings = TokenizerSettings.read(folder)
        self.context_first = self._asks and settings.padding_side == "left"
        self.tokenizer = open_tokenizer(folder, settings)
        if task in _OFFSETS and isinstance(self.tokenizer, SlowTokenizer):
            raise ArtefactError(
                f"this tokenizer does not say where in a text a token is, which {task} needs",
                where=str(folder),
                todo="use a tokenizer that has a tokenizer.json",
            )
        # Where the tokenizer has tokens that the model does not know, a text with one would break its whole batch.
        self._known = vocabulary if vocabulary is not None and self.tokenizer.get_vocab_size() > vocabulary else None
        self._prompt_tokens = functools.lru_cache(maxsize=64)(self._count_prompt_tokens)
        limits = roles.limits if roles is not None else {}
        self._limits = dict(limits)
        beyond = next((role for role, most in limits.items() if limit is not None and most > limit), None)
        if beyond is not None:
            raise ArtefactError(
                f"'{beyond}_length' is {limits[beyond]}, beyond the {limit} tokens that a text may have: not built",
                where=str(folder),
                todo=f"set it to {limit} at most in sentence_bert_config.json, or raise 'max_seq_length'",
            )
        self._by_role: dict[str, Any] = {}
        self._expansion = roles.expansion if roles is not None else None
        if self._expansion is not None:
            self._check_expansion(self._expansion, folder)
        if self._asks:
            self._window = min(limit or _WINDOW, _WINDOW)
            self._stride = min(self._window // 2, _STRIDE)
            self._windowed = open_tokenizer(folder, settings)
            strategy = "only_first" if self.context_first else "only_second"
            _cut(self._windowed, settings, self._window, strategy, stride=self._stride)
        elif truncate:
            if limit is not None:
                _cut(self.tokenizer, settings, limit)
            for role, most in self._limits.items():  # one each: a tokenizer in use by threads is never changed
                self._by_role[role] = open_tokenizer(folder, settings)
                _cut(self._by_role[role], settings, most)

    def encode(self, items: Sequence[Any], *, prompt: str = "", role: str | None = None) -> list[Encoded | Refused]:
        """One entry an item, in their order.

        Args:
            items: Texts; pairs as tuples, lists or mappings (``text`` and ``text_pair``, ``question`` and ``context``).
            prompt: What stands before each text; of a pair, before its first.
            role: What the texts are for: ``query``, ``document``, or None.

        Raises:
            ValueError: The prompt is not valid Unicode.
        """
        if _broken(prompt):
            raise ValueError("the prompt is not valid Unicode: it holds half of a surrogate pair")
        prompt = self._prefix + prompt
        found: list[Encoded | Refused | None] = []
        inputs: list[str | tuple[str, str]] = []
        for item in items:
            read = self._read(item)
            found.append(read if isinstance(read, Refused) else None)
            if not isinstance(read, Refused):
                inputs.append(prompt + read if isinstance(read, str) else (prompt + read[0], read[1]))
        tokenizer = self._by_role.get(role or "", self.tokenizer)
        limit = self._limits.get(role or "", self.limit)
        windows = self._run_questions(inputs) if self._asks else self._run(tokenizer, inputs)
        encodings = iter(zip(inputs, windows, strict=True))
        checked = (self._check(*next(encodings), limit) if entry is None else entry for entry in found)
        if not prompt and role is None:
            return list(checked)
        added = self._prompt_tokens(prompt) if prompt else 0
        return [
            self._fill(dataclasses.replace(each, role=role, prompt_tokens=added)) if isinstance(each, Encoded) else each
            for each in checked
        ]

    def _fill(self, item: Encoded) -> Encoded:
        """A query, filled up where the folder says so."""
        expansion, window = self._expansion, item.windows[0]
        if expansion is None or item.role != "query" or len(window) >= expansion.length:
            return item
        count = expansion.length - len(window)
        filled = PlainWindow(
            [*window.ids, *[self.tokenizer.token_to_id(expansion.token)] * count],
            [*window.type_ids, *[0] * count],
            [*window.attention_mask, *[int(expansion.attend)] * count],
            [*window.special_tokens_mask, *[1] * count],
        )
        return dataclasses.replace(item, windows=(filled,), filled=count)

    def _check_expansion(self, expansion: Expansion, folder: Path) -> None:
        wrong = None
        if self.tokenizer.token_to_id(expansion.token) is None:
            wrong = f"the tokenizer has no token '{expansion.token}'"
        elif self.limit is not None and expansion.length > self.limit:
            wrong = f"the model takes {self.limit} tokens, and its length is {expansion.length}"
        elif self.settings.padding_side == "left":
            wrong = "the tokenizer pads on the left, which is not built"
        if wrong is not None:
            raise ArtefactError(
                f"'query_expansion' cannot be honoured: {wrong}", where=str(folder), todo="set it to null, or repair it"
            )

    def _count_prompt_tokens(self, prompt: str) -> int:
        """Tokens of a prompt alone, less a special one at its end, which stands behind the text."""
        (window,) = self.tokenizer.encode_batch([prompt])
        special = len(window) and (window.special_tokens_mask[-1] or window.ids[-1] in special_ids(self.tokenizer))
        return len(window) - (1 if special else 0)

    def _run(self, tokenizer: Any, inputs: Sequence[str | tuple[str, str]]) -> Sequence[Window | Refused]:
        if not inputs:
            return []
        try:
            turned = [(each[1], each[0]) if self.context_first else each for each in inputs]
            return list(tokenizer.encode_batch(turned))
        except BaseException as error:  # the library's own bare one, or its panic: of one item, and it names none
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            if len(inputs) == 1:
                return [Refused(f"the tokenizer refuses it: {error}")]
        return [self._run(tokenizer, [each])[0] for each in inputs]

    def _run_questions(self, inputs: Sequence[str | tuple[str, str]]) -> Sequence[Window | Refused]:
        """Questions with their contexts, in windows where they need them."""
        found = list(self._run(self.tokenizer, inputs))
        for place, whole in enumerate(found):
            if isinstance(whole, Refused) or len(whole) <= self._window:
                continue
            question = whole.sequence_ids.count(1 if self.context_first else 0)
            room = self._window - question - self.tokenizer.num_special_tokens_to_add(is_pair=True)
            if room <= self._stride:  # a window would not go on from the one before
                found[place] = Refused(
                    f"the question has {question} tokens, which leaves no room for a context beside it"
                )
            else:
                (found[place],) = self._run(self._windowed, [inputs[place]])
        return found

    def _read(self, item: Any) -> str | tuple[str, str] | Refused:
        """The text or pair that ``item`` is."""
        first, second = self._keys
        if isinstance(item, Mapping):
            if first not in item:
                return Refused(f"expected '{first}' in the item, found {_listed(item)}")
            single = item.get(second) is None and not self._asks
            item = item[first] if single else (item[first], item.get(second))
        if isinstance(item, str):
            if self._asks:
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

    def _check(self, text: str | tuple[str, str], window: Window | Refused, limit: int | None) -> Encoded | Refused:
        if isinstance(window, Refused):
            return window
        if all(window.special_tokens_mask):
            return Refused("the text is empty: no token is left of it")
        if limit is not None and len(window) > limit:
            return Refused(f"the text is too long: {len(window)} tokens, and the model takes {limit}")
        if self._known is not None and max(window.ids) >= self._known:
            return Refused(f"it has token {max(window.ids)}, and the model knows {self._known}: a foreign tokenizer")
        windows = (window, *window.overflowing) if self._asks else (window,)
        return Encoded(windows, text if isinstance(text, str) else text[1])


class Collator:
    """Pads sequences to one batch.

    Args:
        inputs: Name and numpy type of each input of the graph.
        padding: Token id at padded positions.
        token_types: Whether the tokenizer's token types are the model's; else they are all 0.
        filled: How long every sequence shall be, with padding that the model reads as it reads a token; None pads to
            the longest of a batch, and hides that.

    Raises:
        ArtefactError: The graph wants something that no text gives.
    """

    _MADE = ("input_ids", "attention_mask", "token_type_ids")

    def __init__(
        self,
        inputs: Mapping[str, type[np.generic]],
        padding: int,
        *,
        token_types: bool = True,
        filled: int | None = None,
    ) -> None:
        foreign = [name for name in inputs if name not in self._MADE]
        if foreign:
            raise ArtefactError(
                f"the graph takes '{foreign[0]}', which no text gives",
                todo="this loads models of texts; run the graph with compactor.runtime.sessions",
            )
        self._inputs, self._padding, self._token_types, self._filled = inputs, padding, token_types, filled

    def __call__(self, windows: Sequence[Window]) -> dict[str, NDArray[Any]]:
        """By input (B, S), S the longest of the B windows, or as long as all shall be; padding is on the right."""
        longest = max(self._filled or 1, *(len(window) for window in windows))
        beyond = {"input_ids": self._padding, "attention_mask": 0 if self._filled is None else 1}
        feeds = {
            name: np.full((len(windows), longest), beyond.get(name, 0), dtype) for name, dtype in self._inputs.items()
        }
        for row, window in enumerate(windows):
            length = len(window)
            for name, array in feeds.items():
                if name == "input_ids":
                    array[row, :length] = window.ids
                elif name == "attention_mask":
                    array[row, :length] = window.attention_mask
                elif self._token_types:
                    array[row, :length] = window.type_ids
        return feeds


def _cut(
    tokenizer: Any, settings: TokenizerSettings, length: int, strategy: str = "longest_first", stride: int = 0
) -> None:
    tokenizer.enable_truncation(length, strategy=strategy, stride=stride, direction=settings.truncation_side)


def _readable(text: Any, name: str) -> str | Refused:
    if not isinstance(text, str):
        return Refused(f"expected a text as {name}, got {_kind(text)}")
    if not text.strip():
        return Refused(f"the {name} is empty")
    if _broken(text):
        return Refused(f"the {name} is not valid Unicode: it holds half of a surrogate pair")
    return text


def _broken(text: str) -> bool:
    """Whether it holds half of a surrogate pair."""
    return any("\ud800" <= character <= "\udfff" for character in text)


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"{type(value).__name__}"


def _listed(item: Mapping[Any, Any]) -> str:
    return ", ".join(json.dumps(str(key)) for key in list(item)[:5]) or "nothing"
