"""Queries that arrive at random times, one server that answers them in batches, and what that says of its rate.

The queue knows nothing of models, and its time is given to it: the tests play hours in no time and compare what comes
out with queueing theory. ``serving.py`` plays it with an engine and the wall clock.

Latency counts from when a query was *due*. A load generator that waits for the answer before it sends the next query,
or that counts from when it got round to sending, leaves out just the queries that a stall made wait ("coordinated
omission").
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Seconds = NDArray[np.float64]
Answer = Callable[[int, int], object]  # answers the queries from the first number to before the second

_SPIN_S = 0.001
"""How long before an arrival the wait turns from sleeping to spinning: a sleep ends some 0.1 ms late, in a virtual
machine at times 1 ms, which would count as latency of the model."""
_LAST = 4
"""The queue must have been empty at some time in the last of so many parts of the arrivals."""


class Timeline(Protocol):
    """What time it is."""

    def now(self) -> float:
        """Seconds since some start."""

    def wait_until(self, instant: float) -> None:
        """Return at ``instant``, or at once when that is over; never before it."""


class WallTime:
    """The real time. Sleeps, and spins for the last stretch.

    Spinning takes no core from the engine: the thread that waits here is the one that works in a call, and an engine
    counts it among its threads.
    """

    def __init__(self) -> None:
        self._start = time.perf_counter()

    def now(self) -> float:
        """Seconds since this was made."""
        return time.perf_counter() - self._start

    def wait_until(self, instant: float) -> None:
        """Return at ``instant``, or at once when that is over; never before it."""
        while (left := instant - self.now()) > 0:
            if left > _SPIN_S:
                time.sleep(left - _SPIN_S)


@dataclasses.dataclass(frozen=True)
class Served:
    """What happened to the queries of one stretch; times in seconds since its start.

    Attributes:
        arrivals: (N,) when each query was due, in order.
        starts: (B,) when each batch was taken from the queue.
        ends: (B,) when it was answered.
        sizes: (B,) queries in it. Batches hold the queries in order, so the first M = sum(sizes) of them are answered.
        given_up: Whether the queries after M were left unanswered because the queue had become too long.
    """

    arrivals: Seconds
    starts: Seconds
    ends: Seconds
    sizes: NDArray[np.int64]
    given_up: bool

    @property
    def done(self) -> Seconds:
        """(M,) when each query was answered."""
        return np.repeat(self.ends, self.sizes)

    @property
    def latencies_s(self) -> Seconds:
        """(M,) from when a query was due to when it was answered."""
        return self.done - self.arrivals[: len(self.done)]

    @property
    def mean_batch(self) -> float | None:
        """Queries in a batch; None without a batch."""
        return float(self.sizes.mean()) if len(self.sizes) else None

    @property
    def saturated(self) -> bool:
        """Whether queries came faster than they were answered, so that latency says only how long one measured.

        It is so where working off the queue after the last arrival took longer than a quarter of the arrivals' time;
        or where the queue was never empty in the last quarter of that time and latency still grew there. A server that
        keeps up empties its queue time and again, however long it was for a while.
        """
        if self.given_up:
            return True
        due = float(self.arrivals[-1])
        if due == 0.0:
            return False
        if self.ends[-1] - due > due / _LAST:
            return True
        late = (self.starts >= due - due / _LAST) & (self.starts < due)
        if late.sum() < 2:  # no time for the queue to grow
            return False
        first_left = np.cumsum(self.sizes)[late]  # behind each of these batches, the number of the query that is next
        if (self.arrivals[first_left] > self.starts[late]).any():
            return False
        latest = self.latencies_s[first_left[0] : first_left[-1] + 1]
        half = len(latest) // 2
        return bool(latest[half:].mean() > latest[:half].mean())


def poisson_arrivals(qps: float, count: int, seed: int) -> Seconds:
    """(N,) when the queries of a Poisson process are due; the first at 0.

    The gaps are exponential, and scaled so that their mean is exactly ``1 / qps``: a Poisson process given how many
    arrivals its time has. Unscaled, a thousand arrivals have a rate that is off by 3 %, as much as the search resolves.
    The same seed gives the same arrivals at every rate, only closer together.

    Args:
        qps: Arrivals a second.
        count: How many, N >= 1.
        seed: Of the gaps.
    """
    if not qps > 0 or count < 1:
        raise ValueError(f"expected a rate above 0 and at least 1 query, got {qps} and {count}")
    gaps = np.random.default_rng(seed).standard_exponential(count - 1)
    return np.concatenate([[0.0], np.cumsum(gaps / (gaps.mean() * qps))]) if count > 1 else np.zeros(1)


def serve(
    arrivals: Seconds, answer: Answer, timeline: Timeline, *, max_batch: int, give_up_s: float | None = None
) -> Served:
    """Answer every query, first come first served.

    The server waits for the next query, takes it and all others that are due by then, ``max_batch`` at most, and
    answers them together. It does not wait for a batch to fill. After the last arrival it works off the queue.

    Args:
        arrivals: (N,) when the queries are due, in order, in seconds from now.
        answer: Called with the numbers of the queries to answer, which are one after the other.
        timeline: Says what time it is, also while ``answer`` works.
        max_batch: Queries in a batch, at most.
        give_up_s: Stop when a query has waited longer than this before it was taken; None never stops.
    """
    due = [float(arrival) for arrival in arrivals]
    begin = timeline.now()
    starts: list[float] = []
    ends: list[float] = []
    sizes: list[int] = []
    first, given_up = 0, False
    while first < len(due):
        timeline.wait_until(begin + due[first])
        start = max(timeline.now() - begin, due[first])  # not a rounding error before it
        if give_up_s is not None and start - due[first] > give_up_s:
            given_up = True
            break
        last = first + 1
        while last < len(due) and last - first < max_batch and due[last] <= start:
            last += 1
        answer(first, last)
        starts.append(start)
        ends.append(timeline.now() - begin)
        sizes.append(last - first)
        first = last
    return Served(np.asarray(arrivals, np.float64), np.array(starts), np.array(ends), np.array(sizes, int), given_up)


def percentile(latencies: NDArray[Any], percent: float) -> float:
    """The latency that ``percent`` of the queries stay at or below: one that occurred, as in LoadGen's summary.

    Not interpolated, so that "the percentile keeps the bound" means that so many queries did.
    """
    return float(np.percentile(latencies, percent, method="higher"))
