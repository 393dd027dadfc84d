"""Requests in the background: once accepted they run, whatever becomes of who asked."""

import asyncio

from fakes.storage_values import NOW, request

from agent.background import Background
from agent.records import Accepted, RequestRecord, RequestState


class Endless:
    """A pipeline that accepts everything and never ends."""

    async def accept(self, asked):
        asyncio.current_task().cancel()  # whoever waits for the answer leaves behind the commit
        return None, Accepted()

    async def run(self, asked, opened):
        await asyncio.Event().wait()
        yield


async def test_who_is_cancelled_behind_the_commit_leaves_a_request_that_runs_and_can_be_ended():
    background = Background(Endless(), journal=None)
    asked = request(background=True, idempotency_key="k")
    await asyncio.wait((asyncio.create_task(background.submit(asked)),))
    assert background.of_key("k") == asked.id, "a batch that is cancelled now finds it, and ends it"
    await background.stop()


async def test_a_bug_is_told_by_its_place_and_quotes_nothing(caplog):
    class Faulty(Endless):
        async def accept(self, asked):
            return None, Accepted()

        async def run(self, asked, opened):
            raise ValueError(f"what is {asked.messages[0].content!r}?")
            yield

    background = Background(Faulty(), journal=None)
    record = await background.submit(request("a secretword", background=True))
    await background.ended(record.id)
    assert "unexpected ValueError" in caplog.text
    assert "test_background.py" in caplog.text
    assert "secretword" not in caplog.text


async def test_the_record_of_an_earlier_call_is_returned_and_nothing_runs_again():
    known = RequestRecord(request=None, id="1", state=RequestState.ANSWERED, model="m", received_at_ms=NOW)

    class Known(Endless):
        async def accept(self, asked):
            return known, Accepted()

    background = Background(Known(), journal=None)
    assert await background.submit(request(background=True, idempotency_key="k")) is known
    assert background.of_key("k") is None
