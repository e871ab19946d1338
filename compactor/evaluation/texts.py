"""Turn a table of texts into token ids by the model's own tokenizer, with what the right answers are.

One example gives one sequence. A text that is too long is cut to what the model takes: of a question and its context
the context, of two sentences the longer.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compactor.errors import UsageError
from compactor.evaluation.datafiles import Table, shown
from compactor.evaluation.inputs import InputSpec
from compactor.evaluation.tokens import AnsweredTexts, WordEncoder, first_tokens, join, longest_of, open_tokenizer
from compactor.runtime.bucketing import Examples
from compactor.runtime.encoding import Encoded
from compactor.tasks import GENERATION

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
SEARCHES = (
    ("query", "passage"),
    ("query", "document"),
    ("query", "positive"),
    ("anchor", "positive"),
    ("question", "passage"),
    ("question", "answer"),
    QUESTIONS,
)
SCORES = ("score", "similarity_score", "similarity")
EMBEDDING = "feature-extraction"
DOCUMENTS = ("document", "article", "text")
SUMMARIES = ("summary", "highlights", "target")
SINGLES = ("sentence", "text", "content", "review", "sentence1", "text1", "question")
LABELS = ("label", "labels", "gold_label", "class", "is_duplicate")
_WORDS = ("tokens", "words")
_TAGS = ("ner_tags", "pos_tags", "chunk_tags", "tags", "labels")

_IGNORED = -100  # a tag that marks a word as not to be scored
_SHOWN_LABELS = 12

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
class VectorTexts:
    """Texts whose vectors are compared with each other.

    Attributes:
        items: Each text once, as the model takes it.
        queries: (Q,) which of them are searched with.
        documents: (D,) which are searched for; the same as the queries where the file has one text a row.
        right: (Q,) the document of each query, as a place in ``documents``; None where the file has one text a row.
        scores: (Q,) how alike the file says that both are; None where it does not.
    """

    items: Sequence[Encoded]
    queries: NDArray[np.int64]
    documents: NDArray[np.int64]
    right: NDArray[np.int64] | None = None
    scores: NDArray[np.float64] | None = None


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
        vectors: Of texts whose vectors are judged: the items behind ``examples``, and what belongs together.
    """

    examples: Examples
    references: Sequence[Label] | Sequence[NDArray[np.int64]] | Sequence[Answers] | None
    guides: Sequence[Words] | Sequence[Context] | None = None
    notes: tuple[str, ...] = ()
    longest_reference: int = 0
    vectors: VectorTexts | None = None


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
    if spec.task == EMBEDDING and labelled:
        return _tokenize_for_vectors(table, spec)
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
    encoder = AnsweredTexts(spec, table)
    texts = [table.texts(column) for column in columns]
    encoded, cut = encoder.encode(texts[0] if len(texts) == 1 else list(zip(*texts, strict=True)))
    return Labelled(join(spec, encoded), references, notes=_cut_note(cut, len(table.rows), encoder.limit))


def _tokenize_for_vectors(table: Table, spec: InputSpec) -> Labelled:
    """Texts alone; or pairs, of which the first searches the second unless the file says how alike they are."""
    pair = next((pair for pair in (*SEARCHES, *PAIRS) if table.find(pair[0]) and table.find(pair[1])), None)
    encoder = AnsweredTexts(spec, table)
    if pair is None:
        single = table.find(*SINGLES)
        if single is None:
            pair = SEARCHES[0]
            raise _no_column(table, f"text: none of {', '.join(SINGLES)}, nor a pair such as {' and '.join(pair)}")
        items, cut = encoder.read(table.texts(single))
        rows = np.arange(len(items))
        texts = VectorTexts(items, rows, rows)
    else:
        first, second = (table.texts(_find(table, name)) for name in pair)
        scores = _read_scores(table)
        roles = ("query", "document") if scores is None else (None, None)
        distinct = list(dict.fromkeys(second))
        queries, cut = encoder.read(first, roles[0])
        documents, also = encoder.read(distinct, roles[1])
        places = {text: place for place, text in enumerate(distinct)}
        items, cut = [*queries, *documents], cut + also
        texts = VectorTexts(
            items,
            np.arange(len(queries)),
            len(queries) + np.arange(len(documents)),
            np.array([places[text] for text in second]),
            scores,
        )
    notes = _cut_note(cut, len(items), encoder.limit)
    return Labelled(join(spec, encoder.arrays(items)), None, notes=notes, vectors=texts)


def _read_scores(table: Table) -> NDArray[np.float64] | None:
    """How alike the two texts of a row are; None where no column says."""
    column = table.find(*SCORES)
    if column is None:
        return None
    scores = []
    for value, place in zip(table.column(column), table.places, strict=True):
        try:
            score = float(value)
        except (TypeError, ValueError):
            score = math.nan
        if not math.isfinite(score):
            raise UsageError(f"'{column}' of {place} is not a number: {shown(value)}", where=str(table.path))
        scores.append(score)
    return np.array(scores)


def _tokenize_words(table: Table, spec: InputSpec, *, labelled: bool) -> Labelled:
    column = table.find(*_WORDS)
    if column is None:
        raise _no_column(table, f"words: none of {', '.join(_WORDS)}")
    sentences = table.column(column)
    for words, place in zip(sentences, table.places, strict=True):
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise UsageError(f"'{column}' of {place} is not a list of words: {shown(words)}", where=str(table.path))
    tags = _read_tags(table, spec, sentences) if labelled else None
    encoder = WordEncoder(spec, table)
    encoded, cut = encoder.encode(sentences)
    firsts = [first_tokens(encoding["words"]) for encoding in encoded]
    notes = _cut_note(cut, len(table.rows), encoder.limit)
    if tags is None:
        return Labelled(join(spec, encoded), None, notes=notes)
    guides, references = [], []
    for found, each in zip(firsts, tags, strict=True):
        kept = [(position, each[word]) for word, position in found if each[word] != _IGNORED]
        guides.append(Words(np.array([position for position, _ in kept], np.int64)))
        references.append(np.array([tag for _, tag in kept], np.int64))
    if not any(len(reference) for reference in references):
        raise UsageError("no word has a tag", where=str(table.path), todo=f"a tag of {_IGNORED} is not scored")
    return Labelled(join(spec, encoded), references, guides, notes)


def _tokenize_questions(table: Table, spec: InputSpec, *, labelled: bool) -> Labelled:
    question, context = QUESTIONS
    if table.find(question) is None or table.find(context) is None:
        raise _no_column(table, f"'{question}' and '{context}'")
    references = _read_answers(table) if labelled else None
    contexts = table.texts(_find(table, context))
    encoder = WordEncoder(spec, table)
    encoded, cut = encoder.encode(table.texts(_find(table, question)), contexts, cut_second=True)
    guides = [Context(text, encoding["spans"]) for text, encoding in zip(contexts, encoded, strict=True)]
    notes = _cut_note(cut, len(table.rows), encoder.limit, ", and an answer behind that cannot be found")
    return Labelled(join(spec, encoded), references, guides, notes)


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
        longest = longest_of(open_tokenizer(spec.folder), [text for (text,) in references])
    encoder = AnsweredTexts(spec, table)
    encoded, cut = encoder.encode(table.texts(column))
    notes = _cut_note(cut, len(table.rows), encoder.limit)
    return Labelled(join(spec, encoded), references, notes=notes, longest_reference=longest)


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
