"""The server scenario against a running endpoint: requests over HTTP that are sent when they are due.

The search, the bound and the arrivals are those of ``serving.py``. What differs is that nobody here sees the
endpoint's queue, that it may refuse a query, and that what it still works on when a probe is given up would burden the
next one: before each probe the endpoint is given the time to come to rest.
"""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from compactor.benching.plan import Variant
from compactor.benching.server.endpoints import load_items, make_body
from compactor.benching.server.http_load import NO_ANSWER, NO_CONNECTION, Exchanges, closed_loop, open_loop, run
from compactor.benching.server.serving import Load, Probe, describe_probe, draw_queries, play
from compactor.benching.server.urls import parse_url
from compactor.errors import UsageError
from compactor.runtime.sampling import Clock, Meter

CLIENTS = 16
"""How many ask at a time when the endpoint's capacity is measured."""

_CAPACITY_S = 2.0
_REST_S = 30.0  # for the endpoint to come to rest, at most
_RESTED = 3.0  # it has, when a lone request takes no longer than so many of the usual ones
_ALONE = 3  # such requests in a row
_PARTS = 4  # of the arrivals' time, in each of which latency grew when queries came too fast
_LEAST = 10  # answers in each part, for that to be told
_GROWN = 2.0
_WARM_S = 60.0  # for an answer during the warm-up


def serve_remotely(variant: Variant, spec: Mapping[str, Any]) -> dict[str, Any]:
    """What a worker returns for an endpoint: ``environment`` and the ``serve`` block.

    Args:
        variant: Its ``target`` is the URL.
        spec: ``spec["serve"]`` holds the file of ``texts`` and the fields of ``serving.Load``.

    Raises:
        UsageError: The endpoint answers no request any more.
    """
    url = parse_url(variant.target)
    items = load_items(Path(spec["serve"]["texts"]))
    load = Load.from_block({**spec["serve"], "max_batch": 1})
    endpoint = Endpoint(url.text, [make_body(url, item) for item in items], load)
    endpoint.warm_up(Clock(**spec["clock"]))
    block = play(endpoint, load)
    notes = [block["note"], describe_failures(block["probes"])]
    protocol = "V2 (Open Inference Protocol)" if url.route == "v2" else "plain"
    return {
        "environment": {"protocol": protocol, "clients for the capacity": CLIENTS},
        "serve": {**block, "note": "; ".join(filter(None, notes)) or None},
    }


class Endpoint:
    """An endpoint that bears a load; a ``serving.Server``.

    Args:
        url: Where requests are posted.
        bodies: What they carry: each query draws one of them.
        load: What it is to bear.
    """

    def __init__(self, url: str, bodies: Sequence[bytes], load: Load) -> None:
        self._url, self._bodies, self._load = url, bodies, load
        self._lone_ms: float | None = None

    def warm_up(self, clock: Clock) -> None:
        """The longest text, the shortest, then others, as many at a time as when the capacity is measured."""
        by_size = sorted(self._bodies, key=len)
        for bodies, seconds in (([by_size[-1], by_size[0]], 0.0), (self._bodies, clock.warm_up_s)):
            run(closed_loop(self._url, bodies, CLIENTS, seconds, timeout_s=_WARM_S))

    def measure_capacity(self) -> tuple[float, float]:
        """Queries a second of 16 clients that each wait for their answer, and the milliseconds of a query alone.

        Raises:
            UsageError: None is answered.
        """
        seconds = min(_CAPACITY_S, self._load.duration_s / 4)
        alone = run(closed_loop(self._url, self._bodies, 1, seconds / 2, timeout_s=_WARM_S))
        together = run(closed_loop(self._url, self._bodies, CLIENTS, seconds, timeout_s=_WARM_S))
        for found in (alone, together):
            if not found.ok.any():
                said = ", ".join(f"{count} {name}" for name, count in name_statuses(found).items() if count)
                raise UsageError(
                    f"the endpoint answered none of {len(found)} requests: {said}", where=self._url, todo="see its log"
                )
        self._lone_ms = round(statistics.median((1e3 * alone.latencies_s).tolist()), 4)
        return float(f"{together.answered_per_s:.4g}"), self._lone_ms

    def probe(self, qps: float, seed: int) -> Probe:
        """Let queries arrive at a rate, and see. One that is not answered with 200 fails the probe."""
        if self._lone_ms is not None:
            run(self._come_to_rest(self._lone_ms / 1e3))
        arrivals, rows = draw_queries(self._load, qps, seed, len(self._bodies))
        bodies = [self._bodies[row] for row in rows]
        meter = Meter()
        found = run(open_loop(self._url, bodies, arrivals, give_up_s=self._load.give_up_s))
        usage = meter.read()
        return {"qps": qps, "seed": seed, **judge_exchanges(found, self._load.bound_ms), "usage": usage.to_json()}

    async def _come_to_rest(self, usual_s: float) -> None:
        """Wait until lone requests take their usual time: the last probe may have left a queue.

        An endpoint that does not come to rest is measured all the same, and its answers say what they say.
        """
        loop = asyncio.get_running_loop()
        shortest = min(self._bodies, key=len)
        end, in_a_row = loop.time() + _REST_S, 0
        while in_a_row < _ALONE and loop.time() < end:
            found = await closed_loop(self._url, [shortest], 1, 0.0, timeout_s=_REST_S)
            in_a_row = in_a_row + 1 if found.ok.all() and found.latencies_s.max() <= _RESTED * usual_s else 0


