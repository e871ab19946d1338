"""From a chunk of rows to the bytes of its part: what each process does, alone or as one of many."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from compactor.errors import UsageError
from compactor.predicting.answers import answer_arrays, answer_fields
from compactor.predicting.columns import ROW, Columns
from compactor.predicting.formats import open_reader
from compactor.predicting.inputs import InputFile, Rows, Span
from compactor.predicting.parts import REFUSED
from compactor.runtime.answers import Answer, Refused
from compactor.runtime.reading import ReadingOptions
from compactor.runtime.sentences import Prompts

if TYPE_CHECKING:
    from compactor.predicting.inputs import Reader
    from compactor.runtime.artefacts import Artefact
    from compactor.runtime.model import Model


@dataclasses.dataclass(frozen=True)
class Reading:
    """How texts are taken, and answers read.

    Attributes:
        options: How answers are read.
        role: What the texts are for; None where nobody said.
        prompt_name: The prompt that stands before them; None for the folder's own choice.
    """

    options: ReadingOptions = dataclasses.field(default_factory=ReadingOptions)
    role: str | None = None
    prompt_name: str | None = None

    def check(self, artefact: Artefact) -> None:
        """Raises UsageError where the artefact has no such prompt or role."""
        try:
            Prompts.read(artefact.folder).choose(self.role, self.prompt_name, None)
        except ValueError as error:
            raise UsageError(str(error), where=str(artefact.folder)) from error

    def identity(self) -> dict[str, Any]:
        """What of it differs from the default, in the words in which a difference is told."""
        stated = {**dataclasses.asdict(self.options), "role": self.role, "prompt": self.prompt_name}
        usual = {**dataclasses.asdict(ReadingOptions()), "role": None, "prompt": None}
        return {name.replace("_", " "): value for name, value in stated.items() if value != usual[name]}


@dataclasses.dataclass(frozen=True)
class Job:
    """What is to be answered, by what: all that a process on another machine needs to know.

    Attributes:
        artefact: The artefact's folder.
        kind: What its model answers with.
        labels: The names of its labels.
        precision: Which of its graphs runs.
        provider: Where.
        truncate: Whether texts that are too long are cut instead of refused.
        how: How texts are taken, and answers read.
        source: The file.
        columns: What of it is used.
    """

    artefact: Path
    kind: type[Answer]
    labels: tuple[str, ...]
    precision: str
    provider: str
    truncate: bool
    how: Reading
    source: InputFile
    columns: Columns

    def load(self, threads: int | None) -> Model:
        """The model."""
        from compactor.runtime.model import load

        return load(
            self.artefact,
            precision=self.precision,
            provider=self.provider,
            truncate=self.truncate,
            threads=threads,
            **dataclasses.asdict(self.how.options),
        )


class Scorer:
    """Answers chunks, one after the other.

    Args:
        job: What is to be done.
        model: The job's model.
    """

    def __init__(self, job: Job, model: Model) -> None:
        self._columns, self._model, self._how = job.columns, model, job.how
        self._fields = answer_fields(job.kind, job.labels)
        self._reader: Reader = open_reader(job.source, job.columns.texts, job.columns.kept)

    def __call__(self, span: Span) -> bytes:
        """The part of a chunk: its row numbers, what is kept, its answers and errors."""
        rows = self._reader.read(span)
        answers = self._answer(rows)
        kept = [field.with_name(name) for field, name in zip(rows.kept.schema, self._columns.kept_as, strict=True)]
        refused = sum(isinstance(answer, Refused) for answer in answers)
        schema = pa.schema([pa.field(ROW, pa.int64()), *kept, *self._fields], metadata={REFUSED: str(refused).encode()})
        numbers = pa.array(range(span.first, span.first + span.rows), pa.int64())
        arrays = [numbers, *rows.kept.columns, *answer_arrays(self._fields, answers)]
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, schema) as writer:
            writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=schema))
        content: bytes = sink.getvalue().to_pybytes()
        return content

    def _answer(self, rows: Rows) -> Sequence[Any]:
        """One answer a row; the model gets those that could be read, all at once."""
        items = self._columns.items(rows.texts)
        readable = [item for place, item in enumerate(items) if place not in rows.errors]
        answers = iter(self._model(readable, role=self._how.role, prompt_name=self._how.prompt_name))
        return [Refused(rows.errors[place]) if place in rows.errors else next(answers) for place in range(len(items))]
