"""Answer every row of a file: plan its chunks, answer those that are not finished, join them.

INPUT ─▶ formats: chunks ─▶ scoring, here or on Ray ═▶ parts ─▶ joining ─▶ OUT
          found in one      one model a process,       one file  streamed,
          pass, no row      one chunk after the        a chunk   renamed
          kept              other
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import hashlib
import importlib.metadata
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnxruntime

from compactor.console import Progress, format_bytes
from compactor.errors import OutputError, UsageError, as_output_error
from compactor.predicting.answers import answer_fields
from compactor.predicting.columns import choose_columns
from compactor.predicting.formats import find_format, find_spans, open_input
from compactor.predicting.inputs import InputFile, Span
from compactor.predicting.joining import join_parts
from compactor.predicting.on_ray import RayOptions, score_on_ray
from compactor.predicting.pace import Pace
from compactor.predicting.parts import Parts, check_output
from compactor.predicting.scoring import Job, Reading, Scorer
from compactor.runtime.artefacts import MANIFEST, Artefact
from compactor.runtime.images import IMAGE_VECTORS, IMAGES
from compactor.runtime.reading import ReadingOptions, answer_type
from compactor.tasks import GENERATION

SCHEMA = 1
CHUNK_ROWS = 4096
LARGEST_CHUNK_ROWS = 100_000

# Rows of a chunk where an answer takes long, or its outputs fill the memory until it is read off.
_CHUNK_ROWS: Mapping[str, int] = {
    GENERATION: 64,
    "fill-mask": 64,
    "feature-extraction": 1024,
    IMAGES: 256,
    IMAGE_VECTORS: 256,
}


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What was done.

    Attributes:
        path: The output.
        rows: Rows in it.
        refused: How many of them have an error instead of an answer.
        resumed: How many of them an earlier run had answered.
        seconds: What this run took, from the first chunk to the last.
        rate: Rows a second that it answered; 0 where none were left.
        precision: Which of the artefact's graphs ran, on which provider, and why.
        columns: The columns that were read.
    """

    path: Path
    rows: int
    refused: int
    resumed: int
    seconds: float
    rate: float
    precision: str
    provider: str
    reason: str
    columns: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """All of it, as JSON has it."""
        return {**dataclasses.asdict(self), "path": str(self.path), "columns": list(self.columns)}


class PredictionInterrupted(KeyboardInterrupt):
    """Somebody stopped it; the same call goes on.

    Attributes:
        done: Rows that are kept.
        total: Rows in all.
    """

    def __init__(self, done: int, total: int) -> None:
        self.done, self.total = done, total
        super().__init__(f"{done} of {total} rows are kept")


