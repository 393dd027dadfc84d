"""The dispatcher when it is stopped, its targets are changed, its storage fails: leases, limits, the log."""

import asyncio

import pytest
from fakes import cloud as fake
from fakes.cloud import Cloud
from fakes.dispatching import (
    ended,
    make,
    now_ms,
    queue_row,
    running,
    target,
)
from fakes.storage_values import queued

from agent.errors import ConfigError, DiskFull
from agent.records import EscalationState, RequestState
from agent.text_settings import RedactionSettings


async def test_a_cancel_while_it_is_sent_ends_in_a_lost_lease(storage, cloud, caplog):
    release = asyncio.Event()
    cloud.script(fake.gated(release))
    record = await queue_row(storage, cloud)
    async with running(storage, target(cloud)) as dispatcher:
        await cloud.received(1)
        await storage.outbox.cancel(record.id, now_ms=now_ms())
        release.set()
        other = await queue_row(storage, cloud, "the next one")
        dispatcher.wake()
        assert (await ended(storage, other)).state is RequestState.RESOLVED
    late = await storage.journal.get(record.id)
    assert late.state is RequestState.CANCELLED
    assert late.cloud_answer is None
    outcomes = [entry.outcome for entry in await storage.egress_log.list()]
    assert sorted(outcomes) == ["succeeded", "unknown"]


async def test_stop_lets_a_slow_send_finish_and_claims_nothing_more(storage, cloud):
    release = asyncio.Event()
    cloud.script(fake.gated(release))
    first, second = await queue_row(storage, cloud, "first"), await queue_row(storage, cloud, "second")
    dispatcher = make(storage, target(cloud))
    await dispatcher.start()
    await cloud.received(1)
    stopping = asyncio.create_task(dispatcher.stop())
    await asyncio.sleep(0)
    release.set()
    await stopping
    assert (await storage.journal.get(first.id)).state is RequestState.RESOLVED
    assert (await storage.outbox.get(second.id)).state is EscalationState.PENDING
    assert len(cloud.chats) == 1


async def test_stop_settles_a_send_that_outlasts_the_grace(storage, cloud):
    cloud.script(fake.hang())
    record = await queue_row(storage, cloud)
    dispatcher = make(storage, target(cloud), grace_s=0.1)
    await dispatcher.start()
    await cloud.received(1)
    await dispatcher.stop()
    row = await storage.outbox.get(record.id)
    assert (row.state, row.attempts) == (EscalationState.PENDING, 1)
    assert (await storage.egress_log.totals(0)).rows == 1


async def test_a_target_that_is_removed_finishes_its_sends_and_its_rows_wait(storage, cloud):
    release = asyncio.Event()
    cloud.script(fake.gated(release))
    first, second = await queue_row(storage, cloud, "first"), await queue_row(storage, cloud, "second")
    async with running(storage, target(cloud)) as dispatcher:
        await cloud.received(1)
        await dispatcher.replace_targets([], RedactionSettings())
        release.set()
        assert (await ended(storage, first)).state is RequestState.RESOLVED
        await dispatcher.drain()
        [gone] = dispatcher.status()
        assert (gone.name, gone.state, gone.waiting) == ("cloud", "unconfigured", 1)
        await dispatcher.replace_targets([target(cloud)], RedactionSettings())
        assert (await ended(storage, second)).state is RequestState.RESOLVED


async def test_stop_does_not_wait_long_for_a_target_that_was_removed(storage, cloud):
    cloud.script(fake.hang())
    record = await queue_row(storage, cloud)
    async with running(storage, target(cloud), grace_s=0.1) as dispatcher:
        await cloud.received(1)
        await dispatcher.replace_targets([], RedactionSettings())
    assert (await storage.outbox.get(record.id)).state is EscalationState.PENDING


