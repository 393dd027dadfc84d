"""The dispatcher over a real outbox and a real target on loopback."""

import asyncio
import contextlib
import time
from random import Random

import msgspec
import pytest
from fakes import cloud as fake
from fakes.cloud import Cloud
from fakes.storage_values import enqueue, fast_folder, opened, queued

from agent.errors import ConfigError, DiskFull
from agent.escalation.consent import under
from agent.escalation.dispatcher import Dispatcher
from agent.records import EscalationState, RequestState
from agent.settings import ConnectivitySettings, QueueSettings, TargetSettings
from agent.types import EgressPolicy, Handoff, RouteMode

CONNECTIVITY = ConnectivitySettings(connect_timeout_s=1.0, probe_cap_s=1.0)
QUEUE = QueueSettings(ballast_bytes=0)


class NoWait(Random):
    """Draws the shortest wait, so that no test waits for a backoff."""

    def uniform(self, a, b):
        return a


class LongWait(Random):
    """Draws the longest wait: what was put off stays put off."""

    def uniform(self, a, b):
        return b


def now_ms():
    return time.time_ns() // 1_000_000


@pytest.fixture
async def storage():
    import shutil

    folder = fast_folder()
    opened_storage = await opened(folder, queue=QUEUE, now_ms=now_ms())
    yield opened_storage
    await opened_storage.close()
    shutil.rmtree(folder)


@pytest.fixture
async def cloud():
    async with Cloud() as server:
        yield server


def target(cloud, name="cloud", **fields):
    values = {"name": name, "base_url": cloud.base_url, "model": "big", "egress": EgressPolicy.ALLOW}
    return TargetSettings(**{**values, **fields})


def make(storage, *targets, random=None, connectivity=CONNECTIVITY, grace_s=5.0, on_battery=lambda: False):
    return Dispatcher(
        storage,
        targets,
        connectivity,
        QUEUE,
        now_ms=now_ms,
        random=random or NoWait(),
        on_battery=on_battery,
        grace_s=grace_s,
    )


@contextlib.asynccontextmanager
async def running(*arguments, **options):
    dispatcher = make(*arguments, **options)
    await dispatcher.start()
    try:
        yield dispatcher
    finally:
        await dispatcher.stop()


async def queue_row(storage, cloud, text="what is the capital of Vanuatu?", decision=None, **fields):
    decision = decision or queued()
    if decision.target is not None:
        decision = msgspec.structs.replace(decision, target_fingerprint=target(cloud).fingerprint)
    return await enqueue(storage, decision, now_ms=now_ms(), text=text, **fields)


async def ended(storage, record):
    """Wait until the request is no longer queued; return its record."""
    async for latest in storage.journal.watch(record.id):
        if latest.state is not RequestState.QUEUED:
            return latest
    return latest


async def row_until(storage, record, holds):
    """Wait until the outbox row is as asked; return it."""
    while not holds(row := await storage.outbox.get(record.id)):
        await asyncio.sleep(0.01)
    return row


async def status_until(dispatcher, state):
    while dispatcher.status()[0].state != state:
        await asyncio.sleep(0.01)
    return dispatcher.status()[0]


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
        await dispatcher.replace_targets([target(cloud)])
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


# --- policy ----------------------------------------------------------------------------------


async def test_rows_accepted_without_a_target_stay_until_they_are_released(storage, cloud):
    records = [
        await queue_row(storage, cloud, f"old {n}", decision=queued(target=None, egress=EgressPolicy.APPROVE))
        for n in range(100)
    ]
    async with running(storage, target(cloud)) as dispatcher:
        new = await queue_row(storage, cloud, "new")
        dispatcher.wake()
        await ended(storage, new)
        await dispatcher.drain()
        await dispatcher.replace_targets([target(cloud, concurrency=1)])
        newer = await queue_row(storage, cloud, "newer")
        dispatcher.wake()
        await ended(storage, newer)
        assert [chat.last_user_text for chat in cloud.chats] == ["new", "newer"]
        assert (await storage.outbox.counts())["awaiting_approval"]["rows"] == 100
        assert (await storage.egress_log.totals(0)).rows == 2

        assert (
            await storage.outbox.release(
                [records[7].id], target="cloud", fingerprint=target(cloud).fingerprint, now_ms=now_ms()
            )
            == 1
        )
        dispatcher.wake()
        assert (await ended(storage, records[7])).state is RequestState.RESOLVED
    assert cloud.chats[-1].last_user_text == "old 7"
    assert len(cloud.chats) == 3


