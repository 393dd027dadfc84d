"""Requests: durable first, settled once, replayed by key, watched."""

import asyncio

import pytest
from fakes import storage_values as values
from fakes.journal_values import LATE, ask, resolve
from fakes.storage_values import DAY, NOW

from agent.errors import BodyGone, IdempotencyMismatch, NotFound, QueueFull, StillRunning, StorageError, WrongState
from agent.records import Accepted, RequestState
from agent.settings import QueueSettings
from agent.types import Action, Decision, EgressPolicy, Reason

ACCEPTED = Accepted(egress=EgressPolicy.ALLOW, target="cloud", target_fingerprint="f1")


@pytest.fixture
async def storage(tmp_path):
    opened = await values.opened(tmp_path)
    yield opened
    await opened.close()


async def test_a_stored_request_comes_back_whole(storage):
    asked = values.request("héllo", metadata={"case": "7"}, user="ada", idempotency_key="k", deadline_at_ms=NOW + 5)
    await storage.journal.open(asked, now_ms=NOW)
    decision = values.queued(trace=("route_mode is local_first", "0.200 < 0.5"))
    await storage.journal.settle(asked, values.generation("zwölf"), values.UNSURE, decision, now_ms=NOW + 3)
    record = await storage.journal.get(asked.id)
    assert record.request == asked
    assert record.generation == values.generation("zwölf")
    assert record.confidence == values.UNSURE
    assert record.decision == decision
    assert record.state is RequestState.QUEUED
    assert record.settled_at_ms == NOW + 3
    assert record.answered_by == "local"


@pytest.mark.parametrize("decision", [values.ANSWERED, values.queued()])
async def test_a_record_in_one_is_what_open_and_settle_leave(storage, decision):
    one, two = values.request("hi"), values.request("hi")
    recorded = await storage.journal.record(one, ACCEPTED, values.generation(), values.UNSURE, decision, now_ms=NOW)
    assert await storage.journal.get(one.id) == recorded
    await storage.journal.open(two, ACCEPTED, now_ms=NOW)
    settled = await storage.journal.settle(two, values.generation(), values.UNSURE, decision, now_ms=NOW)
    assert (recorded.state, recorded.answered_by, recorded.settled_at_ms) == (
        settled.state,
        settled.answered_by,
        settled.settled_at_ms,
    )
    assert (recorded.escalation is None) == (settled.escalation is None)
    assert (await storage.journal.counts())[recorded.state] == 2


async def test_a_record_that_finds_the_queue_full_leaves_nothing(tmp_path):
    storage = await values.opened(tmp_path, queue=QueueSettings(max_rows=1, ballast_bytes=0))
    await ask(storage, values.queued())
    asked = values.request()
    with pytest.raises(QueueFull):
        await storage.journal.record(asked, ACCEPTED, values.generation(), values.UNSURE, values.queued(), now_ms=NOW)
    assert await storage.journal.get(asked.id) is None
    await storage.close()


async def test_both_answers_are_kept(storage):
    await ask(storage, values.queued())
    record = await resolve(storage)
    assert record.state is RequestState.RESOLVED
    assert record.generation.text == "Port Vila"
    assert record.cloud_answer == LATE
    assert record.answered_by == "cloud"
    assert await storage.journal.get(record.id) == record


@pytest.mark.parametrize(
    ("decision", "state", "answered_by"),
    [
        (values.ANSWERED, RequestState.ANSWERED, "local"),
        (Decision(action=Action.UNCERTAIN, reason=Reason.ABSTAINED, rule_id="caller"), RequestState.ANSWERED, "local"),
        (values.queued(), RequestState.QUEUED, "local"),
        (values.REFUSED, RequestState.FAILED, None),
        (values.LEFT, RequestState.CANCELLED, None),
    ],
)
async def test_what_was_decided_gives_the_state(storage, decision, state, answered_by):
    record = await ask(storage, decision)
    assert (record.state, record.decision.action, record.answered_by) == (state, decision.action, answered_by)
    counts = await storage.journal.counts()
    assert counts[state] == 1
    assert sum(counts.values()) == 1


@pytest.mark.parametrize(
    ("target", "egress", "state", "reason"),
    [
        ("cloud", EgressPolicy.ALLOW, "pending", "low_confidence"),
        ("cloud", EgressPolicy.APPROVE, "awaiting_approval", "low_confidence"),
        (None, EgressPolicy.ALLOW, "awaiting_approval", "no_target"),
        (None, EgressPolicy.APPROVE, "awaiting_approval", "no_target"),
        ("cloud", None, "awaiting_approval", "low_confidence"),
    ],
)
async def test_only_an_allowed_row_with_a_target_waits_to_be_sent(storage, target, egress, state, reason):
    record = await ask(storage, values.queued(target, egress))
    assert (record.escalation.state, record.escalation.reason) == (state, reason)
    assert (await storage.outbox.claim("cloud", now_ms=NOW, lease_ms=1) is not None) == (state == "pending")


