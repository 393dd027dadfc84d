"""Requests in the background: once accepted they run, whatever becomes of who asked."""

import asyncio

import pytest
from fakes.storage_values import NOW, request

from agent.background import Background
from agent.records import Accepted, RequestRecord, RequestState


class SlowJournal:
    """Is cut in the middle of telling what it holds."""

    def __init__(self):
        self.asked = asyncio.Event()

    async def get(self, request_id):
        self.asked.set()
        await asyncio.Event().wait()


class Endless:
    """A pipeline that accepts everything and never ends."""

    async def accept(self, asked):
        return None, Accepted()

    async def run(self, asked, opened):
        await asyncio.Event().wait()
        yield


async def test_who_is_cancelled_behind_the_commit_leaves_a_request_that_runs_and_can_be_ended():
    journal = SlowJournal()
    background = Background(Endless(), journal)
    asked = request(background=True, idempotency_key="k")
    submitting = asyncio.create_task(background.submit(asked))
    await journal.asked.wait()
    submitting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await submitting
    assert background.of_key("k") == asked.id, "a batch that is cancelled now finds it, and ends it"
    await background.stop()


async def test_the_record_of_an_earlier_call_is_returned_and_nothing_runs_again():
    known = RequestRecord(request=None, id="1", state=RequestState.ANSWERED, model="m", received_at_ms=NOW)

    class Known(Endless):
        async def accept(self, asked):
            return known, Accepted()

    background = Background(Known(), SlowJournal())
    assert await background.submit(request(background=True, idempotency_key="k")) is known
    assert background.of_key("k") is None