@pytest.mark.parametrize(
    ("decision", "fields"),
    [
        (queued(egress=EgressPolicy.REDACT), {}),
        (queued(), {"egress": EgressPolicy.NEVER}),
        (queued(), {"egress": EgressPolicy.REDACT}),
        (queued(), {"route_mode": RouteMode.LOCAL_ONLY}),
    ],
)
async def test_policy_is_checked_again_when_it_comes_to_sending(storage, cloud, decision, fields):
    record = await queue_row(storage, cloud, decision=decision, **fields)
    if (await storage.outbox.get(record.id)).state is EscalationState.AWAITING_APPROVAL:
        await storage.outbox.release(None, target="cloud", fingerprint=target(cloud).fingerprint, now_ms=now_ms())
    async with running(storage, target(cloud)):
        late = await ended(storage, record)
    assert late.state is RequestState.UNRESOLVED
    assert late.escalation.last_error.startswith("not sent: ")
    assert cloud.chats == []
    assert (await storage.egress_log.totals(0)).rows == 0


@contextlib.asynccontextmanager
async def cut_off(storage, cloud, released):
    """Run while the target is down and rows wait for it, one of them released by a person."""
    fingerprint = target(cloud).fingerprint
    assert await storage.outbox.release([released.id], target="cloud", fingerprint=fingerprint, now_ms=now_ms()) == 1
    await cloud.down()
    async with running(storage, target(cloud)) as dispatcher:
        await status_until(dispatcher, "offline")
        yield dispatcher


async def waits_for_a_person(storage, record, reason):
    row = await row_until(storage, record, lambda row: row.state is EscalationState.AWAITING_APPROVAL)
    assert row.reason == reason
    assert not row.released


APPROVE = queued(egress=EgressPolicy.APPROVE)


@pytest.mark.parametrize("at_claim", [False, True])
async def test_a_tightened_target_sends_only_what_a_person_released(storage, cloud, monkeypatch, at_claim):
    if at_claim:  # the look at the reload is for the eye; the one at the claim must be enough
        monkeypatch.setattr(storage.outbox, "hold_pending", nothing_held)
    allowed = await queue_row(storage, cloud, "allowed")
    released = await queue_row(storage, cloud, "released", decision=APPROVE)
    async with cut_off(storage, cloud, released) as dispatcher:
        await dispatcher.replace_targets([target(cloud, egress=EgressPolicy.APPROVE)])
        await cloud.up()
        await dispatcher.drain()
        assert (await ended(storage, released)).state is RequestState.RESOLVED
        await waits_for_a_person(storage, allowed, "policy_tightened")
        await dispatcher.replace_targets([target(cloud)])
        await dispatcher.drain()
        newer = await queue_row(storage, cloud, "newer")
        dispatcher.wake()
        await ended(storage, newer)
    assert [chat.last_user_text for chat in cloud.chats] == ["released", "newer"]


async def nothing_held(*arguments, **fields):
    return 0


@pytest.mark.parametrize("at_claim", [False, True])
@pytest.mark.parametrize("change", ["address", "model"])
async def test_consent_is_for_an_address_and_a_model_not_for_a_name(storage, cloud, monkeypatch, change, at_claim):
    if at_claim:
        monkeypatch.setattr(storage.outbox, "hold_pending", nothing_held)
    async with Cloud() as other:
        allowed = await queue_row(storage, cloud, "allowed")
        released = await queue_row(storage, cloud, "released", decision=APPROVE)
        async with cut_off(storage, cloud, released) as dispatcher:
            changed = target(other) if change == "address" else target(cloud, model="another")
            await dispatcher.replace_targets([changed])
            await cloud.up()
            await dispatcher.drain()
            for record in (allowed, released):
                await waits_for_a_person(storage, record, "target_changed")
            assert cloud.chats == other.chats == []
            fingerprint = changed.fingerprint
            assert await storage.outbox.release(None, target="cloud", fingerprint=fingerprint, now_ms=now_ms()) == 2
            dispatcher.wake()
            assert (await ended(storage, released)).state is RequestState.RESOLVED


