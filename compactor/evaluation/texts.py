"""Turn a table of texts into token ids by the model's own tokenizer, with what the right answers are.

One example gives one sequence. A text that is too long is cut to what the model takes: of a question and its context
the context, of two sentences the longer.
"""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compactor.errors import ModelDirectoryError, UsageError
from compactor.evaluation.datafiles import Table, shown
from compactor.evaluation.inputs import InputSpec
from compactor.model_files import read_object
from compactor.runtime.answers import Refused
from compactor.runtime.bucketing import Examples
from compactor.runtime.encoding import Encoded, TextEncoder
from compactor.runtime.sentences import Prompts
from compactor.runtime.tokenizer import read_limit
from compactor.source_tokenizer import read_tokenizer
from compactor.tasks import GENERATION, TASKS

# Columns by their usual names, in lower case; the first that is there.
PAIRS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("text1", "text2"),
    ("text", "text_pair"),
)
QUESTIONS = ("question", "context")
DOCUMENTS = ("document", "article", "text")
SUMMARIES = ("summary", "highlights", "target")
SINGLES = ("sentence", "text", "content", "review", "sentence1", "text1", "question")
LABELS = ("label", "labels", "gold_label", "class", "is_duplicate")
_WORDS = ("tokens", "words")
_TAGS = ("ner_tags", "pos_tags", "chunk_tags", "tags", "labels")

_IGNORED = -100  # a tag that marks a word as not to be scored
_REAL_LENGTH = 10**9  # transformers writes 10**30 for a tokenizer without a limit
_SHOWN_LABELS = 12
_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "bpe.codes", "*.model")

Label = int
Answers = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Words:
    """Where the scored words of an example begin.

    Attributes:
        positions: (W,) the first token of each word.
    """

    positions: NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class Context:
    """What an answer is taken from.

    Attributes:
        text: The context, in full.
        spans: (S, 2) where each token begins and ends in it; -1 for tokens of the question and special ones.
    """

    text: str
    spans: NDArray[np.int32]


@dataclasses.dataclass(frozen=True)
class Labelled:
    """Tokens and what is known of them.

    Attributes:
        examples: The token ids.
        references: The right answers, one an example: a label, an array of the words' tags, or the accepted answers or
            summaries; a question without an accepted answer has none. None where the file has none.
        guides: What it takes to read an answer off the outputs: ``Words`` or ``Context``; None for one label a text.
        notes: What the reader should know.
        longest_reference: Tokens of the longest summary; 0 where there are none.
    """

    examples: Examples
    references: Sequence[Label] | Sequence[NDArray[np.int64]] | Sequence[Answers] | None
    guides: Sequence[Words] | Sequence[Context] | None = None
    notes: tuple[str, ...] = ()
    longest_reference: int = 0


def tokenize(table: Table, spec: InputSpec, *, labelled: bool) -> Labelled:
    """The examples of a table as the model takes them.

    Args:
        table: Texts, under the usual column names.
        spec: The model, with the folder of its tokenizer.
        labelled: Whether the right answers are wanted; not for tasks that have none.

    Raises:
        UsageError: The columns are missing, or a label is none of the model's.
        ModelDirectoryError: There is no tokenizer, or not the model's.
    """
    if spec.image is not None:
        raise UsageError("this model takes images, and no text", where=str(table.path), todo="leave out the data file")
    if spec.task == "question-answering":
        return _tokenize_questions(table, spec, labelled=labelled)
    if spec.task == "token-classification":
        return _tokenize_words(table, spec, labelled=labelled)
    if spec.task == GENERATION:
        return _tokenize_documents(table, spec, labelled=labelled)
    return _tokenize_texts(table, spec, labelled=labelled and spec.task == "text-classification")


def _tokenize_texts(table: Table, spec: InputSpec, *, labelled: bool) -> Labelled:
    pair = next((pair for pair in PAIRS if table.find(pair[0]) and table.find(pair[1])), None)
    single = table.find(*SINGLES)
    if spec.task == "text-classification" and pair is not None:
        columns = [_find(table, pair[0]), _find(table, pair[1])]
    elif single is not None:
        columns = [single]
    else:
        raise _no_column(table, f"text: none of {', '.join(SINGLES)}, nor a pair such as {' and '.join(PAIRS[0])}")
    references = _read_labels(table, spec) if labelled else None
    encoder = _Answered(spec, table)
    texts = [table.texts(column) for column in columns]
    encoded, cut = encoder.encode(texts[0] if len(texts) == 1 else list(zip(*texts, strict=True)))
    return Labelled(_join(spec, encoded), references, notes=_cut_note(cut, len(table.rows), encoder.limit))


