"""The inputs that every variant is measured on: random tokens of given lengths, or real text with its labels.

All variants get the same files. Each batch is an ``.npz`` with every input that some variant may want; the queries of
the server scenario, which come one by one, are ``Examples`` in one file.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from compactor.benching.parts import choose_parts, scoring_part, split_cases
from compactor.benching.plan import Case, Scenario
from compactor.errors import UsageError
from compactor.evaluation.datafiles import read_lengths, read_table
from compactor.evaluation.inputs import Feeds, InputSpec
from compactor.evaluation.quality import choose_metrics
from compactor.evaluation.texts import Labelled, VectorTexts, tokenize
from compactor.evaluation.vectors import SPEARMAN, usable_metrics
from compactor.runtime.bucketing import Examples, Rows, by_length, in_order

if TYPE_CHECKING:
    from compactor.benching.request import Request
    from compactor.benching.targets import Targets

DEFAULT_LENGTHS = (32, 128, 384)
SCORING_BATCH = 32  # examples in a batch where answers are judged
_QUERIES = 256  # different ones; the server scenario asks them again and again
_IMAGE_QUERIES = 32  # they are large


@dataclasses.dataclass
class Workload:
    """What is measured on.

    Attributes:
        kind: Where it comes from.
        spec: The model it is for.
        cases: What is timed; none in the server scenario.
        queries: The examples of the server scenario, as ``Examples``; None in the others.
        file: The user's file; None for random tokens.
        sha256: Of that file.
        labelled: All examples of the file with their labels, as far as it has any; None for random tokens.
        scoring: All of these examples once, in the file's order, to judge the answers by; None without labels.
        metrics: What the answers are judged by; none without labels.
        notes: What the reader should know.
        rows: Of the server scenario, which examples of the file the queries are; None for random tokens.
        count: How many examples the file holds, where they are not tokenized here.
    """

    kind: Literal["synthetic", "lengths", "data"]
    spec: InputSpec
    cases: Sequence[Case] = ()
    queries: Path | None = None
    file: Path | None = None
    sha256: str | None = dataclasses.field(init=False, default=None)
    labelled: Labelled | None = None
    scoring: Case | None = None
    metrics: Sequence[str] = ()
    notes: list[str] = dataclasses.field(default_factory=list)
    rows: Rows | None = None
    count: int | None = None

    def __post_init__(self) -> None:
        if self.file is not None:
            self.sha256 = hashlib.sha256(self.file.read_bytes()).hexdigest()

    @property
    def metric(self) -> str | None:
        """The metrics as the user writes them."""
        return ",".join(self.metrics) or None

    @property
    def examples(self) -> int | None:
        """How many the file holds; None for random tokens."""
        return self.count if self.labelled is None else len(self.labelled.examples)

    def to_json(self) -> dict[str, Any]:
        """The report's ``workload`` block."""
        return {
            "kind": self.kind,
            "file": None if self.file is None else self.file.name,
            "sha256": self.sha256,
            "examples": self.examples,
            "lengths": None if self.labelled is None else summarise_lengths(self.labelled.examples.lengths),
            "cases": [
                {
                    **describe_case(case),
                    "part": None
                    if case.part is None
                    else {name: getattr(case.part, name) for name in ("kind", "past", "new_tokens", "beams")},
                }
                for case in self.cases
            ],
        }


def describe_case(case: Case) -> dict[str, Any]:
    """What a report says of the inputs of a case."""
    return {
        "id": case.id,
        "batch": case.batch,
        "seq": case.seq,
        "batches": len(case.files),
        "examples": case.examples,
        "tokens": case.tokens,
        "positions": case.positions,
        "bucketed": case.bucketed,
    }


