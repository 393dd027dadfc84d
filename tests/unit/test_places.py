"""Who gets the places of a model."""

import asyncio
from contextlib import aclosing

import msgspec
import pytest
from fakes.storage_values import request as a_request

from agent.engine.places import Places
from agent.types import FailureKind, Generation

MODEL = "small"


class Engine:
    """Answers when it is told to; counts what runs at the same time."""

    def __init__(self):
        self.begun, self.ended, self.running = [], [], set()
        self.go = asyncio.Event()

    async def generate(self, request):
        self.begun.append(request.id)
        self.running.add(request.id)
        try:
            await self.go.wait()
            self.ended.append(request.id)
            yield Generation(text=request.id)
        finally:
            self.running.discard(request.id)


def asked(name, *, background=False, deadline_at_ms=None):
    return msgspec.structs.replace(
        a_request(), id=name, model=MODEL, background=background, deadline_at_ms=deadline_at_ms
    )


async def answer(places, request):
    async with aclosing(places.generate(request)) as events:
        return [event async for event in events][-1]


async def settle():
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.fixture
def engine():
    return Engine()


@pytest.fixture
def places(engine):
    return Places(engine, 2, lambda: 0)


async def test_the_background_fills_what_is_free_and_no_more(places, engine):
    tasks = [asyncio.create_task(answer(places, asked(name, background=True))) for name in "abc"]
    await settle()
    assert engine.running == {"a", "b"}
    engine.go.set()
    assert [done.text for done in await asyncio.gather(*tasks)] == ["a", "b", "c"]


async def test_somebody_who_waits_gets_the_place_of_the_last_in_the_background(places, engine):
    tasks = [asyncio.create_task(answer(places, asked(name, background=True))) for name in "abc"]
    await settle()
    waited = asyncio.create_task(answer(places, asked("x")))
    await settle()
    assert engine.running == {"a", "x"}
    engine.go.set()
    assert (await waited).text == "x"
    # What gave its place up is begun again before those that never had one.
    assert {done.text for done in await asyncio.gather(*tasks)} == {"a", "b", "c"}
    assert engine.begun == ["a", "b", "x", "b", "c"]
    assert sorted(engine.ended) == ["a", "b", "c", "x"]


async def test_those_that_wait_are_never_held_up(places, engine):
    tasks = [asyncio.create_task(answer(places, asked(name))) for name in "vwxyz"]
    await settle()
    assert engine.running == set("vwxyz")  # the engine has its own waiting line
    behind = asyncio.create_task(answer(places, asked("b", background=True)))
    await settle()
    assert "b" not in engine.begun
    engine.go.set()
    await asyncio.gather(*tasks)
    assert (await behind).text == "b"


async def test_a_deadline_passes_without_a_place(places, engine):
    tasks = [asyncio.create_task(answer(places, asked(name))) for name in "xy"]
    await settle()
    late = await answer(places, asked("late", background=True, deadline_at_ms=1))
    assert late.failure.kind is FailureKind.TIMEOUT
    engine.go.set()
    await asyncio.gather(*tasks)


@pytest.mark.parametrize("when", ["waiting", "running"])
async def test_a_cancel_gives_everything_back(places, engine, when):
    held = [asyncio.create_task(answer(places, asked(name))) for name in ("xy" if when == "waiting" else "")]
    await settle()
    gone = asyncio.create_task(answer(places, asked("gone", background=True)))
    await settle()
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    engine.go.set()
    await asyncio.gather(*held)
    tasks = [asyncio.create_task(answer(places, asked(name, background=True))) for name in "abc"]
    assert [done.text for done in await asyncio.gather(*tasks)] == ["a", "b", "c"]


async def test_who_leaves_the_line_as_a_place_comes_free_does_not_harm_who_frees_it(places, engine):
    first, second = (asyncio.create_task(answer(places, asked(name))) for name in "xy")
    await settle()
    gone = asyncio.create_task(answer(places, asked("a", background=True)))
    await settle()
    engine.go.set()
    gone.cancel()  # its turn comes before it learns of that
    assert [(await one).text for one in (first, second)] == ["x", "y"]
    with pytest.raises(asyncio.CancelledError):
        await gone
    tasks = [asyncio.create_task(answer(places, asked(name, background=True))) for name in "bc"]
    assert [done.text for done in await asyncio.gather(*tasks)] == ["b", "c"]


async def test_a_place_comes_back_from_work_that_is_stopped_twice():
    class Slow(Engine):
        async def generate(self, request):
            try:
                await self.go.wait()
            finally:
                await asyncio.sleep(0.01)
            yield Generation(text=request.id)

    slow = Slow()
    places = Places(slow, 1, lambda: 0)
    task = asyncio.create_task(answer(places, asked("a", background=True)))
    await settle()
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    slow.go.set()
    assert (await answer(places, asked("b", background=True))).text == "b"
