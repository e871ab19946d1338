"""Read the files of examples and of lengths: TSV, JSON lines, JSON in SQuAD's form, or one number a line.

Text is UTF-8, with or without a byte order mark, and lines end as on any system. Fields of a TSV are taken as they
are, quotes and all, as in GLUE. What cannot be read is an error that names the line.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compactor.errors import UsageError

_JSON_SUFFIXES = {".json"}
_JSON_LINES_SUFFIXES = {".jsonl", ".ndjson"}
_TSV_SUFFIXES = {".tsv", ".tab"}
_SHOWN = 60  # characters of a bad value in a message

FORMATS = "TSV with a header, JSON lines, or JSON in SQuAD's form; see docs/data.md"


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of named fields.

    Attributes:
        path: The file, for messages.
        rows: The fields by name: text in a TSV, any JSON value elsewhere.
        places: Where each row is, ``line 7`` or ``entry 7``.
    """

    path: Path
    rows: Sequence[Mapping[str, Any]]
    places: Sequence[str]

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the fields, by the first row."""
        return tuple(self.rows[0])

    def find(self, *names: str) -> str | None:
        """The first of ``names`` that is a column, in the file's spelling: case does not matter."""
        spelling = {column.casefold(): column for column in reversed(self.columns)}
        return next((spelling[name] for name in names if name in spelling), None)

    def column(self, name: str) -> list[Any]:
        """One field of every row.

        Raises:
            UsageError: A row lacks it.
        """
        for row, place in zip(self.rows, self.places, strict=True):
            if name not in row:
                raise UsageError(f"{place} has no '{name}'", where=str(self.path), todo="complete or remove it")
        return [row[name] for row in self.rows]

    def texts(self, name: str) -> list[str]:
        """One field of every row, which must be text.

        Raises:
            UsageError: A row lacks it, or has something else there.
        """
        values = self.column(name)
        for value, place in zip(values, self.places, strict=True):
            if not isinstance(value, str):
                raise UsageError(f"'{name}' of {place} is not text: {shown(value)}", where=str(self.path))
        return values


def read_table(path: Path) -> Table:
    """The rows of a TSV, JSON lines or SQuAD file; by its suffix, or by its first character.

    Raises:
        UsageError: It cannot be read, or holds no rows.
    """
    text = _read_text(path)
    kind = _kind(path, text)
    table = {"tsv": _read_tsv, "lines": _read_json_lines, "json": _read_json}[kind](path, text)
    if not table.rows:
        raise UsageError("there are no examples in it", where=str(path), todo=f"expected {FORMATS}")
    return table


def read_lengths(path: Path) -> list[int] | None:
    """The lengths in a file of one whole number a line, or of one JSON list; None where it holds something else.

    Raises:
        UsageError: It cannot be read, or a number in it is not a length.
    """
    text = _read_text(path)
    values: list[Any]
    if text.lstrip().startswith("[") and path.suffix.lower() not in _JSON_LINES_SUFFIXES:
        values = _parse(path, text, "the file")
        if not values:
            raise UsageError("there are no lengths in it", where=str(path), todo=_LENGTHS)
        if isinstance(values[0], Mapping):
            return None
        places = [f"entry {i + 1}" for i in range(len(values))]
    else:
        lines = [(f"line {i + 1}", line.strip()) for i, line in enumerate(text.split("\n")) if line.strip()]
        if _whole(lines[0][1]) is None:
            return None
        places, values = [place for place, _ in lines], [value for _, value in lines]
    lengths = []
    for place, value in zip(places, values, strict=True):
        length = _whole(value)
        if length is None or length < 1:
            raise UsageError(f"{place} is not a length: {shown(value)}", where=str(path), todo=_LENGTHS)
        lengths.append(length)
    return lengths


_LENGTHS = "expected whole numbers of 1 or more, one a line or in one JSON list; or a data file, whose texts count"