def _tokenize_words(table: Table, spec: InputSpec, *, labelled: bool) -> Labelled:
    column = table.find(*_WORDS)
    if column is None:
        raise _no_column(table, f"words: none of {', '.join(_WORDS)}")
    sentences = table.column(column)
    for words, place in zip(sentences, table.places, strict=True):
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise UsageError(f"'{column}' of {place} is not a list of words: {shown(words)}", where=str(table.path))
    tags = _read_tags(table, spec, sentences) if labelled else None
    encoder = _Encoder(spec, table, needs_offsets=True)
    encoded, cut = encoder.encode(sentences)
    firsts = [_first_tokens(encoding["words"]) for encoding in encoded]
    notes = _cut_note(cut, len(table.rows), encoder.limit)
    if tags is None:
        return Labelled(_join(spec, encoded), None, notes=notes)
    guides, references = [], []
    for found, each in zip(firsts, tags, strict=True):
        kept = [(position, each[word]) for word, position in found if each[word] != _IGNORED]
        guides.append(Words(np.array([position for position, _ in kept], np.int64)))
        references.append(np.array([tag for _, tag in kept], np.int64))
    if not any(len(reference) for reference in references):
        raise UsageError("no word has a tag", where=str(table.path), todo=f"a tag of {_IGNORED} is not scored")
    return Labelled(_join(spec, encoded), references, guides, notes)


def _tokenize_questions(table: Table, spec: InputSpec, *, labelled: bool) -> Labelled:
    question, context = QUESTIONS
    if table.find(question) is None or table.find(context) is None:
        raise _no_column(table, f"'{question}' and '{context}'")
    references = _read_answers(table) if labelled else None
    contexts = table.texts(_find(table, context))
    encoder = _Encoder(spec, table, needs_offsets=True)
    encoded, cut = encoder.encode(table.texts(_find(table, question)), contexts, cut_second=True)
    guides = [Context(text, encoding["spans"]) for text, encoding in zip(contexts, encoded, strict=True)]
    notes = _cut_note(cut, len(table.rows), encoder.limit, ", and an answer behind that cannot be found")
    return Labelled(_join(spec, encoded), references, guides, notes)


def _tokenize_documents(table: Table, spec: InputSpec, *, labelled: bool) -> Labelled:
    names = dict.fromkeys((*DOCUMENTS, *(() if labelled else SINGLES)))
    column = table.find(*names)
    if column is None:
        raise _no_column(table, f"documents: none of {', '.join(names)}")
    references: list[Answers] | None = None
    longest = 0
    if labelled:
        summaries = table.find(*SUMMARIES)
        if summaries is None:
            raise _missing(table, SUMMARIES)
        references = [(text,) for text in table.texts(summaries)]
        longest = _longest(open_tokenizer(spec.folder), [text for (text,) in references])
    encoder = _Answered(spec, table)
    encoded, cut = encoder.encode(table.texts(column))
    notes = _cut_note(cut, len(table.rows), encoder.limit)
    return Labelled(_join(spec, encoded), references, notes=notes, longest_reference=longest)


def _find(table: Table, name: str) -> str:
    column = table.find(name)
    assert column is not None
    return column


def _no_column(table: Table, what: str) -> UsageError:
    return UsageError(
        f"there is no column of {what}",
        where=str(table.path),
        todo=f"rename one of its columns: {', '.join(table.columns)}",
    )


def _cut_note(cut: int, count: int, limit: int | None, also: str = "") -> tuple[str, ...]:
    """The sentence about texts that were too long."""
    return (f"{cut} of {count} texts were cut to the model's {limit} tokens{also}.",) if cut else ()


# The right answers


def _missing(table: Table, names: Sequence[str]) -> UsageError:
    return UsageError(
        f"there are no labels: no column {' or '.join(names)} among {', '.join(table.columns)}",
        where=str(table.path),
        todo=f"add the labels, or pass --lengths {table.path.name}, which measures speed on these texts alone",
    )


def _read_labels(table: Table, spec: InputSpec) -> list[int]:
    column = table.find(*LABELS)
    if column is None:
        raise _missing(table, LABELS)
    if spec.label_count < 2:
        raise UsageError(
            "the model has a single output, a number instead of a label, and no metric here is for that",
            where=str(table.path),
            todo=f"pass --lengths {table.path.name}, which measures speed on these texts alone",
        )
    read = label_reader(spec)
    labels = []
    for value, place in zip(table.column(column), table.places, strict=True):
        label = read(value)
        if label is None:
            raise foreign_label(table, spec, place, value)
        labels.append(label)
    return labels


