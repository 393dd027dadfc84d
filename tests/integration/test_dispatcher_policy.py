"""What the dispatcher sends and what it holds back, when targets, consent and policy change."""

import asyncio
import contextlib
import json
from decimal import Decimal

import pytest
from fakes.cloud import Cloud, html, ok, status
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
from fakes.storage_values import enqueue, queued

from agent.egress_settings import BudgetSettings
from agent.errors import DiskFull
from agent.escalation.budget import Budget
from agent.escalation.consent import under
from agent.escalation.personal_data import CannotRedactNow
from agent.next_target import NextTarget
from agent.records import EscalationState, RequestState
from agent.text_settings import RedactionSettings
from agent.types import EgressPolicy, RouteMode


async def test_a_model_for_names_that_is_away_does_not_hold_up_what_needs_none(storage, cloud):
    def away(_text):
        raise CannotRedactNow("the model that finds names did not answer in time")

    rows = [await queue_row(storage, cloud, decision=queued(egress=EgressPolicy.REDACT)) for _ in range(5)]
    async with running(storage, target(cloud, concurrency=1), random=LongWait(), names=away) as dispatcher:
        await dispatcher.replace_targets([target(cloud, concurrency=1)], RedactionSettings(names="tagger"))
        for row in rows:
            await row_until(storage, row, lambda found: found.attempts == 1)
        free = await queue_row(storage, cloud, "may go as it is")
        dispatcher.wake()
        assert (await ended(storage, free)).state is RequestState.RESOLVED
        assert dispatcher.status()[0].held_until_ms is None, "its target has done nothing wrong"


async def test_a_reload_that_storage_cut_short_leaves_no_target_under_the_old_redaction(storage, cloud, monkeypatch):
    stricter = RedactionSettings(terms=("Vanuatu",))
    hold, failures = storage.outbox.hold_pending, iter([DiskFull("no space")])

    async def sometimes(*arguments, **fields):
        if error := next(failures, None):
            raise error
        return await hold(*arguments, **fields)

    async with running(storage, target(cloud)) as dispatcher:
        monkeypatch.setattr(storage.outbox, "hold_pending", sometimes)
        with pytest.raises(DiskFull):
            await dispatcher.replace_targets([target(cloud)], stricter)
        await dispatcher.replace_targets([target(cloud)], stricter)
        record = await queue_row(storage, cloud, decision=queued(egress=EgressPolicy.REDACT))
        dispatcher.wake()
        await ended(storage, record)
    assert "Vanuatu" not in cloud.chats[-1].last_user_text


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
        await dispatcher.replace_targets([target(cloud, concurrency=1)], RedactionSettings())
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
        (queued(), {"egress": EgressPolicy.NEVER}),
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
        await dispatcher.replace_targets([target(cloud, egress=EgressPolicy.APPROVE)], RedactionSettings())
        await cloud.up()
        await dispatcher.drain()
        assert (await ended(storage, released)).state is RequestState.RESOLVED
        await waits_for_a_person(storage, allowed, "policy_tightened")
        await dispatcher.replace_targets([target(cloud)], RedactionSettings())
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
            await dispatcher.replace_targets([changed], RedactionSettings())
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
            await dispatcher.replace_targets([target(cloud, egress=EgressPolicy.APPROVE)], RedactionSettings())

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


async def test_a_budget_holds_what_it_has_no_room_for_until_it_is_raised(storage, cloud):
    priced = target(cloud, max_output_tokens=100, input_price=Decimal(1), output_price=Decimal(1))

    def budget(tokens):
        return Budget((priced,), budgets=(BudgetSettings(name="daily", tokens_per_day=tokens),))

    records = [await queue_row(storage, cloud, f"question {n}") for n in range(5)]
    async with running(storage, priced, budget=budget(150)) as dispatcher:  # a body of some 100 bytes, 100 of an answer
        for record in records:
            await row_until(storage, record, lambda row: (row.last_error or "").startswith("over budget daily"))
        assert cloud.chats == []
        (standing,) = await storage.outbox.standings(dispatcher.budget.ceilings, now_ms())
        assert standing.spent == 0
        await dispatcher.replace_targets([priced], RedactionSettings(), budget(100_000))
        for record in records:
            assert (await ended(storage, record)).state is RequestState.RESOLVED
        assert json.loads(cloud.chats[0].body)["max_tokens"] == 100


@pytest.mark.parametrize("why", ["refused", "no budget", "portal"])
async def test_a_row_goes_on_to_the_next_target_of_its_rule(storage, cloud, why):
    async with Cloud() as first:
        first.default = status(400) if why == "refused" else ok("first")
        near = target(first, "near", max_output_tokens=10, failover_s=0)
        far = target(cloud, max_output_tokens=10)
        budgets = (BudgetSettings(name="tight", target="near", tokens_per_day=1),) if why == "no budget" else ()
        if why == "portal":
            first.default_probe = html()
        decision = queued("near", fallbacks=(NextTarget("cloud", far.fingerprint),))
        record = await queue_row(storage, first, decision=decision)
        async with running(storage, near, far, budget=Budget((near, far), budgets=budgets)):
            late = await ended(storage, record)
    assert (late.state, late.answered_by) == (RequestState.RESOLVED, "cloud")
    assert len(cloud.chats) == 1


async def test_what_a_person_released_to_one_target_waits_for_a_person_at_the_next(storage, cloud):
    async with Cloud() as first:
        first.default = status(400)
        near, far = target(first, "near"), target(cloud)
        waits = queued("near", egress=EgressPolicy.APPROVE, fallbacks=(NextTarget("cloud", far.fingerprint),))
        record = await queue_row(storage, first, decision=waits)
        await storage.outbox.release(None, target="near", fingerprint=near.fingerprint, now_ms=now_ms())
        async with running(storage, near, far):
            row = await row_until(storage, record, lambda row: row.target == "cloud")
    assert (row.state, row.reason) == (EscalationState.AWAITING_APPROVAL, "next_target")
    assert cloud.chats == []


async def test_an_answer_that_nobody_wants_any_more_is_not_asked_for(storage, cloud):
    record = await queue_row(storage, cloud, decision=queued(wanted_s=1))
    row = await storage.outbox.get(record.id)
    assert row.expires_at_ms == row.created_at_ms + 1000
    assert await storage.outbox.claim("cloud", now_ms=row.expires_at_ms, lease_ms=1000) is None