async def test_a_request_that_must_not_leave_makes_no_row(storage):
    with pytest.raises(WrongState):
        await ask(storage, values.queued(egress=EgressPolicy.NEVER))
    assert await storage.outbox.list() == []
    assert (await storage.journal.counts())["running"] == 1


async def test_a_request_is_settled_once(storage):
    record = await ask(storage)
    with pytest.raises(WrongState, match="answered"):
        await storage.journal.settle(record.request, None, None, values.queued(), now_ms=NOW)
    with pytest.raises(NotFound):
        await storage.journal.settle(values.request(), None, None, values.queued(), now_ms=NOW)
    assert await storage.outbox.list() == []


class TestIdempotency:
    async def test_the_same_key_and_body_bring_the_stored_answer(self, storage):
        record = await ask(storage, idempotency_key="k")
        again = await storage.journal.open(values.request(idempotency_key="k"), now_ms=NOW)
        assert again == record
        assert sum((await storage.journal.counts()).values()) == 1

    async def test_a_late_answer_is_replayed_under_the_first_key(self, storage):
        await ask(storage, values.queued(), idempotency_key="k")
        resolved = await resolve(storage)
        assert await storage.journal.open(values.request(idempotency_key="k"), now_ms=NOW) == resolved

    async def test_another_body_is_refused(self, storage):
        await ask(storage, idempotency_key="k")
        with pytest.raises(IdempotencyMismatch):
            await storage.journal.open(values.request("something else", idempotency_key="k"), now_ms=NOW)

    async def test_a_running_request_is_not_run_twice(self, storage):
        await storage.journal.open(values.request(idempotency_key="k"), now_ms=NOW)
        with pytest.raises(StillRunning):
            await storage.journal.open(values.request(idempotency_key="k"), now_ms=NOW)

    async def test_of_two_at_the_same_moment_one_runs(self, storage):
        outcomes = await asyncio.gather(
            *(storage.journal.open(values.request(idempotency_key="k"), now_ms=NOW) for _ in range(8)),
            return_exceptions=True,
        )
        assert outcomes.count(None) == 1
        assert sum(isinstance(outcome, StillRunning) for outcome in outcomes) == 7

    async def test_texts_that_are_gone_are_said_to_be_gone(self, storage):
        await ask(storage, idempotency_key="k")
        await storage.maintain(NOW + DAY)
        with pytest.raises(BodyGone):
            await storage.journal.open(values.request(idempotency_key="k"), now_ms=NOW + DAY)

    @pytest.mark.parametrize("decision", [values.REFUSED, values.LEFT])
    async def test_a_request_without_an_answer_gives_its_key_back(self, storage, decision):
        failed = await ask(storage, decision, idempotency_key="k")
        again = values.request(idempotency_key="k")
        assert await storage.journal.open(again, now_ms=NOW) is None
        assert (await storage.journal.get(failed.id)).state == failed.state
        with pytest.raises(StillRunning):
            await storage.journal.open(values.request(idempotency_key="k"), now_ms=NOW)


class TestCeiling:
    async def test_one_row_too_many_changes_nothing(self, tmp_path):
        storage = await values.opened(tmp_path, queue=QueueSettings(ballast_bytes=0, max_rows=2))
        await ask(storage, values.queued())
        await ask(storage, values.queued(None))
        asked = values.request()
        await storage.journal.open(asked, now_ms=NOW)
        with pytest.raises(QueueFull, match="max_rows"):
            await storage.journal.settle(asked, values.generation(), None, values.queued(), now_ms=NOW)
        record = await storage.journal.get(asked.id)
        assert (record.state, record.generation, record.escalation) == (RequestState.RUNNING, None, None)
        await resolve(storage)
        await storage.journal.settle(asked, values.generation(), None, values.queued(), now_ms=NOW)
        await storage.close()

    async def test_bytes_count_as_well(self, tmp_path):
        storage = await values.opened(tmp_path, queue=QueueSettings(ballast_bytes=0, max_bytes=4096))
        await ask(storage, values.queued(), text="x" * 2000)
        with pytest.raises(QueueFull, match="max_bytes"):
            await ask(storage, values.queued(), text="y" * 2000)
        await storage.close()


