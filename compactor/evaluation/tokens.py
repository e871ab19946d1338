"""Texts, pairs, questions and lists of words to token ids, by the model's own tokenizer."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compactor.companions.files import read_object
from compactor.companions.tokenizer import read_tokenizer
from compactor.errors import ModelDirectoryError, UsageError
from compactor.evaluation.datafiles import Table
from compactor.evaluation.inputs import InputSpec
from compactor.runtime.answers import Refused
from compactor.runtime.bucketing import Examples
from compactor.runtime.encoding import Encoded, TextEncoder
from compactor.runtime.sentences import Prompts
from compactor.runtime.tokenizer import read_limit
from compactor.tasks import TASKS

_REAL_LENGTH = 10**9  # transformers writes 10**30 for a tokenizer without a limit
_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "bpe.codes", "*.model", "*.spm")


class AnsweredTexts:
    """Texts and pairs to token ids by the very code that answers them, prompts, prefix and all."""

    def __init__(self, spec: InputSpec, table: Table) -> None:
        self._spec, self._table = spec, table
        task = TASKS[spec.task or "feature-extraction"]
        folder = spec.folder
        tokenizer = None if folder is None else read_tokenizer(folder, task)
        if folder is None or tokenizer is None:
            raise _no_tokenizer(folder)
        config = read_object(folder, "config.json") if (folder / "config.json").is_file() else {}
        prefix = config.get("prefix") if task.generates else None
        with tempfile.TemporaryDirectory(prefix="compactor-") as scratch:
            home = Path(scratch)
            tokenizer.write(home, max_tokens=spec.max_tokens, config=config)
            self.limit = read_limit(home)
            open_encoder = functools.partial(
                TextEncoder, home, task=task.name, limit=self.limit, prefix=prefix if isinstance(prefix, str) else ""
            )
            self._strict, self._cutting = open_encoder(), open_encoder(truncate=True)
        self._prompts = Prompts.read(folder)

    def encode(self, items: Sequence[Any]) -> tuple[list[dict[str, Any]], int]:
        """The encodings of all texts or pairs, and how many of them were cut."""
        found, cut = self.read(items)
        return self.arrays(found), cut

    def read(self, items: Sequence[Any], role: str | None = None) -> tuple[list[Encoded], int]:
        """All texts or pairs as the model takes them, and how many of them were cut.

        Args:
            items: One or more.
            role: What texts are for, ``query`` or ``document``, which chooses their prompt.
        """
        prompt = self._prompts.choose(role, None, None)
        found = self._strict.encode(items, prompt=prompt)
        refused = [i for i, each in enumerate(found) if isinstance(each, Refused)]
        again = self._cutting.encode([items[i] for i in refused], prompt=prompt)
        for i, each in zip(refused, again, strict=True):
            if isinstance(each, Refused):
                raise UsageError(
                    f"{self._table.places[i]} cannot be answered: {each.reason}",
                    where=str(self._table.path),
                    todo="complete or remove it",
                )
            found[i] = each
        return [each for each in found if isinstance(each, Encoded)], len(refused)

    def arrays(self, items: Sequence[Encoded]) -> list[dict[str, Any]]:
        """The inputs of each. Raises ModelDirectoryError where a token is none of the model's."""
        encoded = [
            {
                "input_ids": np.array(window.ids, np.int64),
                "attention_mask": np.array(window.attention_mask, np.int64),
                "token_type_ids": np.array(window.type_ids, np.int64)
                if self._spec.token_types > 1 and self._strict.settings.token_types
                else np.zeros(len(window), np.int64),
            }
            for window in (item.windows[0] for item in items)
        ]
        _check_vocabulary(encoded, self._spec)
        return encoded