def plan_workload(folder: Path, request: Request, targets: Targets, *, limit: int | None = None) -> Workload:
    """The inputs that the user asked for, written into ``folder``.

    Args:
        folder: Where the files go.
        request: What was asked for, with its ``batches``. Without ``seqs``, random examples have usual lengths.
        targets: What is measured.
        limit: Time at most this many examples of a file; None takes all.

    Raises:
        UsageError: The request contradicts itself, the file or the model.
        ModelDirectoryError: There is no usable tokenizer.
    """
    lengths, data, metric = request.lengths, request.data, request.metric
    if lengths is not None and data is not None:
        raise UsageError("--lengths and --data are two sources of lengths", todo="leave out one of them")
    if metric is not None and data is None:
        raise UsageError(f"--metric {metric} needs labelled examples", todo="add --data FILE, or leave out --metric")
    spec = InputSpec.from_config(
        targets.config, task=targets.task, folder=targets.tokenizer, image=targets.image, limit=targets.max_length
    )
    parts = choose_parts(request, spec.max_tokens) if targets.generates else None
    common: dict[str, Any] = {"batches": request.batches or (), "scenario": request.scenario}
    if lengths is not None:
        workload = from_lengths(folder, lengths, spec, limit=limit, seed=request.seed, **common)
    elif data is not None:
        workload = from_data(folder, data, spec, limit=limit, metric=metric, **common)
    else:
        workload = synthetic(folder, spec, seqs=request.seqs, seed=request.seed, **common)
    if parts is not None:
        start = targets.config.get("decoder_start_token_id")
        workload.cases = split_cases(workload.cases, parts, spec, start=start, seed=request.seed)
        if workload.scoring is not None and workload.labelled is not None:
            part = scoring_part(targets.search, workload.labelled.longest_reference, spec.max_tokens)
            workload.scoring = dataclasses.replace(workload.scoring, part=part)
    return workload


def synthetic(
    folder: Path,
    spec: InputSpec,
    *,
    batches: Sequence[int],
    seqs: Sequence[int] | None = None,
    scenario: Scenario = "single",
    seed: int = 0,
) -> Workload:
    """Random tokens, or images, without padding: one case for each length and batch size.

    Args:
        folder: Where the files go.
        spec: The model.
        batches: Examples in a batch.
        seqs: Tokens in an example; None takes those of 32, 128 and 384 that the model takes. Not for images.
        scenario: In ``server``, queries of all ``seqs`` in turn.
        seed: The same seed, the same tokens.

    Raises:
        UsageError: A length is beyond what the model takes, or a number is no size.
    """
    _check_batches(batches)
    random = np.random.default_rng(seed)
    sizes = list(dict.fromkeys(batches))
    queries: Examples | None = None
    made: Iterator[tuple[str, int, int | None, Feeds]]
    if spec.image is not None:
        if seqs is not None:
            raise UsageError("this model takes images, which have no length in tokens", todo="leave out --seq")
        if scenario == "server":
            pixels = spec.random_images(random, _IMAGE_QUERIES)["pixel_values"]
            queries = Examples.join([{"pixel_values": image} for image in pixels], {})
        made = ((f"batch {batch}", batch, None, spec.random_images(random, batch)) for batch in sizes)
    else:
        lengths = list(dict.fromkeys(seqs)) if seqs is not None else default_lengths(spec)
        for length in lengths:
            spec.check_length(length)
        if scenario == "server":
            rows = [spec.random_tokens(random, lengths[i % len(lengths)]) for i in range(_QUERIES)]
            queries = Examples.join(rows, spec.fill)
        made = (
            (f"{batch}x{length}", batch, length, spec.random_tokens(random, batch, length))
            for length in lengths
            for batch in sizes
        )
    if queries is not None:
        return Workload("synthetic", spec, queries=_write_queries(folder, queries))
    cases = []
    for name, batch, seq, feeds in made:
        tokens = batch * (seq or 0)
        cases.append(Case(name, batch, seq, (_write(folder, name, feeds),), batch, tokens, tokens))
    return Workload("synthetic", spec, cases)


def default_lengths(spec: InputSpec) -> list[int]:
    """The usual lengths, as far as the model takes them, or its maximum."""
    limit = spec.max_tokens
    return [length for length in DEFAULT_LENGTHS if limit is None or length <= limit] or [limit or DEFAULT_LENGTHS[0]]