async def test_a_change_while_the_daemon_was_down_is_seen_at_the_start(storage, cloud):
    record = await queue_row(storage, cloud)
    async with running(storage, target(cloud, egress=EgressPolicy.APPROVE)):
        await waits_for_a_person(storage, record, "policy_tightened")
    assert cloud.requests == []


async def test_a_send_that_has_not_begun_when_its_target_changes_does_not_begin(storage, cloud, monkeypatch):
    record = await queue_row(storage, cloud)
    begin = storage.outbox.begin_send
    async with running(storage, target(cloud)) as dispatcher:

        async def change_meanwhile(*arguments, **fields):
            await begin(*arguments, **fields)
            monkeypatch.setattr(storage.outbox, "begin_send", begin)
            await dispatcher.replace_targets([target(cloud, egress=EgressPolicy.APPROVE)])

        monkeypatch.setattr(storage.outbox, "begin_send", change_meanwhile)
        dispatcher.wake()
        await waits_for_a_person(storage, record, "policy_tightened")
    assert cloud.chats == []
    assert (await storage.egress_log.totals(0)).rows == 0


@pytest.mark.parametrize(
    ("now", "reason"),
    [
        ([], "target_removed"),
        ([{"egress": EgressPolicy.APPROVE}], "policy_tightened"),
        ([{"model": "another"}], "target_changed"),
    ],
)
async def test_a_retry_by_hand_does_not_go_round_the_policy(storage, cloud, now, reason):
    record = await queue_row(storage, cloud)
    await storage.outbox.cancel(record.id, now_ms=now_ms())
    hold = under([target(cloud, **fields) for fields in now])
    row = await storage.outbox.retry_by_hand(record.id, hold=hold, now_ms=now_ms())
    assert (row.state, row.reason) == (EscalationState.AWAITING_APPROVAL, reason)
    async with running(storage, target(cloud)) as dispatcher:
        await dispatcher.drain()
        assert cloud.requests == []


async def test_a_retry_by_hand_under_the_same_policy_goes(storage, cloud):
    record = await queue_row(storage, cloud)
    await storage.outbox.cancel(record.id, now_ms=now_ms())
    row = await storage.outbox.retry_by_hand(record.id, hold=under([target(cloud)]), now_ms=now_ms())
    assert row.state is EscalationState.PENDING


async def test_a_target_set_to_never_gets_nothing(storage, cloud):
    record = await queue_row(storage, cloud)
    async with running(storage, target(cloud, egress=EgressPolicy.NEVER)) as dispatcher:
        await dispatcher.drain()
        await asyncio.sleep(0.05)
        assert cloud.requests == []
        assert dispatcher.status()[0].state == "blocked"
    row = await storage.outbox.get(record.id)
    assert (row.state, row.reason) == (EscalationState.AWAITING_APPROVAL, "policy_tightened")


async def test_an_expired_row_is_not_sent(storage, cloud):
    long_ago = now_ms() - QUEUE.ttl_s * 1000 - 1000
    decision = queued(target_fingerprint=target(cloud).fingerprint)
    record = await enqueue(storage, decision, now_ms=long_ago)
    async with running(storage, target(cloud)):
        late = await ended(storage, record)
    assert late.state is RequestState.UNRESOLVED
    assert late.escalation.state is EscalationState.EXPIRED
    assert cloud.chats == []


# --- leases, stopping, changes -----------------------------------------------------------------


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
        await dispatcher.replace_targets([])
        release.set()
        assert (await ended(storage, first)).state is RequestState.RESOLVED
        await dispatcher.drain()
        [gone] = dispatcher.status()
        assert (gone.name, gone.state, gone.waiting) == ("cloud", "unconfigured", 1)
        await dispatcher.replace_targets([target(cloud)])
        assert (await ended(storage, second)).state is RequestState.RESOLVED


async def test_stop_does_not_wait_long_for_a_target_that_was_removed(storage, cloud):
    cloud.script(fake.hang())
    record = await queue_row(storage, cloud)
    async with running(storage, target(cloud), grace_s=0.1) as dispatcher:
        await cloud.received(1)
        await dispatcher.replace_targets([])
    assert (await storage.outbox.get(record.id)).state is EscalationState.PENDING


async def test_a_wrong_configuration_changes_nothing(storage, cloud):
    async with running(storage, target(cloud)) as dispatcher:
        with pytest.raises(ConfigError):
            await dispatcher.replace_targets([target(cloud, base_url="http://127.0.0.1:99999/v1")])
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
