"""Texts of like length wait together, and run together: a lane for each bucket of lengths.

Ray's ``@serve.batch`` collects requests for a moment, whether or not the model is busy. What it collected comes here,
and waits for the model: when that is free, it takes the lane whose first text has waited longest, and of that lane as
many texts as a batch may hold. So batches grow with the load, a short text is padded to its lane's length at most, and
waits for one batch of long ones at most.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_SHORTEST = 32


def bucket(tokens: int) -> int:
    """The longest length of the lane for a text of ``tokens``: 32, 64, 128, ..."""
    longest = _SHORTEST
    while longest < tokens:
        longest *= 2
    return longest


@dataclasses.dataclass(eq=False)
class Job(Generic[Item]):
    """One text on its way.

    Attributes:
        item: The text's tokens.
        tokens: How many.
        wanted: Whether someone still waits for the answer.
    """

    item: Item
    tokens: int
    wanted: bool = True


@dataclasses.dataclass(eq=False)
class _Waiting(Generic[Item, Result]):
    job: Job[Item]
    done: asyncio.Future[Result]
    since: int  # counts texts, so that lanes can be told apart by age


class Lanes(Generic[Item, Result]):
    """The texts of one replica that wait for its model.

    Args:
        run: Answers texts, one result an item; called in ``executor``, one call at a time.
        executor: Of one thread.
        max_batch: Texts of a batch, at most.
        batch_tokens: Positions of a batch, padding included, at most; a longer text runs alone.
        observe: Told the number of texts of each batch, and of those that still wait.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Item]], Sequence[Result]],
        executor: Executor,
        *,
        max_batch: int,
        batch_tokens: int,
        observe: Callable[[int, int], None] = lambda size, waiting: None,
    ) -> None:
        self._run, self._executor, self._observe = run, executor, observe
        self._max_batch, self._batch_tokens = max_batch, batch_tokens
        self._lanes: dict[int, collections.deque[_Waiting[Item, Result]]] = {}
        self._count = 0
        self._worker: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """Texts that wait, over all lanes."""
        return sum(len(lane) for lane in self._lanes.values())

    async def answer(self, jobs: Sequence[Job[Item]]) -> list[Result | BaseException]:
        """The results of some texts of one bucket, when they are there; an exception in place of what failed."""
        loop = asyncio.get_running_loop()
        futures = []
        for job in jobs:
            waiting: _Waiting[Item, Result] = _Waiting(job, loop.create_future(), self._count)
            self._count += 1
            self._lanes.setdefault(bucket(job.tokens), collections.deque()).append(waiting)
            futures.append(waiting.done)
        if self._worker is None or self._worker.done():
            self._worker = loop.create_task(self._work())
        return await asyncio.gather(*futures, return_exceptions=True)

    async def _work(self) -> None:
        """Run batches until no text waits."""
        while batch := self._take():
            self._observe(len(batch), self.waiting)
            if not await self._try(batch):
                for waiting in batch:  # one of them spoils it: each alone, so that it spoils its own answer only
                    await self._try([waiting])

    async def _try(self, batch: Sequence[_Waiting[Item, Result]]) -> bool:
        """Run a batch and hand out its results. False where it failed and holds several texts: nobody knows yet."""
        items = [waiting.job.item for waiting in batch]
        try:
            results = await asyncio.get_running_loop().run_in_executor(self._executor, self._run, items)
            for waiting, result in zip(batch, results, strict=True):
                if not waiting.done.done():
                    waiting.done.set_result(result)
        except Exception as error:
            if len(batch) > 1:
                return False
            if not batch[0].done.done():
                batch[0].done.set_exception(error)
        return True

    def _take(self) -> list[_Waiting[Item, Result]]:
        """The next batch; empty when no text waits. What nobody wants any more is left out."""
        while self._lanes:
            longest = min(self._lanes, key=lambda key: self._lanes[key][0].since)
            lane = self._lanes[longest]
            batch: list[_Waiting[Item, Result]] = []
            tokens = 0
            while lane and len(batch) < self._max_batch:
                grown = max(tokens, lane[0].job.tokens)
                if batch and grown * (len(batch) + 1) > self._batch_tokens:
                    break
                waiting = lane.popleft()
                if waiting.job.wanted:
                    batch.append(waiting)
                    tokens = grown
                else:
                    waiting.done.cancel()
            if not lane:
                del self._lanes[longest]
            if batch:
                return batch
        return []