def _read_tags(table: Table, spec: InputSpec, sentences: Sequence[Sequence[str]]) -> list[list[int]]:
    column = table.find(*_TAGS)
    if column is None:
        raise _missing(table, _TAGS)
    read = label_reader(spec)
    result = []
    for values, words, place in zip(table.column(column), sentences, table.places, strict=True):
        if not isinstance(values, list) or len(values) != len(words):
            raise UsageError(f"'{column}' of {place} is not one tag a word: {shown(values)}", where=str(table.path))
        tags = []
        for value in values:
            tag = _IGNORED if value == _IGNORED else read(value)
            if tag is None:
                raise foreign_label(table, spec, place, value)
            tags.append(tag)
        result.append(tags)
    return result


def label_reader(spec: InputSpec) -> Callable[[Any], int | None]:
    """A function from a label in a file, a name or a number, to its id; None where it is none of the model's."""
    folded = {name.casefold(): number for name, number in spec.labels.items()}

    def read(value: Any) -> int | None:
        if isinstance(value, str):
            name = value.strip()
            if name in spec.labels:
                return spec.labels[name]
            if name.casefold() in folded:
                return folded[name.casefold()]
            value = int(name) if name.isdecimal() and len(name) < 10 else None
        if isinstance(value, bool) or (isinstance(value, float) and value.is_integer()):
            value = int(value)
        return value if isinstance(value, int) and 0 <= value < spec.label_count else None

    return read


def foreign_label(table: Table, spec: InputSpec, place: str, value: Any) -> UsageError:
    """The error of a label that ``label_reader`` does not know."""
    names = list(spec.labels)[:_SHOWN_LABELS] + (["…"] if len(spec.labels) > _SHOWN_LABELS else [])
    return UsageError(
        f"the label of {place} is none of the model's: {shown(value)}",
        where=str(table.path),
        todo=f"expected 0 to {spec.label_count - 1}" + (f", or one of {', '.join(names)}" if names else ""),
    )


def _read_answers(table: Table) -> list[Answers]:
    column = table.find("answers")
    if column is None:
        raise _missing(table, ("answers",))
    result = []
    for value, place in zip(table.column(column), table.places, strict=True):
        texts = value.get("text") if isinstance(value, dict) else value
        if isinstance(texts, list):  # SQuAD's own form is a list of objects
            texts = [text.get("text") if isinstance(text, dict) else text for text in texts]
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise UsageError(
                f"'{column}' of {place} is not in SQuAD's form: {shown(value)}",
                where=str(table.path),
                todo='expected {"text": ["…"]}, with an empty list where there is no answer',
            )
        result.append(tuple(texts))
    return result


# Token ids


class _Answered:
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
        self._prompt = Prompts.read(folder).choose(None, None, None)

    def encode(self, items: Sequence[Any]) -> tuple[list[dict[str, Any]], int]:
        """The encodings of all texts or pairs, and how many of them were cut."""
        found = self._strict.encode(items, prompt=self._prompt)
        refused = [i for i, each in enumerate(found) if isinstance(each, Refused)]
        again = self._cutting.encode([items[i] for i in refused], prompt=self._prompt)
        for i, each in zip(refused, again, strict=True):
            if isinstance(each, Refused):
                raise UsageError(
                    f"{self._table.places[i]} cannot be answered: {each.reason}",
                    where=str(self._table.path),
                    todo="complete or remove it",
                )
            found[i] = each
        windows = [each.windows[0] for each in found if isinstance(each, Encoded)]
        encoded = [
            {
                "input_ids": np.array(window.ids, np.int64),
                "attention_mask": np.array(window.attention_mask, np.int64),
                "token_type_ids": np.array(window.type_ids, np.int64)
                if self._spec.token_types > 1 and self._strict.settings.token_types
                else np.zeros(len(window), np.int64),
            }
            for window in windows
        ]
        _check_vocabulary(encoded, self._spec)
        return encoded, len(refused)


class _Encoder:
    """The tokenizer of words and questions; encodes everything at once, and again, cut, what turns out too long.

    Not that of the answers: their words are the tokenizer's own, and their contexts are read in windows; here the words
    are the data's, and an example is one sequence.
    """

    def __init__(self, spec: InputSpec, table: Table, *, needs_offsets: bool = False) -> None:
        self._spec, self._table, self._needs_offsets = spec, table, needs_offsets
        self._tokenizer = open_tokenizer(spec.folder)
        if needs_offsets and not self._tokenizer.is_fast:
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
            return_offsets_mapping=self._needs_offsets,
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
            if self._needs_offsets:
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


def _join(spec: InputSpec, encoded: Sequence[dict[str, Any]]) -> Examples:
    """Token ids as examples."""
    return Examples.join([{name: each[name] for name in spec.fill} for each in encoded], spec.fill)


def _longest(tokenizer: Any, targets: Sequence[str]) -> int:
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


def _first_tokens(words: Sequence[int | None]) -> list[tuple[int, int]]:
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
