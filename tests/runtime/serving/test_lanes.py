"""Texts of like length run together, the longest-waiting lane first, within the budget; who has gone is left out."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compactor.runtime.serving.lanes import Job, Lanes, bucket


class Gate:
    """A model that answers when it is told to, and notes its batches."""

    def __init__(self):
        self.batches = []
        self.open = asyncio.Event()

    def lanes(self, loop, executor, **options):
        def run(items):
            asyncio.run_coroutine_threadsafe(self.open.wait(), loop).result()
            self.batches.append(list(items))
            return [f"answer to {item}" for item in items]

        return Lanes(run, executor, **{"max_batch": 8, "batch_tokens": 10_000, **options})


def play(scenario):
    async def main():
        with ThreadPoolExecutor(max_workers=1) as executor:
            await scenario(asyncio.get_running_loop(), executor)

    asyncio.run(main())


def ask(lanes, name, tokens):
    job = Job(name, tokens)
    return job, asyncio.ensure_future(lanes.answer([job]))


@pytest.mark.parametrize(("tokens", "longest"), [(1, 32), (32, 32), (33, 64), (64, 64), (65, 128), (500, 512)])
def test_buckets_double(tokens, longest):
    assert bucket(tokens) == longest


def test_what_came_while_the_model_was_busy_runs_together():
    async def scenario(loop, executor):
        gate = Gate()
        lanes = gate.lanes(loop, executor)
        asked = [ask(lanes, "first", 10)]
        await asyncio.sleep(0.05)  # the model has begun with it
        asked += [ask(lanes, name, 10) for name in "abc"]
        await asyncio.sleep(0)
        assert lanes.waiting == 3
        gate.open.set()
        answers = [(await task)[0] for _, task in asked]
        assert answers == [f"answer to {name}" for name in ("first", "a", "b", "c")]
        assert gate.batches == [["first"], ["a", "b", "c"]]

    play(scenario)


def test_lengths_do_not_mix_and_the_longest_waiting_lane_is_first():
    async def scenario(loop, executor):
        gate = Gate()
        lanes = gate.lanes(loop, executor)
        tasks = [ask(lanes, "first", 10)[1]]
        await asyncio.sleep(0.05)
        for name, tokens in (("long 1", 100), ("short 1", 10), ("long 2", 120), ("short 2", 30)):
            tasks.append(ask(lanes, name, tokens)[1])
        await asyncio.sleep(0)
        gate.open.set()
        await asyncio.gather(*tasks)
        assert gate.batches == [["first"], ["long 1", "long 2"], ["short 1", "short 2"]]

    play(scenario)


def test_a_batch_keeps_to_its_sizes():
    async def scenario(loop, executor):
        gate = Gate()
        lanes = gate.lanes(loop, executor, max_batch=3, batch_tokens=64)
        tasks = [ask(lanes, "first", 10)[1]]
        await asyncio.sleep(0.05)
        tasks += [ask(lanes, f"s{i}", 10)[1] for i in range(4)]
        tasks += [ask(lanes, f"m{i}", 30)[1] for i in range(3)]
        tasks += [ask(lanes, "huge", 500)[1]]
        await asyncio.sleep(0)
        gate.open.set()
        await asyncio.gather(*tasks)
        # 3 x 10; then 10 beside 30 would be 2 x 30 = 60, a third 90.
        assert gate.batches == [["first"], ["s0", "s1", "s2"], ["s3", "m0"], ["m1", "m2"], ["huge"]]

    play(scenario)


def test_who_has_gone_costs_nothing():
    async def scenario(loop, executor):
        gate = Gate()
        lanes = gate.lanes(loop, executor)
        first = ask(lanes, "first", 10)[1]
        await asyncio.sleep(0.05)
        gone, gone_task = ask(lanes, "gone", 10)
        stays = ask(lanes, "stays", 10)[1]
        await asyncio.sleep(0)
        gone.wanted = False
        gate.open.set()
        assert (await stays) == ["answer to stays"]
        await first
        assert gate.batches == [["first"], ["stays"]]
        assert isinstance((await gone_task)[0], asyncio.CancelledError)

    play(scenario)


def test_one_that_spoils_a_batch_spoils_its_own_answer_only():
    async def scenario(loop, executor):
        def run(items):
            if "bad" in items:
                raise ValueError("no")
            return list(items)

        lanes = Lanes(run, executor, max_batch=4, batch_tokens=100)
        results = await lanes.answer([Job("bad", 5), Job("good", 5), Job("fine", 5)])
        assert isinstance(results[0], ValueError) and results[1:] == ["good", "fine"]
        assert await lanes.answer([Job("again", 5)]) == ["again"]

    play(scenario)


def test_too_few_results_are_an_error_and_not_silence():
    async def scenario(loop, executor):
        lanes = Lanes(lambda items: [], executor, max_batch=4, batch_tokens=100)
        (result,) = await asyncio.wait_for(lanes.answer([Job("a", 5)]), 5)
        assert isinstance(result, ValueError)

    play(scenario)


def test_what_is_observed():
    async def scenario(loop, executor):
        seen = []
        lanes = Lanes(
            lambda items: list(items),
            executor,
            max_batch=2,
            batch_tokens=100,
            observe=lambda size, waiting: seen.append((size, waiting)),
        )
        await lanes.answer([Job(i, 5) for i in range(5)])
        assert seen == [(2, 3), (2, 1), (1, 0)]

    play(scenario)


@given(st.lists(st.tuples(st.integers(1, 300), st.booleans()), max_size=40), st.integers(1, 6), st.integers(1, 400))
def test_everyone_who_waits_is_answered_once(texts, max_batch, batch_tokens):
    async def scenario(loop, executor):
        batches = []

        def run(items):
            batches.append(items)
            return [-item[0] for item in items]

        lanes = Lanes(run, executor, max_batch=max_batch, batch_tokens=batch_tokens)
        jobs = [Job((i, tokens), tokens, wanted=wanted) for i, (tokens, wanted) in enumerate(texts)]
        results = await lanes.answer(jobs) if jobs else []
        for i, ((_, wanted), result) in enumerate(zip(texts, results, strict=True)):
            assert result == -i if wanted else isinstance(result, asyncio.CancelledError)
        ran = [item[0] for items in batches for item in items]
        assert sorted(ran) == [i for i, (_, wanted) in enumerate(texts) if wanted]
        for items in batches:
            longest = max(tokens for _, tokens in items)
            assert len(items) <= max_batch and (len(items) == 1 or len(items) * longest <= batch_tokens)
            assert len({bucket(tokens) for _, tokens in items}) == 1
        assert lanes.waiting == 0

    play(scenario)
