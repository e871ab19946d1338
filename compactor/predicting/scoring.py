"""From a chunk of rows to the bytes of its part: what each process does, alone or as one of many."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from compactor.predicting.answers import answer_arrays, answer_fields
from compactor.predicting.columns import ROW, Columns
from compactor.predicting.formats import open_reader
from compactor.predicting.inputs import InputFile, Rows, Span
from compactor.predicting.parts import REFUSED
from compactor.runtime.answers import Refused

if TYPE_CHECKING:
    from compactor.predicting.inputs import Reader
    from compactor.runtime.model import Model


@dataclasses.dataclass(frozen=True)
class Job:
    """What is to be answered, by what: all that a process on another machine needs to know.

    Attributes:
        artefact: The artefact's folder.
        task: What its model does.
        labels: The names of its labels.
        precision: Which of its graphs runs.
        provider: Where.
        truncate: Whether texts that are too long are cut instead of refused.
        source: The file.
        columns: What of it is used.
    """

    artefact: Path
    task: str
    labels: tuple[str, ...]
    precision: str
    provider: str
    truncate: bool
    source: InputFile
    columns: Columns

    def load(self, threads: int | None) -> Model:
        """The model."""
        from compactor.runtime.model import load

        return load(
            self.artefact, precision=self.precision, provider=self.provider, truncate=self.truncate, threads=threads
        )


class Scorer:
    """Answers chunks, one after the other.

    Args:
        job: What is to be done.
        model: The job's model.
    """

    def __init__(self, job: Job, model: Model) -> None:
        self._columns, self._model = job.columns, model
        self._fields = answer_fields(job.task, job.labels)
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
        answers = iter(self._model([item for place, item in enumerate(items) if place not in rows.errors]))
        return [Refused(rows.errors[place]) if place in rows.errors else next(answers) for place in range(len(items))]