def predict(
    artefact: str | Path,
    source: str | Path,
    out: str | Path,
    *,
    text: str | None = None,
    pair: str | None = None,
    keep: Sequence[str] = (),
    precision: str | None = None,
    provider: str | None = None,
    truncate: bool = False,
    role: str | None = None,
    prompt_name: str | None = None,
    aggregation: str = "simple",
    answer_tokens: int = 15,
    no_answer: bool = False,
    fills: int = 5,
    threads: int | None = None,
    chunk_rows: int | None = None,
    ray: RayOptions | None = None,
    overwrite: bool = False,
    progress: Progress = lambda message: None,
) -> Prediction:
    """Answer every row of ``source`` and write the answers to ``out``.

    Memory holds one chunk a process, however large the file is. A run that was interrupted or killed goes on where it
    stopped when it is started again, and its output is the same row for row.

    Args:
        artefact: A folder that ``export`` wrote.
        source: TSV with a header, JSON lines, or Parquet.
        out: The file to write, in the format that its name says.
        text: The column of the text, or of the question; by default the first with a usual name.
        pair: The column of the second text, or of the context.
        keep: Columns of the input that shall stand in the output.
        precision: ``fp32``, ``int8`` or ``fp16``; by default what is best on this machine.
        provider: ``cpu`` or ``cuda``; likewise.
        truncate: Cut texts that are too long instead of refusing them.
        role: ``query`` or ``document``: what the texts are for, where a model of vectors tells them apart.
        prompt_name: The folder's prompt that stands before each text; by default the one it names itself.
        aggregation: How tokens become entities, as in ``compactor.runtime.load``.
        answer_tokens: Tokens of the answer to a question, at most.
        no_answer: Whether a question may have no answer.
        fills: Tokens for each mask.
        threads: Of each process; by default the usable cores, shared among the processes.
        chunk_rows: Rows that are answered, and kept, together.
        ray: Spread the work over processes by Ray Data.
        overwrite: Begin anew, and replace ``out``.
        progress: Called with a line of text now and then.

    Raises:
        ArtefactError: The folder is no artefact.
        UsageError: The input cannot be read or lacks a column, or another run was interrupted here.
        OutputError: The output exists, or could not be written.
        PredictionInterrupted: Ctrl-C; what is answered is kept.
    """
    source, out = Path(source), Path(out)
    find_format(out)
    check_output(out, overwrite=overwrite)
    if source.resolve() == out.resolve():
        raise UsageError("the output is the input", where=str(out), todo="choose another name")
    if chunk_rows is not None and not 1 <= chunk_rows <= LARGEST_CHUNK_ROWS:
        raise UsageError(f"chunk_rows of {chunk_rows} is not from 1 to {LARGEST_CHUNK_ROWS:,}")
    opened = Artefact.open(artefact)
    choice = opened.choose(precision, provider)
    if ray is not None and choice.provider != "cpu":
        raise UsageError("workers on Ray run on CPUs, and on no GPU", todo="leave out --ray, or pass --provider cpu")
    how = Reading(ReadingOptions(aggregation, answer_tokens, no_answer, fills), role, prompt_name)
    how.check(opened)
    kind = answer_type(opened)
    answer = [field.name for field in answer_fields(kind, opened.labels)]
    table = open_input(source.absolute())
    columns = choose_columns(table, opened.task, answer, text=text, pair=pair, keep=keep)
    job = Job(
        opened.folder.absolute(),
        kind,
        opened.labels,
        choice.precision,
        choice.provider,
        truncate,
        how,
        table,
        columns,
    )
    chunk_rows = chunk_rows or _CHUNK_ROWS.get(opened.task, CHUNK_ROWS)
    spans = plan(table, chunk_rows, progress)
    total = sum(span.rows for span in spans)
    try:
        with Parts(out, _identity(job, chunk_rows), overwrite=overwrite) as parts:
            finished = parts.finished(spans)
            waiting = [span for span in spans if span.number not in finished]
            resumed = total - sum(span.rows for span in waiting)
            if resumed:
                progress(f"going on: {resumed:,} of {total:,} rows are answered")
            pace = Pace(total, resumed, progress)
            try:
                for span, content in _score(job, waiting, threads, ray, progress):
                    parts.write(span.number, content)
                    pace.add(span.rows)
                seconds, rate = pace.seconds, pace.rate
                progress("joining the chunks")
                refused = sum(parts.finished(spans).values())
                join_parts([parts.path(span.number) for span in spans], out)
            except KeyboardInterrupt:
                raise PredictionInterrupted(pace.done, total) from None
            parts.remove()
    except OSError as error:
        known = as_output_error(error, out)
        if known is None:
            raise
        todo = f"{known.todo}; the same again goes on from what is answered"
        raise OutputError(known.what, where=known.where, todo=todo) from error
    return Prediction(
        path=out,
        rows=total,
        refused=refused,
        resumed=resumed,
        seconds=seconds,
        rate=rate,
        precision=choice.precision,
        provider=choice.provider,
        reason=choice.reason,
        columns=columns.texts,
    )


def plan(source: InputFile, chunk_rows: int, progress: Progress = lambda message: None) -> list[Span]:
    """The chunks of a file: some numbers each, so that all of them fit into memory however many rows there are.

    Raises:
        UsageError: There are none.
    """

    def tell(done: int) -> None:
        progress(f"finding the rows: {format_bytes(done)} of {format_bytes(source.size_bytes)}")

    spans = list(find_spans(source, chunk_rows, tell))
    if not spans:
        raise UsageError("there are no rows in it", where=str(source.path))
    return spans


def _score(
    job: Job, spans: Sequence[Span], threads: int | None, ray: RayOptions | None, progress: Progress
) -> Generator[tuple[Span, bytes]]:
    """The part of each chunk, in any order."""
    if not spans:
        return
    if ray is not None:
        with contextlib.closing(score_on_ray(job, spans, ray, threads=threads, progress=progress)) as found:
            yield from found
        return
    progress("loading the model")
    scorer = Scorer(job, job.load(threads))
    for span in spans:
        yield span, scorer(span)


def _identity(job: Job, chunk_rows: int) -> dict[str, Any]:
    """All that an answer, or its place, depends on; in the words in which a difference is told."""
    manifest = (job.artefact / MANIFEST).read_bytes()
    return {
        "schema": SCHEMA,
        "input": {
            "format": job.source.format,
            "size in bytes": job.source.size_bytes,
            "time of change": _said(job.source.modified_ns),
        },
        "artefact": {"name": job.artefact.name, "manifest": hashlib.sha256(manifest).hexdigest()[:16]},
        "settings": {
            "text columns": list(job.columns.texts),
            "kept columns": list(job.columns.kept),
            "precision": job.precision,
            "provider": job.provider,
            "truncation": job.truncate,
            **job.how.identity(),
            "chunk rows": chunk_rows,
        },
        "version": {"compactor": importlib.metadata.version("compactor"), "onnxruntime": onnxruntime.__version__},
    }


def _said(moment_ns: int) -> str:
    """A time to the nanosecond: a file that was changed twice in a second was changed."""
    seconds, rest = divmod(moment_ns, 10**9)
    return f"{datetime.datetime.fromtimestamp(seconds, datetime.UTC):%Y-%m-%d %H:%M:%S}.{rest:09} UTC"
