"""The dispatcher over a real outbox and a real target on loopback: the road, outcomes, being offline."""

import asyncio

import pytest
from fakes import cloud as fake
from fakes.dispatching import (
    QUEUE,
    LongWait,
    ended,
    now_ms,
    queue_row,
    row_until,
    running,
    status_until,
    target,
)
from fakes.storage_values import queued

from agent.records import EscalationState, RequestState
from agent.settings import ConnectivitySettings
from agent.text_settings import RedactionSettings
from agent.types import Handoff

# --- the road ---------------------------------------------------------------------------


async def test_a_row_is_sent_and_its_answer_joined(storage, cloud):
    async with running(storage, target(cloud)) as dispatcher:
        record = await queue_row(storage, cloud)
        dispatcher.wake()
        late = await ended(storage, record)
        while dispatcher.status()[0].in_flight:
            await asyncio.sleep(0.01)
        [status] = dispatcher.status()
    assert late.state is RequestState.RESOLVED
    assert late.answered_by == "cloud"
    assert late.generation.text == "Port Vila"
    assert late.cloud_answer.text == "cloud: what is the capital of Vanuatu?"
    assert cloud.keys == [late.escalation.id]
    totals = await storage.egress_log.totals(0)
    assert (totals.rows, totals.bytes) == (1, len(cloud.chats[0].body))
    [attempt] = await storage.outbox.attempts(late.escalation.id)
    assert attempt.body_bytes == len(cloud.chats[0].body)
    assert (status.name, status.state, status.in_flight) == ("cloud", "online", 0)
    assert status.last_success_ms is not None


async def test_rows_that_waited_before_the_start_go_by_themselves(storage, cloud):
    records = [await queue_row(storage, cloud, f"question {n}") for n in range(5)]
    async with running(storage, target(cloud)):
        for record in records:
            assert (await ended(storage, record)).state is RequestState.RESOLVED
    assert len(set(cloud.keys)) == len(cloud.keys) == 5
    assert len(cloud.probes) == 1


@pytest.mark.parametrize(
    ("handoff", "reply", "text", "verdict"),
    [
        (Handoff.REFINE, "Port Vila, on Efate", "Port Vila, on Efate", None),
        (Handoff.VERIFY, "RIGHT", "Port Vila", "right"),
        (Handoff.VERIFY, "WRONG\nLuganville", "Luganville", "wrong"),
    ],
)
async def test_handoffs_are_stored_with_their_verdict(storage, cloud, handoff, reply, text, verdict):
    cloud.script(fake.ok(reply))
    record = await queue_row(storage, cloud, decision=queued(handoff=handoff))
    async with running(storage, target(cloud)):
        late = await ended(storage, record)
    assert (late.cloud_answer.text, late.cloud_answer.verdict) == (text, verdict)
    assert "Port Vila" in cloud.chats[0].body.decode()


# --- outcomes on the row ------------------------------------------------------------------


async def test_a_retry_spends_an_attempt_and_keeps_its_key(storage, cloud):
    cloud.script(fake.status(500), fake.cut_body(), fake.ok())
    record = await queue_row(storage, cloud)
    async with running(storage, target(cloud)):
        late = await ended(storage, record)
    assert late.state is RequestState.RESOLVED
    assert late.escalation.attempts == 2
    assert cloud.keys == [late.escalation.id] * 3
    assert (await storage.egress_log.totals(0)).rows == 3


async def test_attempts_are_bounded(storage, cloud):
    cloud.default = fake.status(409)
    record = await queue_row(storage, cloud)
    async with running(storage, target(cloud)):
        late = await ended(storage, record)
    assert late.state is RequestState.UNRESOLVED
    assert late.escalation.state is EscalationState.DEAD
    assert len(cloud.chats) == QUEUE.max_attempts


async def test_a_rejected_row_is_dead_with_its_reason_and_the_draft_stays(storage, cloud):
    cloud.script(fake.ok(outrider={"decision": "uncertain"}))
    record = await queue_row(storage, cloud)
    async with running(storage, target(cloud)):
        late = await ended(storage, record)
    assert late.state is RequestState.UNRESOLVED
    assert late.escalation.last_error == "uncertain"
    assert late.generation.text == "Port Vila"
    assert late.cloud_answer is None


