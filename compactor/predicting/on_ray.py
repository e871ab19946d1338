"""Chunks answered by Ray Data: a pool of actors, each with one model, on this machine or on a cluster's.

What travels to an actor is where a chunk lies, and what comes back are the bytes of its part, the same that one
process makes. So the input and the artefact must be readable on every machine under the same path, and only the
process that the user started writes. An actor that dies is started again by Ray and its chunk is answered again; were
it answered twice, both answers are the same part. A chunk over which actors die again and again ends the run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import sys
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any, cast

from compactor.console import Progress
from compactor.errors import CompactorError, OutputError, UsageError
from compactor.predicting.inputs import Span
from compactor.predicting.scoring import Job, Scorer
from compactor.runtime.errors import RuntimeSetupError
from compactor.runtime.signals import own_sigterm
from compactor.runtime.threads import usable_cores

_MOST_BLOCKS = 10_000  # pieces that Ray Data keeps track of; a piece is one chunk, of a very large file several
_STORE_BYTES = 512 * 2**20  # parts on their way


@dataclasses.dataclass(frozen=True)
class RayOptions:
    """How to spread the work over processes.

    Attributes:
        workers: How many; by default one for each core.
        address: Of a running cluster; None starts Ray on this machine, and stops it at the end.
    """

    workers: int | None = None
    address: str | None = None


def score_on_ray(
    job: Job, spans: Sequence[Span], options: RayOptions, *, threads: int | None, progress: Progress
) -> Generator[tuple[Span, bytes]]:
    """The part of each chunk, in the order in which they are finished.

    Args:
        job: What is to be done.
        spans: The chunks.
        options: How many actors, and where.
        threads: Of each actor's model; by default the cores, shared among the actors.
        progress: Called with a line of text now and then.

    Raises:
        UsageError: The input or the artefact cannot be read on a machine, or there is no cluster at the address.
        OutputError: A chunk's actor died again and again.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no telemetry
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # what is below is retried, and no concern of the user
    import ray

    starts_ray = options.address is None and not ray.is_initialized()
    workers, cores = options.workers, usable_cores()
    if starts_ray:
        workers = min(workers or cores, len(spans))
        threads = threads or max(1, cores // workers)
    threads = threads or 1
    progress("starting Ray" if starts_ray else f"connecting to Ray at {options.address or 'this process'}")
    with running(options.address, cpus=(workers or 1) * threads):
        if workers is None:
            resources: Any = ray.cluster_resources()  # type: ignore[no-untyped-call]
            workers = max(1, int(resources.get("CPU", 1)) // threads)
        workers = min(workers, len(spans))
        progress(f"starting {workers} {'worker' if workers == 1 else 'workers'}")
        by_number = {span.number: span for span in spans}
        for row in _answered(job, spans, workers, threads, at_once=starts_ray):
            if row["error"]:
                raise _as_error(json.loads(row["error"]))
            yield by_number[row["number"]], row["part"]


def _answered(
    job: Job, spans: Sequence[Span], workers: int, threads: int, *, at_once: bool
) -> Iterator[Mapping[str, Any]]:
    """A row for each chunk, from Ray Data."""
    import ray

    logging.getLogger("ray.data._internal").setLevel(logging.ERROR)  # not its parent, which Ray Data sets again
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    rows = [{"number": s.number, "first": s.first, "rows": s.rows, "start": s.start, "stop": s.stop} for s in spans]
    starts = ray.remote(_Starts).options(num_cpus=0, max_restarts=-1, max_task_retries=-1).remote()
    dataset = ray.data.from_items(rows, override_num_blocks=min(len(rows), _MOST_BLOCKS)).map(
        cast("Any", Worker),
        fn_constructor_args=(job, threads, starts),
        # A cluster may have fewer free cores than were asked for: it begins with what it has.
        compute=ray.data.ActorPoolStrategy(min_size=workers if at_once else 1, max_size=workers),
        num_cpus=threads,
    )
    tables: Any = dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
    for table in tables:
        yield from table.to_pylist()


class Worker:
    """An actor: answers the chunks that it is given. What a user can mend is answered too, as an error."""

    retries = 5  # of a chunk whose actor died; more is no accident

    def __init__(self, job: Job, threads: int, starts: Any) -> None:
        self._job, self._threads, self._starts = job, threads, starts
        self._scorer: Scorer | None = None

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """A chunk's part."""
        import ray

        span = Span(**{name: int(value) for name, value in row.items()})
        try:
            if ray.get(self._starts.begin.remote(span.number)) > self.retries + 1:
                raise OutputError(
                    f"workers died {self.retries + 1} times over rows {span.first:,} to {span.first + span.rows - 1:,}",
                    todo="if memory ran out, go on with fewer --workers; what is answered is kept",
                )
            if self._scorer is None:
                self._scorer = Scorer(self._job, self._job.load(self._threads))
            return {"number": span.number, "part": self._scorer(span), "error": ""}
        except (CompactorError, RuntimeSetupError) as error:
            said = {"kind": type(error).__name__, "what": error.what, "where": error.where, "todo": error.todo}
            return {"number": span.number, "part": b"", "error": json.dumps(said)}


class _Starts:
    """An actor that outlives the workers: how often each chunk was begun. Ray itself retries without an end."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()

    def begin(self, number: int) -> int:
        """Count a start, and say the how-manyth it is."""
        self._counts[number] += 1
        return self._counts[number]


def _as_error(said: Mapping[str, str | None]) -> CompactorError:
    """A worker's error, in this process."""
    kind = OutputError if said["kind"] == "OutputError" else UsageError
    return kind(said["what"] or "", where=said["where"], todo=said["todo"])


@contextlib.contextmanager
def running(address: str | None, *, cpus: int) -> Iterator[None]:
    """Ray while the block runs: the one that this process uses already, that at ``address``, or one of its own."""
    import ray

    if ray.is_initialized():
        yield
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    own: dict[str, Any] = {
        "num_cpus": cpus,
        "include_dashboard": False,
        "object_store_memory": _STORE_BYTES,
    }
    with own_sigterm(), _closed_stderr():
        try:
            ray.init(address=address or "local", **quiet, **({} if address else own))
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise UsageError(
                f"Ray cannot be reached: {(str(error).strip().splitlines() or [repr(error)])[0]}",
                where=address,
                todo="see 'ray status' on that machine" if address else "see Ray's logs",
            ) from error
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _closed_stderr() -> Iterator[None]:
    """Keep what Ray's core prints at its start, in C++, away from stderr; its errors are exceptions as well."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as sink:
            os.dup2(sink.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
