"""The server scenario: the highest rate of random arrivals at which a high percentile of the latencies keeps a bound.

    spec["serve"] = {"queries": FILE, "max_batch": 8, "qps": None, "duration_s": 10, "bound_ms": 50, "seed": 17}
    run(engine, spec) -> {"serve": {"best_qps": 212.4, "probes": [...], ...}}

One rate that is tried is a *probe*. The search starts at seven tenths of the rate that full batches reach, and halves
the interval on a log scale; what it finds must hold with other arrivals too. ``docs/scenarios.md`` says what is on the
clock, and what differs from MLPerf.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from compactor.benching.server.queueing import Seconds, Served, Timeline, WallTime, percentile, poisson_arrivals, serve
from compactor.runtime.bucketing import Examples
from compactor.runtime.sampling import Clock, Meter

if TYPE_CHECKING:
    from compactor.benching.engines import Engine

TARGET_PERCENTILE = 99.0
"""Of the latencies; what the bound is for, where the sample supports it."""
TOLERANCE = 1.03
"""The rate that is found and the lowest one that failed differ by this factor at most."""

_BEYOND = 10  # samples above a percentile, at least, for it to be reported: 1,000 in all for the 99th
_PERCENTILES = (99.0, 95.0, 90.0)
_FEWEST = 20  # queries in a probe, however long they take
_MOST = 20_000  # a 99th percentile gains nothing from more, and the report keeps each of them
_LONGER = 2.0  # a probe may take so many times its duration to reach the samples for the 99th percentile
_PATIENCE = 4.0  # a probe ends when a query has waited for so many bounds
_CAPACITY_CALLS = 5
_CAPACITY_S = 1.0
_FIRST = 0.7  # the first rate tried, as a share of the capacity
_DOWN = 2.0
_HOPELESS = 1 / 32  # of the capacity: no lower rate is tried
_LOWERED = 4  # times, by 1.03, 1.03**2, 1.03**4 and 1.03**8

Probe = dict[str, Any]
ProbeRate = Callable[[float, int], Probe]  # tries a rate, with a seed


@dataclasses.dataclass(frozen=True)
class Load:
    """What the server is to bear; ``spec["serve"]`` without the queries.

    Attributes:
        max_batch: Queries that are answered together, at most.
        qps: The only rate to try; None searches for the highest.
        duration_s: Of one probe; up to twice as long where it takes that to reach 1,000 queries.
        bound_ms: What the 99th percentile of the latencies must not exceed; None only asks that the server keeps up.
        seed: Of the arrivals, and of which example each query is.
    """

    max_batch: int
    qps: float | None
    duration_s: float
    bound_ms: float | None
    seed: int

    @classmethod
    def from_block(cls, block: Mapping[str, Any]) -> Load:
        """From ``spec["serve"]``, whose files of queries do not matter here."""
        return cls(**{field.name: block[field.name] for field in dataclasses.fields(cls)})

    @property
    def give_up_s(self) -> float:
        """How long a query may wait before its probe is ended."""
        return self.duration_s if self.bound_ms is None else _PATIENCE * self.bound_ms / 1e3


class Server(Protocol):
    """What bears a load."""

    def measure_capacity(self) -> tuple[float, float]:
        """About the highest rate that it serves, in queries a second, and the milliseconds of a query alone."""

    def probe(self, qps: float, seed: int) -> Probe:
        """Let queries arrive at a rate, and see."""


def run(engine: Engine, spec: Mapping[str, Any], *, timeline: Timeline | None = None) -> dict[str, Any]:
    """Play the server scenario; ``spec["serve"]`` holds the file of the queries and the fields of ``Load``.

    Returns:
        ``{"serve": block}``, the block as in the report, and with ``capacity_qps``, the rate that full batches reach,
        and ``lone_ms``, the median latency of a query that meets an idle server.
    """
    examples, load = Examples.load(Path(spec["serve"]["queries"])), Load.from_block(spec["serve"])
    server = _Server(engine, examples, load, timeline or WallTime())
    server.warm_up(Clock(**spec["clock"]))
    return {"serve": play(server, load)}


def play(server: Server, load: Load) -> dict[str, Any]:
    """Find the highest rate of a server that is warm, or try the one that was asked for.

    Returns:
        The block of one process; see ``run``.
    """
    capacity, lone_ms = server.measure_capacity()
    notes: list[str] = []
    if load.qps is not None:
        probes = [server.probe(load.qps, load.seed)]
        best = load.qps if probes[0]["ok"] else None
        notes.append("one rate was asked for, and no other tried")
    elif load.bound_ms is not None and lone_ms > load.bound_ms:
        probes = [server.probe(_digits(_HOPELESS * capacity), load.seed)]
        best = probes[0]["qps"] if probes[0]["ok"] else None
        notes.append(f"one query alone takes {lone_ms:.3g} ms, which is over the bound of {load.bound_ms:.3g} ms")
    else:
        best, probes = find_rate(server.probe, capacity, load.seed)
        if any(probe["ok"] for probe in probes) and best is None:
            notes.append(
                "no rate kept the bound with other arrivals too: the machine is not quiet, or the probes are too short"
            )
        elif best is None:
            notes.append(f"no rate kept the bound, down to {min(probe['qps'] for probe in probes):g} queries/s")
    # What decided: the last probe at the best rate; where none was ok, that of the lowest rate.
    kept = [probe for probe in probes if probe["qps"] == best and probe["ok"]]
    decisive = kept[-1] if kept else min(probes, key=lambda probe: float(probe["qps"]))
    percent = decisive["percentile"]
    if percent != TARGET_PERCENTILE:
        which = "largest latency" if percent == 100 else f"{percent:g}th percentile"
        notes.append(
            f"with {decisive['queries']} queries in a probe the bound is for the {which}: a 99th percentile takes 1,000"
        )
    return {
        "bound_ms": load.bound_ms,
        "percentile": percent,
        "max_batch": load.max_batch,
        "best_qps": best,
        "probes": probes,
        "note": "; ".join(notes) or None,
        "capacity_qps": capacity,
        "lone_ms": lone_ms,
    }


def combine(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The report's ``server`` block from the ``serve`` blocks of several processes.

    ``best_qps`` is the median of the processes', the lower of the middle two where their number is even, so that it is
    a rate that was tried; a process in which no rate kept the bound counts as below all others. Each probe gets the
    number of its process.
    """
    if not results:
        raise ValueError("expected at least one process")
    order = sorted(results, key=lambda result: result["best_qps"] or 0.0)
    middle = order[(len(order) - 1) // 2]
    notes = list(dict.fromkeys(result["note"] for result in results if result["note"] is not None))
    found = [result["best_qps"] for result in results]
    if len(set(found)) > 1:
        rates = ", ".join("none" if rate is None else f"{rate:g}" for rate in found)
        notes.append(f"the median of {len(results)} processes: {rates} queries/s")
    return {
        **{key: middle[key] for key in ("bound_ms", "percentile", "max_batch", "best_qps")},
        "probes": [{**probe, "process": i} for i, result in enumerate(results) for probe in result["probes"]],
        "note": "; ".join(notes) or None,
        "capacity_qps": statistics.median(result["capacity_qps"] for result in results),
        "lone_ms": statistics.median(result["lone_ms"] for result in results),
    }


def find_rate(probe: ProbeRate, capacity_qps: float, seed: int) -> tuple[float | None, list[Probe]]:
    """The highest rate that is ok, to ``TOLERANCE``, and every probe on the way.

    All probes of the search have the same arrivals, only closer together or wider apart, so that a higher rate is
    harder. The rate that was found is tried once more with other arrivals. Where it fails, the search goes on with
    these below it.

    Args:
        probe: Tries a rate with a seed; its result has ``ok``.
        capacity_qps: About the highest rate that can be served at all. Not trusted as a limit.
        seed: Of the search; the confirmation takes the next one.

    Returns:
        The rate, None where none is ok that is worth the name.
    """
    probes: list[Probe] = []

    def holds(rate: float, seed: int) -> bool:
        probes.append(probe(rate, seed))
        return bool(probes[-1]["ok"])

    low: float | None = None
    high: float | None = None
    rate = _digits(_FIRST * capacity_qps)
    while low is None or high is None:
        if holds(rate, seed):
            low, rate = rate, _digits(rate / _FIRST)
        else:
            high, rate = rate, _digits(rate / _DOWN)
            if low is None and rate < _HOPELESS * capacity_qps:
                return None, probes
    low = _narrow(low, high, lambda rate: holds(rate, seed))

    if holds(low, seed + 1):
        return low, probes
    for attempt in range(_LOWERED):
        low, high = _digits(low / TOLERANCE ** (2**attempt)), low
        if holds(low, seed + 1):
            return _narrow(low, high, lambda rate: holds(rate, seed + 1)), probes
    return None, probes


def _narrow(low: float, high: float, holds: Callable[[float], bool]) -> float:
    """Halve the interval between a rate that holds and one that does not, on a log scale; the highest that holds."""
    while high / low > TOLERANCE:
        rate = _digits(math.sqrt(low * high))
        if holds(rate):
            low = rate
        else:
            high = rate
    return low


def count_queries(qps: float, duration_s: float) -> int:
    """How many queries a probe has.

    As many as its duration takes; more, for up to twice that time, where it takes them for the 99th percentile; never
    fewer than 20 or more than 20,000.
    """
    wanted = max(math.ceil(qps * duration_s), _samples_for(TARGET_PERCENTILE))
    return min(max(min(wanted, math.floor(_LONGER * qps * duration_s)), _FEWEST), _MOST)


def highest_percentile(samples: int) -> float:
    """The highest percentile, of 99, 95 and 90, above which ten samples lie; below 100 samples the largest, 100."""
    return next((percent for percent in _PERCENTILES if samples >= _samples_for(percent)), 100.0)


def draw_queries(load: Load, qps: float, seed: int, different: int) -> tuple[Seconds, NDArray[np.intp]]:
    """(N,) when the queries of a probe are due, and which of the ``different`` ones each of them is."""
    count = count_queries(qps, load.duration_s)
    rows = np.random.default_rng([seed, 1]).integers(0, different, count)
    return poisson_arrivals(qps, count, seed), rows


def judge(served: Served, bound_ms: float | None) -> Probe:
    """The numbers of one probe, without its rate."""
    answered = served.arrivals[: len(served.done)]
    return describe_probe(
        served.arrivals, answered, served.done, bound_ms, saturated=served.saturated, mean_batch=served.mean_batch
    )


def describe_probe(
    arrivals: Seconds,
    due: Seconds,
    done: Seconds,
    bound_ms: float | None,
    *,
    saturated: bool,
    mean_batch: float | None = None,
    statuses: Mapping[str, int] | None = None,
    sent_late_ms: float | None = None,
) -> Probe:
    """The report's block of one probe, without its rate.

    It is ok when it did not saturate, the percentile that it supports keeps the bound, and no status is another than
    ``ok``. What was left unanswered has no latency, so that the percentiles of a probe that was given up are those of
    its beginning. The last answer does not count for the achieved rate: N queries at one a second are due within N - 1
    seconds; LoadGen counts them so too.

    Args:
        arrivals: (N,) when the queries were due.
        due: (M,) of them, those that were answered.
        done: (M,) when.
        bound_ms: What the percentile must not exceed; None sets no bound.
        saturated: Whether queries came faster than they were answered.
        mean_batch: Queries in a batch; None where that is unknown.
        statuses: How the queries of an endpoint ended.
        sent_late_ms: By how much queries were sent to an endpoint too late.
    """
    latencies = np.round(1e3 * (done - due), 3)
    count = len(latencies)
    percent = highest_percentile(count)

    def at(percent: float) -> float | None:
        return percentile(latencies, percent) if count else None

    kept = bound_ms is None or (count > 0 and percentile(latencies, percent) <= bound_ms)
    all_answered = statuses is None or statuses["ok"] == sum(statuses.values())
    duration = max(float(done.max() - arrivals[0]), 0.0) if count else 0.0
    return {
        "queries": count,
        "percentile": percent,
        "p50_ms": at(50),
        "p90_ms": at(90),
        "p95_ms": at(95) if count >= _samples_for(95.0) else None,
        "p99_ms": at(99) if count >= _samples_for(99.0) else None,
        "max_ms": at(100),
        "latencies_ms": latencies.tolist(),
        "unanswered": len(arrivals) - count if statuses is None else statuses["no_answer"],
        "duration_s": round(duration, 4),
        "achieved_qps": round((count - 1) / duration, 4) if duration > 0 else 0.0,
        "mean_batch": None if mean_batch is None else round(mean_batch, 3),
        "ok": kept and not saturated and all_answered,
        "saturated": saturated,
        "statuses": statuses,
        "sent_late_ms": sent_late_ms,
    }


class _Server:
    """An engine that answers examples, and the time it takes."""

    def __init__(self, engine: Engine, examples: Examples, load: Load, timeline: Timeline) -> None:
        self._engine, self._examples, self._load, self._timeline = engine, examples, load, timeline

    def warm_up(self, clock: Clock) -> None:
        """The largest batch and a single query, of the longest example and of the shortest; then as ``clock`` wants.

        What an engine allocates or compiles at first sight of a shape is not for the first query to wait for.
        """
        lengths = self._examples.lengths
        begin, calls = self._timeline.now(), 0
        for row in (int(lengths.argmax()), int(lengths.argmin())):
            for size in dict.fromkeys((self._load.max_batch, 1)):
                self._answer(np.full(size, row))
        for rows in self._random_batches(self._load.max_batch):
            if calls >= clock.warm_up_calls and self._timeline.now() - begin >= clock.warm_up_s:
                break
            self._answer(rows)
            calls += 1

    def measure_capacity(self) -> tuple[float, float]:
        """Queries a second in full batches without a pause, and the median milliseconds of a query alone."""
        seconds = min(_CAPACITY_S, self._load.duration_s / 4)
        full = self._time_calls(self._load.max_batch, seconds)
        lone = full if self._load.max_batch == 1 else self._time_calls(1, seconds)
        return _digits(self._load.max_batch * len(full) / sum(full)), round(1e3 * statistics.median(lone), 4)

    def probe(self, qps: float, seed: int) -> Probe:
        """Let queries arrive at a rate, and see."""
        arrivals, rows = draw_queries(self._load, qps, seed, len(self._examples))
        meter = Meter()
        served = serve(
            arrivals,
            lambda first, last: self._answer(rows[first:last]),
            self._timeline,
            max_batch=self._load.max_batch,
            give_up_s=self._load.give_up_s,
        )
        usage = meter.read()
        return {"qps": qps, "seed": seed, **judge(served, self._load.bound_ms), "usage": usage.to_json()}

    def _time_calls(self, batch: int, seconds: float) -> list[float]:
        """The seconds of each call on random batches, for so long."""
        times: list[float] = []
        for rows in self._random_batches(batch):
            if len(times) >= _CAPACITY_CALLS and sum(times) >= seconds:
                break
            start = self._timeline.now()
            self._answer(rows)
            times.append(self._timeline.now() - start)
        return times

    def _answer(self, rows: NDArray[np.intp]) -> None:
        """Pad the examples to a batch, choose and cast its inputs, and run: what a server does for each batch."""
        self._engine.run(self._engine.prepare(self._examples.batch(rows)))

    def _random_batches(self, size: int) -> Iterator[NDArray[np.intp]]:
        """Without end."""
        random = np.random.default_rng(self._load.seed)
        while True:
            yield random.integers(0, len(self._examples), size)


def _samples_for(percent: float) -> int:
    return round(_BEYOND / (1 - percent / 100))


def _digits(rate: float) -> float:
    """Four digits are enough for a rate, and a person can type them."""
    return float(f"{rate:.4g}")
