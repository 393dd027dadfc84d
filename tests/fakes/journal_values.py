"""A request in the journal, and the ways in which its row ends."""

from fakes import storage_values as values
from fakes.storage_values import DAY, NOW

from agent.records import CloudAnswer

LATE = CloudAnswer(text="Port Vila, on Efate", finish_reason="stop", model="big", prompt_tokens=9, output_tokens=5)


async def ask(storage, decision=values.ANSWERED, **fields):
    asked = values.request(**fields)
    assert await storage.journal.open(asked, now_ms=NOW) is None
    return await storage.journal.settle(asked, values.generation(), values.UNSURE, decision, now_ms=NOW)


async def end_as(storage, state):
    """End the one row of the queue without an answer."""
    if state == "expired":
        await storage.outbox.expire(NOW + 7 * DAY)
    elif state == "cancelled":
        await storage.outbox.cancel((await storage.outbox.list())[0].id, now_ms=NOW)
    else:
        row, _ = await storage.outbox.claim("cloud", now_ms=NOW, lease_ms=1000)
        await storage.outbox.reject(row, reason="400", left=False, now_ms=NOW)


async def resolve(storage, now_ms=NOW):
    row, _ = await storage.outbox.claim("cloud", now_ms=now_ms, lease_ms=1000)
    await storage.outbox.begin_send(row, body_sha256="ab", body_bytes=12, now_ms=now_ms)
    return await storage.outbox.succeed(row, LATE, now_ms=now_ms)