class WordEncoder:
    """The tokenizer of words and questions; encodes everything at once, and again, cut, what turns out too long.

    Not that of the answers: their words are the tokenizer's own, and their contexts are read in windows; here the words
    are the data's, and an example is one sequence.
    """

    def __init__(self, spec: InputSpec, table: Table) -> None:
        self._spec, self._table = spec, table
        self._tokenizer = open_tokenizer(spec.folder)
        if not self._tokenizer.is_fast:
            raise ModelDirectoryError(
                "this tokenizer does not say where in the text a token is",
                where=str(spec.folder),
                todo="save it with a tokenizer.json beside it",
            )
        stated = self._tokenizer.model_max_length
        self.limit = spec.max_tokens or (int(stated) if stated < _REAL_LENGTH else None)

    def encode(
        self, first: Sequence[Any], second: Sequence[str] | None = None, *, cut_second: bool = False
    ) -> tuple[list[dict[str, Any]], int]:
        """The encodings of all texts, and how many of them were cut.

        Args:
            first: Texts, or lists of words.
            second: The other text of each.
            cut_second: Cut only that one, unless the first fills half of the model by itself.

        Returns:
            For each example ``input_ids``, ``attention_mask`` and ``token_type_ids``, and ``words`` or ``spans``.
        """
        encoded = self._run(first, second)
        limit = self.limit if self.limit is not None else max(len(found["input_ids"]) for found in encoded)
        long = [i for i, found in enumerate(encoded) if len(found["input_ids"]) > limit]
        heads = self._run([first[i] for i in long]) if cut_second and long else []
        only_second = [i for i, head in zip(long, heads, strict=False) if len(head["input_ids"]) <= limit // 2]
        longest = sorted({*long} - {*only_second})
        for rows, truncation in ((only_second, "only_second"), (longest, "longest_first")):
            if rows:
                seconds = None if second is None else [second[i] for i in rows]
                again = self._run([first[i] for i in rows], seconds, truncation=truncation)
                for i, found in zip(rows, again, strict=True):
                    encoded[i] = found
        self._check(encoded)
        return encoded, len(long)

    def _run(
        self, first: Sequence[Any], second: Sequence[str] | None = None, truncation: str | bool = False
    ) -> list[dict[str, Any]]:
        # Not its return_token_type_ids: tokenizers of models without token types would make up some.
        encoded = self._tokenizer(
            list(first),
            None if second is None else list(second),
            truncation=truncation,
            max_length=self.limit if truncation else None,
            is_split_into_words=self._spec.task == "token-classification",
            return_token_type_ids=self._spec.token_types > 1,
            return_offsets_mapping=True,
            verbose=False,
        )
        result = []
        for i, ids in enumerate(encoded["input_ids"]):
            one: dict[str, Any] = {
                "input_ids": np.array(ids, np.int64),
                "attention_mask": np.ones(len(ids), np.int64),
                "token_type_ids": np.array(encoded["token_type_ids"][i], np.int64)
                if self._spec.token_types > 1
                else np.zeros(len(ids), np.int64),
            }
            one["words"] = encoded.word_ids(i)
            one["spans"] = character_spans(encoded["offset_mapping"][i], encoded.sequence_ids(i))
            result.append(one)
        return result

    def _check(self, encoded: Sequence[dict[str, Any]]) -> None:
        for found, place in zip(encoded, self._table.places, strict=True):
            if not len(found["input_ids"]):
                raise UsageError(f"{place} has no text", where=str(self._table.path), todo="complete or remove it")
        _check_vocabulary(encoded, self._spec)


def _check_vocabulary(encoded: Sequence[dict[str, Any]], spec: InputSpec) -> None:
    largest = max(int(found["input_ids"].max()) for found in encoded)
    if largest >= spec.vocabulary:
        raise ModelDirectoryError(
            f"the tokenizer is not the model's: it gives token {largest} of {spec.vocabulary}",
            where=str(spec.folder),
            todo="put the model's own tokenizer there",
        )


def join(spec: InputSpec, encoded: Sequence[dict[str, Any]]) -> Examples:
    """Token ids as examples."""
    return Examples.join([{name: each[name] for name in spec.fill} for each in encoded], spec.fill)


def longest_of(tokenizer: Any, targets: Sequence[str]) -> int:
    """Tokens of the longest text that is to be written."""
    return max(len(ids) for ids in tokenizer(text_target=list(targets), verbose=False)["input_ids"])


def open_tokenizer(folder: Path | None) -> Any:
    """The tokenizer in ``folder``, without the network and without code from there.

    Raises:
        ModelDirectoryError: There is none, or it is damaged.
    """
    if folder is None or not any(any(folder.glob(name)) for name in _TOKENIZER_FILES):
        raise _no_tokenizer(folder)
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises bare Exception on a damaged file
        raise ModelDirectoryError(
            f"the tokenizer cannot be opened: {str(error).strip().splitlines()[0] if str(error).strip() else error!r}",
            where=str(folder),
            todo="repair its files",
        ) from error


def _no_tokenizer(folder: Path | None) -> ModelDirectoryError:
    return ModelDirectoryError(
        "there is no tokenizer, so texts cannot become tokens",
        where=None if folder is None else str(folder),
        todo="put tokenizer.json there, or measure with --seq or with --lengths and a file of numbers",
    )


def first_tokens(words: Sequence[int | None]) -> list[tuple[int, int]]:
    """The word and the position of each token that begins one."""
    return [
        (word, position)
        for position, word in enumerate(words)
        if word is not None and (position == 0 or words[position - 1] != word)
    ]


def character_spans(offsets: Sequence[tuple[int, int]], sequences: Sequence[int | None]) -> NDArray[np.int32]:
    """(S, 2): where each token is in the second text; -1 for tokens that are not of it."""
    return np.array(
        [span if sequence == 1 else (-1, -1) for span, sequence in zip(offsets, sequences, strict=True)], np.int32
    ).reshape(-1, 2)
