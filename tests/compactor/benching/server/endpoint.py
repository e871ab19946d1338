"""A small HTTP endpoint on loopback that answers as ``compactor serve`` does, and misbehaves as it is told.

It runs on a thread, so that the code under test may use an event loop of its own, or another process.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

V2_ROUTE = "/v2/models/small/infer"
PLAIN_ROUTE = "/predict"

Behave = Callable[[str], str]
"""What to do with the request of this text: ``answer``, ``hang``, ``close``, send ``half`` of an answer, or ``prose``
instead of JSON; or a status such as ``503``."""


class Endpoint:
    """What it was sent, and where it listens.

    Attributes:
        port: Of loopback.
        requests: The path and the document of each request, in the order of arrival.
        connections: How many were opened.
    """

    def __init__(self, behave: Behave, delay_s: float, in_turn: bool, together: int) -> None:
        self.port = 0
        self.requests: list[tuple[str, Any]] = []
        self.connections = 0
        self._behave, self._delay_s = behave, delay_s
        self._turn = asyncio.Semaphore(1 if in_turn else 1_000_000)
        self._together, self._enough = together, asyncio.Event()
        self._over = asyncio.Event()
        self._loop = asyncio.new_event_loop()

    @property
    def url(self) -> str:
        """Of the V2 route."""
        return f"http://127.0.0.1:{self.port}{V2_ROUTE}"

    @property
    def plain_url(self) -> str:
        """Of the plain route."""
        return f"http://127.0.0.1:{self.port}{PLAIN_ROUTE}"

    def run(self, ready: threading.Event) -> None:
        """Serve until ``stop``."""
        self._loop.run_until_complete(self._serve(ready))
        self._loop.close()

    def stop(self) -> None:
        """From another thread; once it has ended, of no consequence."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._over.set)

    async def _serve(self, ready: threading.Event) -> None:
        server = await asyncio.start_server(self._converse, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        ready.set()
        await self._over.wait()
        server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, request after request."""
        self.connections += 1
        try:
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
                while await self._exchange(reader, writer):
                    pass
        finally:
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request and its answer; whether the connection stays open."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        path = head.split()[1]
        size = int(head.split("content-length:")[1].split()[0])
        document = json.loads(await reader.readexactly(size))
        self.requests.append((path, document))
        if len(self.requests) >= self._together:
            self._enough.set()
        await self._enough.wait()
        todo = self._behave(_first_text(document))
        if todo == "hang":
            await self._over.wait()
        if todo == "close":
            return False
        async with self._turn:
            await asyncio.sleep(self._delay_s)
        status, text = _answer(path, document, todo)
        head_out = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n"
        writer.write((head_out + (text if todo != "half" else text[: len(text) // 2])).encode())
        await writer.drain()
        return todo != "half"


def _first_text(document: Any) -> str:
    """Of the first item, whatever the route."""
    first = document["inputs"] if isinstance(document["inputs"], str) else document["inputs"][0]
    if isinstance(first, dict):
        first = first["data"][0] if "data" in first else next(iter(first.values()))
    return str(first)


def _answer(path: str, document: Any, todo: str) -> tuple[int, str]:
    if todo.isdecimal():
        return int(todo), json.dumps({"error": "told so"})
    if todo == "prose":
        return 200, "<html>this is fine</html>"
    if path == V2_ROUTE:
        count = document["inputs"][0]["shape"][0]
        labels = {"name": "label", "datatype": "BYTES", "shape": [count], "data": ["good"] * count}
        return 200, json.dumps({"model_name": "small", "model_version": "1", "outputs": [labels]})
    if path == PLAIN_ROUTE:
        inputs = document["inputs"]
        answers = [{"label": "good", "score": 0.9}] * (len(inputs) if isinstance(inputs, list) else 1)
        return 200, json.dumps({"model": "small", "outputs": answers})
    return 404, json.dumps({"error": "no such model"})


@contextlib.contextmanager
def endpoint(
    behave: Behave | str = "answer", *, delay_s: float = 0.0, in_turn: bool = False, together: int = 0
) -> Iterator[Endpoint]:
    """An endpoint that serves within the ``with`` block.

    Args:
        behave: What it does with each request, or with all of them.
        delay_s: How long each answer takes.
        in_turn: Whether it works on one request at a time, so that its capacity is ``1 / delay_s``.
        together: It answers none before it got so many.
    """
    served = Endpoint(behave if callable(behave) else lambda _: behave, delay_s, in_turn, together)
    ready = threading.Event()
    thread = threading.Thread(target=served.run, args=(ready,), daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield served
    finally:
        served.stop()
        thread.join(10)
        assert not thread.is_alive()