async def test_patience_is_no_attempt_and_holds_the_whole_target(storage, cloud):
    cloud.script(fake.rate_limited(seconds=3600))
    first, second = await queue_row(storage, cloud, "first"), await queue_row(storage, cloud, "second")
    async with running(storage, target(cloud)) as dispatcher:
        row = await row_until(storage, first, lambda row: row.last_error is not None)
        assert row.attempts == 0
        assert row.available_at_ms > now_ms() + 3_000_000
        dispatcher.wake()
        assert dispatcher.status()[0].held_until_ms > now_ms() + 3_000_000
        assert (await storage.outbox.get(second.id)).state is EscalationState.PENDING
        assert len(cloud.chats) == 1
        await dispatcher.drain()
        assert (await ended(storage, first)).state is RequestState.RESOLVED
        assert (await ended(storage, second)).state is RequestState.RESOLVED


async def test_a_blocked_target_pauses_and_rows_stay_pending(storage, cloud):
    cloud.script(fake.status(401))
    first, second = await queue_row(storage, cloud, "first"), await queue_row(storage, cloud, "second")
    async with running(storage, target(cloud)) as dispatcher:
        status = await status_until(dispatcher, "blocked")
        assert "401" in status.reason
        assert status.next_probe_ms > now_ms() + 60_000
        dispatcher.wake()
        dispatcher.network_changed()
        for record in (first, second):
            row = await row_until(storage, record, lambda row: row.state is EscalationState.PENDING)
            assert row.attempts == 0
        assert len(cloud.chats) == 1
        await dispatcher.replace_targets([target(cloud)], RedactionSettings())
        assert (await ended(storage, first)).state is RequestState.RESOLVED


async def test_a_row_that_the_target_queued_waits_there(storage, cloud):
    cloud.script(fake.ok(outrider={"decision": "queued", "state": "queued"}), fake.ok("late"))
    record = await queue_row(storage, cloud)
    async with running(storage, target(cloud, chain=True)) as dispatcher:
        row = await row_until(storage, record, lambda row: row.last_error is not None)
        assert row.attempts == 0
        assert row.available_at_ms > now_ms()
        await dispatcher.drain()
        assert (await ended(storage, record)).cloud_answer.text == "late"
    assert cloud.keys == [row.id] * 2


@pytest.mark.parametrize("trouble", [fake.html(), fake.raw(200, b"{}"), fake.rate_limited(seconds=1)])
async def test_one_row_that_never_goes_does_not_keep_the_others(storage, cloud, monkeypatch, trouble):
    monkeypatch.setattr("agent.storage.outbox.SNOOZES_PER_ATTEMPT", 2)

    async def for_the_poison_only(exchange):
        await (trouble if exchange.received.last_user_text == "poison" else fake.ok())(exchange)

    cloud.default = for_the_poison_only
    poison = await queue_row(storage, cloud, "poison")
    records = [await queue_row(storage, cloud, f"question {n}") for n in range(5)]
    async with running(storage, target(cloud)) as dispatcher, asyncio.TaskGroup() as tasks:
        hasten = tasks.create_task(drain_again_and_again(dispatcher))
        for record in records:
            assert (await ended(storage, record)).state is RequestState.RESOLVED
        await row_until(storage, poison, lambda row: row.attempts > 0)
        hasten.cancel()


async def drain_again_and_again(dispatcher):
    """A person who does not want to wait for any backoff."""
    while True:
        await dispatcher.drain()
        await asyncio.sleep(0.02)


async def test_a_403_about_one_text_does_not_pause_the_target(storage, cloud):
    cloud.script(fake.raw(403, b'{"error": {"code": "content_policy_violation"}}'), fake.ok())
    first, second = await queue_row(storage, cloud, "first"), await queue_row(storage, cloud, "second")
    async with running(storage, target(cloud)):
        assert (await ended(storage, first)).state is RequestState.UNRESOLVED
        assert (await ended(storage, second)).state is RequestState.RESOLVED


# --- offline -------------------------------------------------------------------------------


