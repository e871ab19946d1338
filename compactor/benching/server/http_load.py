"""Send requests to an HTTP endpoint and note when each was due, sent and answered, and how.

    bodies = [v2_body([text]) for text in texts]
    found = run(open_loop(url, bodies, poisson_arrivals(100.0, 1000, seed=17)))
    found = run(closed_loop(url, bodies, clients=16, duration_s=5.0))

An *open loop* sends each request when it is due, whether or not earlier ones were answered, and latency counts from
that moment: it shows what users meet who do not know of each other. A *closed loop* has so many clients that each send
the next request when they have the answer to the last one: it shows how much the endpoint gets done.

This is transport alone: what a body holds, what an answer says and whether it came soon enough is for the caller.
Nothing is sent twice, and no redirect is followed.
"""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import functools
import json
import math
import select
import selectors
from collections import Counter
from collections.abc import Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from compactor.benching.server.queueing import Seconds

if TYPE_CHECKING:
    import aiohttp

NO_CONNECTION = 0
"""The status of a request whose connection was refused, or broke before the whole answer was there."""
NO_ANSWER = -1
"""The status of a request that nobody waited for any longer, or that was not sent any more."""

Item = str | tuple[str, str] | Mapping[str, str]
"""One text; two of them; or what a question-answering model is asked: ``{"question": ..., "context": ...}``."""

_CONNECTIONS = (
    512  # open at a time; many systems allow a process 1,024 files. What is due beyond waits, and that counts
)
_WATCH_S = 0.02  # how often it is looked whether a request has waited too long
_KEEP_S = 4.0  # an idle connection is not used again after this; uvicorn closes it after 5, maybe as a request is sent
_PAUSE_S = 0.02  # of a closed loop's client that got no connection: it would try without end
_OURS = (errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL)  # this process or machine has no more files or ports
_HEADERS = {"Content-Type": "application/json"}
_LEFT_OUT = ("Accept", "Accept-Encoding", "User-Agent")  # headers that nobody asked for, and that cost time

_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True)
class Exchanges:
    """What became of the requests, in the order in which they were due; times in seconds since the start.

    Attributes:
        due: (N,) when each was to be sent. In a closed loop, when it was sent.
        sent: (N,) when it was; not a number where it never was.
        done: (N,) when the whole answer was there, or when it was given up; not a number where it was never sent.
        statuses: (N,) of HTTP; or ``NO_CONNECTION``, ``NO_ANSWER``.
        bodies: (N,) which of the bodies it carried.
        given_up: Whether the load was ended early, since a request had waited for too long.
    """

    due: Seconds
    sent: Seconds
    done: Seconds
    statuses: NDArray[np.int64]
    bodies: NDArray[np.int64]
    given_up: bool = False

    def __len__(self) -> int:
        """How many requests there were."""
        return len(self.due)

    @property
    def ok(self) -> NDArray[np.bool_]:
        """(N,) which were answered with status 200."""
        answered: NDArray[np.bool_] = self.statuses == 200
        return answered

    @property
    def latencies_s(self) -> Seconds:
        """(M,) of those answered with 200, from when they were due to their answer."""
        return (self.done - self.due)[self.ok]

    @property
    def lateness_s(self) -> Seconds:
        """(M,) of those that were sent, how long after they were due: what the client itself could not keep up with."""
        late: Seconds = self.sent - self.due
        return late[~np.isnan(late)]

    @property
    def duration_s(self) -> float:
        """From when the first was due to when the last was done; 0 where none was."""
        return float(np.nanmax(self.done) - self.due[0]) if len(self) and not np.isnan(self.done).all() else 0.0

    @property
    def answered_per_s(self) -> float:
        """Requests answered with 200, a second."""
        return int(self.ok.sum()) / self.duration_s if self.duration_s > 0 else 0.0

    def count_statuses(self) -> dict[int, int]:
        """How many had each status, in the order of the statuses."""
        return dict(sorted(Counter(self.statuses.tolist()).items()))


@dataclasses.dataclass(frozen=True)
class Reply:
    """The answer to one request.

    Attributes:
        status: Of HTTP.
        body: All of it.
    """

    status: int
    body: bytes