def from_lengths(
    folder: Path,
    file: Path,
    spec: InputSpec,
    *,
    batches: Sequence[int],
    scenario: Scenario = "single",
    limit: int | None = None,
    seed: int = 0,
) -> Workload:
    """Random tokens with the lengths in a file of whole numbers; or the texts of a data file, whatever their labels.

    Texts take a ``spec`` with a tokenizer. ``limit`` is as of ``from_data``, the others are as of ``synthetic``.

    Raises:
        UsageError: The file cannot be used, or a length in it is beyond what the model takes.
    """
    if spec.image is not None:
        raise UsageError("this model takes images, which have no length in tokens", todo="leave out --lengths")
    _check_batches(batches)
    lengths = read_lengths(file)
    if lengths is None:
        labelled = tokenize(read_table(file), spec, labelled=False)
    else:
        for length in lengths:
            spec.check_length(length, where=str(file), option="lengths")
        random = np.random.default_rng(seed)
        labelled = Labelled(Examples.join([spec.random_tokens(random, length) for length in lengths], spec.fill), None)
    workload = Workload("lengths", spec, file=file, labelled=labelled, notes=[*labelled.notes])
    _time_examples(workload, folder, labelled.examples, batches, scenario, limit)
    return workload


def from_data(
    folder: Path,
    file: Path,
    spec: InputSpec,
    *,
    batches: Sequence[int],
    scenario: Scenario = "single",
    limit: int | None = None,
    metric: str | None = None,
) -> Workload:
    """Real text and its labels. ``limit`` concerns what is timed; the answers are judged on all examples.

    Args:
        folder: Where the files go.
        file: The texts, with labels where the task has any.
        spec: The model, with a tokenizer.
        batches: Examples in a batch.
        scenario: See ``docs/scenarios.md``.
        limit: Time at most this many examples, whose lengths are spread as in all; None takes all.
        metric: One or several, with commas; None takes the task's own.

    Raises:
        UsageError: The file cannot be used, has no labels, or the metric is not for the task.
        ModelDirectoryError: There is no usable tokenizer.
    """
    _check_batches(batches)
    metrics = choose_metrics(spec.task, metric)
    labelled = tokenize(read_table(file), spec, labelled=True)
    examples = labelled.examples
    workload = Workload("data", spec, file=file, labelled=labelled, notes=[*labelled.notes])
    _time_examples(workload, folder, examples, batches, scenario, limit)
    if labelled.references is None and labelled.vectors is None:
        return workload
    if labelled.vectors is not None:
        metrics = _of_vectors(metrics, labelled.vectors, file, asked=metric is not None)
    if len(examples) < 2 or (labelled.vectors is not None and len(labelled.vectors.queries) < 2):
        if metric is not None:
            raise UsageError("a metric needs two examples or more", where=str(file), todo="leave out --metric")
        workload.notes.append("A single example says nothing about quality, so none is given.")
        return workload
    rows = in_order(examples.lengths, SCORING_BATCH)
    workload.scoring = _case(folder, "scoring", SCORING_BATCH, examples, rows)
    workload.metrics = metrics
    return workload


def _of_vectors(metrics: Sequence[str], texts: VectorTexts, file: Path, *, asked: bool) -> tuple[str, ...]:
    """Those of the metrics that the file has the texts for. Raises UsageError where one was asked for that it lacks."""
    usable = usable_metrics(texts)
    missing = [name for name in metrics if name not in usable]
    if asked and missing:
        needs = "pairs of texts with a 'score'" if missing[0] == SPEARMAN else "pairs of texts without a 'score'"
        raise UsageError(
            f"the metric '{missing[0]}' needs {needs}",
            where=str(file),
            todo=f"choose from: {', '.join(usable)}; docs/data.md names the columns",
        )
    return tuple(name for name in metrics if name in usable)