class TestWatch:
    async def test_each_change_until_the_end(self, storage):
        asked = values.request()
        await storage.journal.open(asked, now_ms=NOW)
        seen = []
        started = asyncio.Event()

        async def watch():
            async for record in storage.journal.watch(asked.id):
                seen.append((record.state, record.escalation and record.escalation.state))
                started.set()

        watcher = asyncio.create_task(watch())
        await started.wait()
        for step in (
            lambda: storage.journal.settle(asked, values.generation(), None, values.queued(), now_ms=NOW),
            lambda: resolve(storage),
        ):
            await step()
            await asyncio.sleep(0)
        await watcher
        assert seen[0] == ("running", None)
        assert seen[-1] == ("resolved", "succeeded")
        assert [state for state, _ in seen] == sorted(
            (state for state, _ in seen), key=["running", "queued", "resolved"].index
        )

    async def test_an_ended_request_is_told_once(self, storage):
        record = await ask(storage)
        assert [seen async for seen in storage.journal.watch(record.id)] == [record]

    async def test_an_unknown_one_is_not_found(self, storage):
        with pytest.raises(NotFound):
            await anext(storage.journal.watch("no-such-id"))

    async def test_a_watcher_that_leaves_is_forgotten(self, storage):
        await storage.journal.open(asked := values.request(), now_ms=NOW)
        watching = storage.journal.watch(asked.id)
        await anext(watching)
        await watching.aclose()
        assert storage.journal._changes._watchers == {}


async def test_the_list_has_no_bodies_and_goes_on_by_page(storage):
    records = [await ask(storage, values.queued() if n % 2 else values.ANSWERED, now_ms=NOW + n) for n in range(5)]
    newest_first = [record.id for record in reversed(records)]
    page = await storage.journal.list(limit=3)
    assert [record.id for record in page] == newest_first[:3]
    assert all(record.request is None and record.generation is None for record in page)
    assert [record.id for record in await storage.journal.list(before_id=page[-1].id)] == newest_first[3:]
    waiting = await storage.journal.list(RequestState.QUEUED)
    assert [record.id for record in waiting] == newest_first[1:4:2]
    assert all(record.escalation.state == "pending" for record in waiting)


class TestRecovery:
    async def test_what_was_running_is_queued_or_failed_by_the_rules(self, tmp_path):
        data = values.prepared_dir(tmp_path)
        first = await values.open_storage(data, values.QUEUE, values.KEEP, now_ms=NOW)
        may, must_not = values.request("may leave"), values.request("must not", egress=EgressPolicy.NEVER)
        accepted = Accepted(egress=EgressPolicy.ALLOW, target="cloud", target_fingerprint="f1")
        for asked in (may, must_not):
            await first.journal.open(asked, accepted, now_ms=NOW)
        settled = await ask(first)
        await first.close()

        def decide(request, route, generation):
            assert route == accepted
            assert generation.failure.kind == "crash"
            return values.REFUSED if request.egress else values.queued(reason=Reason.CRASH)

        second = await values.open_storage(data, values.QUEUE, values.KEEP, now_ms=NOW + 9)
        assert await second.recover(NOW + 9, decide) == 2
        assert await second.recover(NOW + 9, decide) == 0
        queued = await second.journal.get(may.id)
        assert (queued.state, queued.escalation.reason, queued.escalation.state) == ("queued", "crash", "pending")
        assert (await second.journal.get(must_not.id)).state is RequestState.FAILED
        assert (await second.journal.get(settled.id)).state is RequestState.ANSWERED
        await second.close()

    async def test_a_full_queue_fails_them_visibly(self, tmp_path):
        storage = await values.opened(tmp_path, queue=QueueSettings(ballast_bytes=0, max_rows=1))
        await ask(storage, values.queued())
        await storage.journal.open(asked := values.request(), now_ms=NOW)
        assert await storage.recover(NOW, lambda request, accepted, generation: values.queued()) == 1
        record = await storage.journal.get(asked.id)
        assert (record.state, record.decision.reason) == ("failed", "queue_full")
        await storage.close()


async def test_a_request_in_the_background_is_begun_in_so_many_lives_then_it_has_failed(storage, monkeypatch):
    monkeypatch.setattr("agent.storage.journal.MOST_LIVES", 3)
    asked = values.request(background=True)
    await storage.journal.open(asked, now_ms=NOW)

    def refuse(*_):
        return values.REFUSED

    for _ in range(2):
        assert await storage.recover(NOW, refuse) == 0
        assert [one.id for one, _ in await storage.journal.take_up()] == [asked.id]
    assert await storage.recover(NOW, refuse) == 1, "in the same start: nobody would tell its owner in this life"
    assert list(await storage.journal.take_up()) == []
    assert (await storage.journal.get(asked.id)).state is RequestState.FAILED


async def test_a_closed_storage_says_so(tmp_path):
    storage = await values.opened(tmp_path)
    await storage.close()
    await storage.close()
    with pytest.raises(StorageError, match="closed"):
        await storage.journal.counts()