def shown(value: object) -> str:
    """A value as a message shows it."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


def _whole(value: Any) -> int | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and value.removeprefix("-").isdecimal() and len(value) < 20:
        return int(value)
    return None


def _kind(path: Path, text: str) -> str:
    suffix = path.suffix.lower()
    if suffix in _TSV_SUFFIXES:
        return "tsv"
    if suffix in _JSON_LINES_SUFFIXES:
        return "lines"
    if suffix in _JSON_SUFFIXES or text.lstrip().startswith("["):
        return "json"
    return "lines" if text.lstrip().startswith("{") else "tsv"


def _read_text(path: Path) -> str:
    try:
        content = path.read_bytes()
    except IsADirectoryError:
        raise UsageError("is a folder, not a data file", where=str(path), todo=f"expected {FORMATS}") from None
    except OSError as error:
        raise UsageError(f"cannot be read: {error.strerror}", where=str(path), todo="check the path") from error
    if b"\0" in content:
        line = content.count(b"\n", 0, content.index(b"\0")) + 1
        raise UsageError(f"line {line} holds a zero byte, so it is not text", where=str(path), todo=_UTF8)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UsageError(f"line {line} is not UTF-8 text", where=str(path), todo=_UTF8) from None
    if not text.strip():
        raise UsageError("the file is empty", where=str(path), todo=f"expected {FORMATS}")
    # Only at line ends: a text may hold any other separator, which splitlines() would take for one.
    return text.replace("\r\n", "\n")


_UTF8 = "save it as UTF-8 text, not compressed"


def _read_tsv(path: Path, text: str) -> Table:
    header, *lines = text.split("\n")
    names = [name.strip() for name in header.split("\t")]
    if len(set(names)) < len(names):
        raise UsageError("two columns have the same name", where=str(path), todo=f"the header is: {shown(header)}")
    rows, places = [], []
    for number, line in enumerate(lines, start=2):
        if not line:
            continue
        fields = line.split("\t")
        if len(fields) != len(names):
            raise UsageError(
                f"line {number} has {len(fields)} fields and the header {len(names)}",
                where=str(path),
                todo=f"fields are separated by tabs and quotes mean nothing; the header is: {shown(header)}",
            )
        rows.append(dict(zip(names, fields, strict=True)))
        places.append(f"line {number}")
    return Table(path, rows, places)


def _read_json_lines(path: Path, text: str) -> Table:
    rows, places = [], []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            rows.append(_as_object(path, _parse(path, line, f"line {number}"), f"line {number}"))
            places.append(f"line {number}")
    return Table(path, rows, places)


def _read_json(path: Path, text: str) -> Table:
    content = _parse(path, text, "the file")
    if isinstance(content, Mapping) and isinstance(content.get("data"), list):
        content = content["data"]
        if content and all(isinstance(entry, Mapping) and "paragraphs" in entry for entry in content):
            content = _flatten_squad(path, content)
    if not isinstance(content, list):
        raise UsageError("expected a list of examples, or SQuAD's 'data'", where=str(path), todo=f"expected {FORMATS}")
    places = [f"entry {i + 1}" for i in range(len(content))]
    return Table(path, [_as_object(path, row, place) for row, place in zip(content, places, strict=True)], places)


def _flatten_squad(path: Path, articles: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row a question, its paragraph as ``context``."""
    try:
        return [
            {**question, "context": paragraph["context"]}
            for article in articles
            for paragraph in article["paragraphs"]
            for question in paragraph["qas"]
        ]
    except (KeyError, TypeError) as error:
        raise UsageError(
            f"not in SQuAD's form: {error}", where=str(path), todo="expected paragraphs with qas"
        ) from error


def _parse(path: Path, text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{place} is not JSON: {error}", where=str(path), todo=f"expected {FORMATS}") from error


def _as_object(path: Path, value: Any, place: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise UsageError(f"{place} is not an object: {shown(value)}", where=str(path), todo=f"expected {FORMATS}")
    return value