def from_texts(file: Path, sizes: NDArray[np.int64], limit: int | None) -> Workload:
    """Texts that are not tokenized here, since endpoints do that.

    Args:
        file: The texts.
        sizes: (N,) characters in each.
        limit: Send at most this many of them, whose sizes are spread as in all; None takes all.
    """
    workload = Workload("data", InputSpec(0), file=file, rows=_spread(sizes, limit), count=len(sizes))
    if limit is not None and limit < len(sizes):
        workload.notes.append(f"Sent {limit} of the {len(sizes)} texts, chosen so that their sizes are as in all.")
    return workload


def summarise_lengths(lengths: NDArray[np.int64]) -> dict[str, float]:
    """How long the examples are."""
    median, p90, p95 = (round(float(value), 1) for value in np.percentile(lengths, (50, 90, 95)))
    mean = round(float(lengths.mean()), 2)
    return {
        "min": int(lengths.min()),
        "median": median,
        "p90": p90,
        "p95": p95,
        "max": int(lengths.max()),
        "mean": mean,
    }


def _time_examples(
    workload: Workload, folder: Path, examples: Examples, batches: Sequence[int], scenario: Scenario, limit: int | None
) -> None:
    """Give the workload the cases, or for the server the queries, of a file's examples."""
    timed = _spread(examples.lengths, limit)
    if len(timed) < len(examples):
        workload.notes.append(
            f"Timed on {len(timed)} of the {len(examples)} examples, chosen so that the lengths are as in all."
        )
    if scenario == "server":
        chosen = Examples.join([examples[int(row)] for row in timed], examples.padding)
        workload.queries, workload.rows = _write_queries(folder, chosen), timed
        return
    if max(batches) > len(timed):
        workload.notes.append(f"A batch of {max(batches)} is one of {len(timed)}, as there are no more examples.")
    cases = []
    for batch in dict.fromkeys(min(batch, len(timed)) for batch in batches):
        if scenario == "single":
            # Each batch is full: a smaller one at the end would be a faster one among the latencies.
            full = [timed[start : start + batch] for start in range(0, len(timed) - batch + 1, batch)]
            cases.append(_case(folder, f"batch {batch}", batch, examples, full))
            continue
        ordered = [timed[rows] for rows in in_order(examples.lengths[timed], batch)]
        if 1 < batch < len(timed):
            bucketed = [timed[rows] for rows in by_length(examples.lengths[timed], batch)]
            cases.append(_case(folder, f"batch {batch}, in order", batch, examples, ordered, bucketed=False))
            cases.append(_case(folder, f"batch {batch}, bucketed", batch, examples, bucketed, bucketed=True))
        else:  # nothing to put together
            cases.append(_case(folder, f"batch {batch}", batch, examples, ordered))
    workload.cases = cases


def _spread(lengths: NDArray[np.int64], limit: int | None) -> Rows:
    """At most ``limit`` examples whose lengths are distributed as those of all, in the order they came."""
    if limit is None or len(lengths) <= limit:
        return np.arange(len(lengths))
    middles = (np.arange(limit) + 0.5) / limit * len(lengths)
    return np.sort(np.argsort(lengths, kind="stable")[middles.astype(np.intp)])


def _case(
    folder: Path, name: str, batch: int, examples: Examples, batches: Sequence[Rows], *, bucketed: bool | None = None
) -> Case:
    """Write the batches and describe them."""
    files = tuple(_write(folder, f"{name}.{i}", examples.batch(rows)) for i, rows in enumerate(batches))
    lengths = [examples.lengths[rows] for rows in batches]
    return Case(
        name,
        batch,
        None,
        files,
        examples=sum(map(len, lengths)),
        tokens=sum(int(each.sum()) for each in lengths),
        positions=sum(len(each) * int(each.max()) for each in lengths),
        bucketed=bucketed,
    )


def _check_batches(batches: Sequence[int]) -> None:
    if not batches or min(batches) < 1:
        raise UsageError(f"expected batches of 1 or more, got {list(batches)}", todo="change --batch")


def _write(folder: Path, name: str, feeds: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.npz"
    np.savez(path, **feeds)
    return path


def _write_queries(folder: Path, examples: Examples) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "queries.npz"
    examples.save(path)
    return path