def run(load: Coroutine[Any, Any, _T]) -> _T:
    """Run a load to its end, on an event loop that wakes on time.

    The loops of asyncio on Linux wake up to 1 ms late: the ``epoll`` call below them counts in whole milliseconds. That
    would count as latency of the endpoint.
    """
    with asyncio.Runner(loop_factory=_new_loop) as runner:
        return runner.run(load)


async def open_loop(
    url: str,
    bodies: Sequence[bytes],
    due_s: Seconds,
    *,
    timeout_s: float | None = None,
    give_up_s: float | None = None,
    connections: int = _CONNECTIONS,
) -> Exchanges:
    """Send a request whenever one is due, and wait for all answers.

    Args:
        url: Where requests are posted.
        bodies: What they carry, in turn: the first is due first, and behind the last it starts again.
        due_s: (N,) when they are due, in order, in seconds from now; ``queueing.poisson_arrivals`` makes some.
        timeout_s: Wait for an answer no longer than this after sending; None waits for ever.
        give_up_s: End the whole load when a request has waited longer than this since it was due; None never does.
        connections: Open at a time, at most. A request that finds none waits, and its latency counts that.

    Raises:
        OSError: The operating system gives this process no more files or ports; nothing that the endpoint did.
    """
    loop = asyncio.get_running_loop()
    waiting: dict[int, asyncio.Task[int]] = {}  # in the order in which they were due
    async with _session(timeout_s, connections) as session:
        client = _Client(session, url, bodies, len(due_s))

        async def send_all() -> None:
            for number, due in enumerate(due_s.tolist()):
                await asyncio.sleep(max(client.start + due - loop.time(), 0))
                task = loop.create_task(client.post(number))
                waiting[number] = task
                task.add_done_callback(functools.partial(lambda number, _: waiting.pop(number), number))
            if waiting:
                await asyncio.wait(list(waiting.values()))

        sending = loop.create_task(send_all())
        given_up = False
        try:
            while not sending.done() and not given_up:
                await asyncio.wait([sending], timeout=None if give_up_s is None else _WATCH_S)
                given_up = give_up_s is not None and any(
                    loop.time() - client.start - due_s[number] > give_up_s for number in list(waiting)[:1]
                )
        finally:
            tasks = [sending, *waiting.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    return client.exchanges(np.array(due_s), given_up=given_up)


async def closed_loop(
    url: str,
    bodies: Sequence[bytes],
    clients: int,
    duration_s: float,
    *,
    timeout_s: float | None = None,
    most: int | None = None,
) -> Exchanges:
    """Let clients send one request after the other, each the next when it has the answer to its last.

    What is under way when the time is over is still waited for.

    Args:
        url: Where requests are posted.
        bodies: What they carry, in turn: whichever client is next takes the next, and behind the last it starts again.
        clients: How many send at a time.
        duration_s: For how long they start new requests. Each sends one at least.
        timeout_s: Wait for an answer no longer than this after sending; None waits for ever.
        most: Requests of all clients together, at most; None leaves that to the duration.

    Raises:
        OSError: The operating system gives this process no more files or ports; nothing that the endpoint did.
    """
    if clients < 1:
        raise ValueError(f"expected at least 1 client, got {clients}")
    loop = asyncio.get_running_loop()
    limit = math.inf if most is None else most
    async with _session(timeout_s, clients) as session:
        client = _Client(session, url, bodies)

        async def send_in_turn() -> None:
            first = True
            while len(client.sent) < limit and (first or loop.time() - client.start < duration_s):
                number, first = client.add(), False
                if await client.post(number) == NO_CONNECTION:
                    await asyncio.sleep(_PAUSE_S)

        async with asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(send_in_turn())
    return client.exchanges()


async def post_once(url: str, body: bytes, *, timeout_s: float | None = None) -> Reply:
    """Send one request, and return its answer.

    Raises:
        aiohttp.ClientError: There is no connection, or it broke.
        TimeoutError: No answer came in time.
    """
    async with _session(timeout_s, 1) as session, session.post(url, data=body, allow_redirects=False) as answer:
        return Reply(answer.status, await answer.read())


def item_texts(item: Item) -> dict[str, str]:
    """The texts of an item by the name of their input."""
    if isinstance(item, str):
        return {"text": item}
    return {"text": item[0], "text_pair": item[1]} if isinstance(item, tuple) else dict(item)


def v2_body(items: Sequence[Item]) -> bytes:
    """The request of KServe's V2 protocol, of the texts as BYTES: ``text``, with ``text_pair`` or as a question."""
    named = [item_texts(item) for item in items]
    if not named or any(one.keys() != named[0].keys() for one in named):
        raise ValueError("expected at least one item, and all of one kind")
    columns = {name: [one[name] for one in named] for name in named[0]}
    inputs = [
        {"name": name, "shape": [len(texts)], "datatype": "BYTES", "data": texts} for name, texts in columns.items()
    ]
    return _encode({"inputs": inputs})


def plain_body(items: Sequence[Item]) -> bytes:
    """The request of the plain route: ``{"inputs": [...]}``."""
    return _encode({"inputs": [item if isinstance(item, str) else item_texts(item) for item in items]})


def _encode(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


class _Client:
    """Sends requests, and notes times and statuses as they come; grows where it is not known how many there will be."""

    def __init__(self, session: aiohttp.ClientSession, url: str, bodies: Sequence[bytes], count: int = 0) -> None:
        self._session, self._url, self._bodies = session, url, bodies
        self.sent, self.done = [math.nan] * count, [math.nan] * count
        self.statuses = [NO_ANSWER] * count
        self._problem: OSError | None = None
        self.start = asyncio.get_running_loop().time()

    def add(self) -> int:
        """The number of one more request."""
        self.sent.append(math.nan)
        self.done.append(math.nan)
        self.statuses.append(NO_ANSWER)
        return len(self.statuses) - 1

    async def post(self, number: int) -> int:
        """Send one request, and note and return what became of it."""
        import aiohttp

        now = asyncio.get_running_loop().time
        status = NO_ANSWER
        body = self._bodies[number % len(self._bodies)]
        self.sent[number] = now() - self.start
        try:
            async with self._session.post(self._url, data=body, allow_redirects=False) as answer:
                await answer.read()
                status = answer.status
        except TimeoutError:
            pass
        except (aiohttp.ClientError, OSError) as error:
            status = NO_CONNECTION
            if isinstance(error, OSError) and error.errno in _OURS:
                self._problem = error
        finally:  # also where the load was ended
            self.done[number], self.statuses[number] = now() - self.start, status
        return status

    def exchanges(self, due: Seconds | None = None, *, given_up: bool = False) -> Exchanges:
        """All of them, of which each was due when it was sent where ``due`` is None.

        Raises:
            OSError: What went wrong on this side, if anything did.
        """
        if self._problem is not None:
            raise self._problem
        sent, statuses = np.array(self.sent), np.array(self.statuses, np.int64)
        which = np.arange(len(sent)) % len(self._bodies)
        return Exchanges(sent if due is None else due, sent, np.array(self.done), statuses, which, given_up)


def _session(timeout_s: float | None, connections: int) -> aiohttp.ClientSession:
    """A client without all that costs time and does nothing here: cookies, decompression, proxies, redirects."""
    import aiohttp

    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=connections, keepalive_timeout=_KEEP_S),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers=_HEADERS,
        skip_auto_headers=_LEFT_OUT,
        auto_decompress=False,
        timeout=aiohttp.ClientTimeout(total=timeout_s),
    )


def _new_loop() -> asyncio.AbstractEventLoop:
    """An event loop whose timers are late by what the system needs, and not by the rest of a millisecond."""
    if not hasattr(selectors, "EpollSelector"):
        return asyncio.new_event_loop()

    class PunctualSelector(selectors.EpollSelector):
        def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
            if timeout is not None and timeout > 0:  # select() counts in microseconds, and can wait for an epoll
                select.select([self.fileno()], [], [], timeout)
                timeout = 0
            return super().select(timeout)

    return asyncio.SelectorEventLoop(PunctualSelector())