def judge_exchanges(found: Exchanges, bound_ms: float | None) -> Probe:
    """The numbers of one probe, without its rate. Percentiles are of the queries that were answered with 200."""
    late = found.lateness_s
    return describe_probe(
        found.due,
        found.due[found.ok],
        found.done[found.ok],
        bound_ms,
        saturated=is_saturated(found),
        statuses=name_statuses(found),
        sent_late_ms=round(1e3 * float(np.median(late)), 3) if len(late) else None,
    )


def is_saturated(found: Exchanges) -> bool:
    """Whether queries came faster than they were answered, as far as a client can tell.

    It is so where the load was given up; where the answers took longer than a quarter of the arrivals' time after the
    last of them; or where latency grew from each quarter of that time to the next, and doubled. An endpoint that works
    on several queries at a time is never idle under load, so that its queue cannot be asked.
    """
    if found.given_up:
        return True
    due = float(found.due[-1])
    if due == 0.0 or not found.ok.any():
        return False
    if np.nanmax(found.done) - due > due / _PARTS:
        return True
    part = np.minimum(found.due[found.ok] / due * _PARTS, _PARTS - 1).astype(int)
    if np.bincount(part, minlength=_PARTS).min() < _LEAST:
        return False
    means = np.array([found.latencies_s[part == number].mean() for number in range(_PARTS)])
    return bool((np.diff(means) > 0).all() and means[-1] > _GROWN * means[0])


def name_statuses(found: Exchanges) -> dict[str, int]:
    """How the queries ended: the report's ``statuses``."""
    counts = found.count_statuses()
    named = {
        "ok": counts.pop(200, 0),
        "rejected": counts.pop(503, 0),
        "timed_out": counts.pop(504, 0),
        "no_connection": counts.pop(NO_CONNECTION, 0),
        "no_answer": counts.pop(NO_ANSWER, 0),
    }
    return {**named, "other": sum(counts.values())}


def describe_failures(probes: Sequence[Probe]) -> str | None:
    """A note about the lowest rate at which queries failed, unless they only waited too long; None without one."""
    words = {
        "rejected": "rejected (503)",
        "timed_out": "timed out (504)",
        "no_connection": "without a connection",
        "other": "answered with another status than 200",
    }
    failing = [probe for probe in probes if any(probe["statuses"][name] for name in words)]
    if not failing:
        return None
    lowest = min(failing, key=lambda probe: float(probe["qps"]))
    counts = lowest["statuses"]
    said = ", ".join(f"{counts[name]:,} {word}" for name, word in words.items() if counts[name])
    return f"at {lowest['qps']:g} queries/s of {sum(counts.values()):,}: {said}"