async def test_a_wrong_configuration_changes_nothing(storage, cloud):
    async with running(storage, target(cloud)) as dispatcher:
        with pytest.raises(ConfigError):
            await dispatcher.replace_targets([target(cloud, base_url="http://127.0.0.1:99999/v1")], RedactionSettings())
        record = await queue_row(storage, cloud)
        dispatcher.wake()
        assert (await ended(storage, record)).state is RequestState.RESOLVED


async def test_no_more_sends_at_once_than_configured(storage, cloud):
    release = asyncio.Event()
    cloud.default = fake.gated(release)
    cloud.script(fake.ok(), fake.ok())  # the window opens: one, two, then three at most
    records = [await queue_row(storage, cloud, f"question {n}") for n in range(8)]
    async with running(storage, target(cloud, concurrency=3)) as dispatcher:
        await cloud.received(5)
        await asyncio.sleep(0.05)
        assert dispatcher.status()[0].in_flight == 3
        assert len(cloud.chats) == 5
        release.set()
        for record in records:
            await ended(storage, record)


async def test_sends_keep_their_distance(storage, cloud):
    first, second = await queue_row(storage, cloud, "first"), await queue_row(storage, cloud, "second")
    async with running(storage, target(cloud, min_interval_s=3600)):
        await ended(storage, first)
        await asyncio.sleep(0.05)
        assert (await storage.outbox.get(second.id)).state is EscalationState.PENDING
    assert len(cloud.chats) == 1


async def test_two_targets_do_not_wait_for_each_other(storage, cloud):
    async with Cloud() as other:
        cloud.default = fake.hang()
        stuck = await queue_row(storage, cloud, "stuck")
        record = await queue_row(storage, other, "other", decision=queued(target="other"))
        async with running(storage, target(cloud), target(other, "other"), grace_s=0.1):
            await cloud.received(1)
            assert (await ended(storage, record)).answered_by == "other"
        assert (await storage.journal.get(stuck.id)).state is RequestState.QUEUED


async def test_an_answer_is_kept_while_storage_cannot_take_it(storage, cloud, monkeypatch):
    monkeypatch.setattr("agent.escalation.lane.STORAGE_AGAIN_S", 0.01)
    succeed, failures = storage.outbox.succeed, iter([DiskFull("no space"), DiskFull("no space")])

    async def sometimes(*arguments, **fields):
        if error := next(failures, None):
            raise error
        return await succeed(*arguments, **fields)

    monkeypatch.setattr(storage.outbox, "succeed", sometimes)
    record = await queue_row(storage, cloud)
    async with running(storage, target(cloud)):
        assert (await ended(storage, record)).state is RequestState.RESOLVED
    assert len(cloud.chats) == 1, "an answer that was paid for is not asked for again"


async def test_a_lane_outlives_a_storage_error(storage, cloud, monkeypatch):
    monkeypatch.setattr("agent.escalation.lane.STORAGE_AGAIN_S", 0.01)
    claim, failures = storage.outbox.claim, iter([DiskFull("no space")])

    async def sometimes(*arguments, **fields):
        if error := next(failures, None):
            raise error
        return await claim(*arguments, **fields)

    monkeypatch.setattr(storage.outbox, "claim", sometimes)
    record = await queue_row(storage, cloud)
    async with running(storage, target(cloud)):
        assert (await ended(storage, record)).state is RequestState.RESOLVED


async def test_no_text_and_no_key_in_the_log(storage, cloud, caplog, monkeypatch):
    monkeypatch.setenv("BIG_KEY", "sk-needle")
    monkeypatch.setattr("agent.telemetry.LOG.propagate", True)
    caplog.set_level("DEBUG")
    cloud.script(
        fake.status(500), fake.raw(400, b'{"error": {"message": "needle", "code": "x needle"}}'), fake.ok("needle")
    )
    async with running(storage, target(cloud, api_key_env="BIG_KEY")) as dispatcher:
        for _ in range(2):
            record = await queue_row(storage, cloud, "needle in the question")
            dispatcher.wake()
            await ended(storage, record)
    assert "outcome=delivered" in caplog.text
    assert "needle" not in caplog.text
