"""Which columns of a file a model reads, by the names that are usual, and which of them stay in the output."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compactor.errors import UsageError
from compactor.evaluation.images import PATHS
from compactor.evaluation.texts import DOCUMENTS, PAIRS, QUESTIONS, SINGLES
from compactor.predicting.inputs import InputFile
from compactor.runtime.images import IMAGE_TASKS
from compactor.tasks import GENERATION

ROW = "row"
ERROR = "error"
_PREFIX = "input_"  # of a kept column that is called like one of the answer's


@dataclasses.dataclass(frozen=True)
class Columns:
    """What of the input is used.

    Attributes:
        texts: The column of the text; or of the two texts, of the question and its context.
        kept: The columns that stay.
        kept_as: What they are called in the output.
        folder: Of images: what their paths count from, the folder of the file.
    """

    texts: tuple[str, ...]
    kept: tuple[str, ...]
    kept_as: tuple[str, ...]
    folder: Path | None = None

    def items(self, texts: Sequence[Sequence[Any]]) -> list[Any]:
        """What the model gets for each row: a text, a pair of texts, or the path of an image."""
        if self.folder is not None:
            return [self.folder / value if _is_path(value) else value for value in texts[0]]
        return list(texts[0]) if len(texts) == 1 else list(zip(*texts, strict=True))


def choose_columns(
    source: InputFile, task: str, answer: Sequence[str], *, text: str | None, pair: str | None, keep: Sequence[str]
) -> Columns:
    """The columns that a task reads.

    Args:
        source: The file.
        task: What the model does.
        answer: The names of the answer's columns.
        text: The column of the text, or of the question, where the user named it.
        pair: The column of the second text, or of the context.
        keep: The columns that shall stay.

    Raises:
        UsageError: A column is missing.
    """
    if task in IMAGE_TASKS and pair is not None:
        raise UsageError("--pair names a second text, and this model takes images", todo="leave it")
    if text is None and pair is not None:
        raise UsageError("--pair names the second text, and no --text the first", todo="name both")
    texts = _usual(source, task) if text is None else tuple(_find(source, name) for name in (text, pair) if name)
    kept = tuple(dict.fromkeys(_find(source, name) for name in keep))
    taken = {ROW, *answer, ERROR}
    kept_as = tuple(f"{_PREFIX}{name}" if name in taken else name for name in kept)
    twice = next((name for name in kept_as if kept_as.count(name) > 1), None)
    if twice is not None:
        raise UsageError(
            f"two of the columns to keep would be called '{twice}'", where=str(source.path), todo="rename one of them"
        )
    return Columns(texts, kept, kept_as, source.path.parent if task in IMAGE_TASKS else None)


def _is_path(value: Any) -> bool:
    """Whether it is one that can be joined to a folder; of what is not the model says why."""
    return isinstance(value, str) and value != "" and "://" not in value


def _usual(source: InputFile, task: str) -> tuple[str, ...]:
    """The columns that have a usual name; case does not matter."""
    spelling = {name.casefold(): name for name in reversed(source.columns)}
    wanted: list[tuple[str, ...]]
    if task == "question-answering":
        wanted, what = [QUESTIONS], f"{' and '.join(QUESTIONS)}"
    elif task in IMAGE_TASKS:
        wanted, what = [(name,) for name in PATHS], f"paths of images: none of {', '.join(PATHS)}"
    elif task == GENERATION:
        names = tuple(dict.fromkeys((*DOCUMENTS, *SINGLES)))
        wanted, what = [(name,) for name in names], f"documents: none of {', '.join(names)}"
    else:
        pairs = PAIRS if task == "text-classification" else ()
        wanted = [*pairs, *((name,) for name in SINGLES)]
        what = f"text: none of {', '.join(SINGLES)}"
        what += f", nor a pair such as {' and '.join(PAIRS[0])}" if pairs else ""
    for names in wanted:
        if all(name in spelling for name in names):
            return tuple(spelling[name] for name in names)
    raise UsageError(
        f"there is no column of {what}",
        where=str(source.path),
        todo=f"name it with --text (and --pair); there are {', '.join(source.columns)}",
    )


def _find(source: InputFile, name: str) -> str:
    if name in source.columns:
        return name
    raise UsageError(
        f"there is no column '{name}'", where=str(source.path), todo=f"there are {', '.join(source.columns)}"
    )