async def test_offline_spends_no_attempt_and_sends_nothing_until_return(storage, cloud):
    await cloud.down()
    record = await queue_row(storage, cloud)
    async with running(storage, target(cloud)) as dispatcher:
        await status_until(dispatcher, "offline")
        row = await storage.outbox.get(record.id)
        assert (row.state, row.attempts) == (EscalationState.PENDING, 0)
        await cloud.up()
        assert (await ended(storage, record)).state is RequestState.RESOLVED
    assert len(cloud.chats) == 1
    assert len(await storage.outbox.attempts(row.id)) == 1


async def test_an_outage_between_probe_and_send_spends_no_attempt(storage, cloud):
    async def answer_and_close(exchange):
        await fake.models()(exchange)
        cloud._server.close()

    cloud.script_probes(answer_and_close)
    record = await queue_row(storage, cloud)
    async with running(storage, target(cloud)) as dispatcher:
        await status_until(dispatcher, "offline")
        row = await row_until(storage, record, lambda row: row.state is EscalationState.PENDING)
        assert row.attempts == 0
        assert (await storage.egress_log.totals(0)).rows == 0
        await cloud.up()
        assert (await ended(storage, record)).state is RequestState.RESOLVED


async def test_a_portal_gets_no_text(storage, cloud):
    cloud.script_probes(*[fake.html()] * 3)
    record = await queue_row(storage, cloud)
    async with running(storage, target(cloud)) as dispatcher:
        await status_until(dispatcher, "portal")
        assert cloud.chats == []
        assert (await ended(storage, record)).state is RequestState.RESOLVED
    assert len(cloud.probes) == 4


async def test_nothing_is_contacted_while_no_row_waits(storage, cloud):
    async with running(storage, target(cloud)) as dispatcher:
        for _ in range(3):
            dispatcher.wake()
            dispatcher.network_changed()
            await asyncio.sleep(0.02)
        assert cloud.requests == []
        assert dispatcher.status()[0].state == "unknown"


async def test_a_row_that_backs_off_causes_no_probe(storage, cloud):
    cloud.script(fake.cut_before_reply())
    record = await queue_row(storage, cloud)
    async with running(storage, target(cloud), random=LongWait()) as dispatcher:
        await row_until(storage, record, lambda row: row.attempts == 1)
        probes = len(cloud.probes)
        dispatcher.network_changed()
        await asyncio.sleep(0.05)
        assert len(cloud.probes) == probes
        assert dispatcher.status()[0].state == "unknown", "who does not reply is asked before the next send"


async def test_news_of_the_network_ends_the_backoff(storage, cloud):
    await cloud.down()
    patient = ConnectivitySettings(connect_timeout_s=1.0, probe_cap_s=3600, probe_cap_battery_s=3600)
    record = await queue_row(storage, cloud)
    async with running(storage, target(cloud), random=LongWait(), connectivity=patient) as dispatcher:
        for _ in range(12):  # the next probe is an hour away
            await status_until(dispatcher, "offline")
            dispatcher._lanes["cloud"].circuit.lost("still gone", 0.0, cap_s=3600)
        dispatcher._lanes["cloud"].circuit.lost("still gone", asyncio.get_running_loop().time(), cap_s=3600)
        await cloud.up()
        assert dispatcher.status()[0].next_probe_ms > now_ms() + 600_000
        dispatcher.network_changed()
        assert (await ended(storage, record)).state is RequestState.RESOLVED


async def test_the_cap_is_the_one_of_the_power_source(storage, cloud):
    await cloud.down()
    await queue_row(storage, cloud)
    caps = ConnectivitySettings(connect_timeout_s=1.0, probe_cap_s=1, probe_cap_battery_s=3600)
    async with running(
        storage, target(cloud), random=LongWait(), connectivity=caps, on_battery=lambda: True
    ) as dispatcher:
        await status_until(dispatcher, "offline")
        circuit = dispatcher._lanes["cloud"].circuit
        for _ in range(10):
            dispatcher._lanes["cloud"]._lost(fake_offline())
        assert circuit.probe_in_s(asyncio.get_running_loop().time()) > 100


def fake_offline():
    from agent.escalation.target import Offline

    return Offline("gone")
