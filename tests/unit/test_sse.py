"""Streams of events without a server: order, errors, comments, callers that leave or do not read."""

import asyncio
import json

import pytest

from agent.api.sse import ClientGone, EventStream, while_connected
from agent.errors import Busy, EngineFailed


class Wire:
    """Both ends of an ASGI call."""

    def __init__(self):
        self.sent, self.gone, self.blocked = [], asyncio.Event(), asyncio.Event()
        self.blocked.set()

    async def receive(self):
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message):
        await self.blocked.wait()
        self.sent.append(message)
        if message["type"] == "http.response.body" and not message.get("more_body"):
            self.gone.set()  # as uvicorn does

    @property
    def text(self):
        return b"".join(message.get("body", b"") for message in self.sent).decode()


async def run(wire, produce, heartbeat_s=10.0):
    await EventStream(produce, heartbeat_s=heartbeat_s, headers={"x-a": "b"})({"type": "http"}, wire.receive, wire.send)


async def test_events_then_done():
    wire = Wire()

    async def produce(writer):
        await writer.event({"n": 1})

    await run(wire, produce)
    assert wire.text == 'data: {"n":1}\n\ndata: [DONE]\n\n'
    assert (b"x-a", b"b") in wire.sent[0]["headers"]
    assert [message["type"] for message in wire.sent].count("http.response.start") == 1


async def test_an_error_before_the_first_byte_is_raised():
    wire = Wire()

    async def produce(writer):
        raise Busy("full")

    with pytest.raises(Busy):
        await run(wire, produce)
    assert wire.sent == []


@pytest.mark.parametrize(
    ("error", "code"), [(EngineFailed("died"), "engine_failed"), (ValueError("secret"), "internal_error")]
)
async def test_a_later_error_is_an_event(error, code):
    wire = Wire()

    async def produce(writer):
        await writer.event({})
        raise error

    await run(wire, produce)
    events = wire.text.split("\n\n")
    assert json.loads(events[1][6:])["error"]["code"] == code
    assert events[2] == "data: [DONE]"
    assert "secret" not in wire.text


async def test_silence_is_filled_with_comments():
    wire = Wire()

    async def produce(writer):
        while ": waiting" not in wire.text:
            await asyncio.sleep(0.001)
        await writer.event({})

    await run(wire, produce, heartbeat_s=0.001)
    assert wire.text.startswith(": waiting\n\n")


@pytest.mark.parametrize("writes", [True, False])
async def test_a_caller_that_does_not_read_ends_the_work(writes):
    wire = Wire()
    wire.blocked.clear()
    ended = asyncio.Event()

    async def produce(writer):
        try:
            if writes:
                await writer.event({})
            await asyncio.Event().wait()
        finally:
            ended.set()

    with pytest.raises(ClientGone):
        await run(wire, produce, heartbeat_s=0.01)
    assert ended.is_set()


async def test_a_caller_that_leaves_ends_the_work_and_its_way_out_is_awaited():
    wire = Wire()
    steps = []

    async def work():
        try:
            wire.gone.set()
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            steps.append("settled")

    with pytest.raises(ClientGone):
        await while_connected(wire.receive, work())
    assert steps == ["settled"]


async def test_what_is_done_is_returned_and_what_failed_is_raised():
    wire = Wire()

    async def one():
        return 1

    async def fail():
        raise Busy("full")

    assert await while_connected(wire.receive, one()) == 1
    with pytest.raises(Busy):
        await while_connected(wire.receive, fail())
