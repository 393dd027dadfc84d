"""Requests are forgotten in time: texts, answers, rows."""

import pytest
from fakes import storage_values as values
from fakes.journal_values import LATE, ask, end_as, resolve
from fakes.storage_values import DAY, NOW

from agent.records import Accepted, RequestState
from agent.settings import RetentionSettings
from agent.storage import retention
from agent.types import EgressPolicy, OnLowConfidence

ACCEPTED = Accepted(egress=EgressPolicy.ALLOW, target="cloud", target_fingerprint="f1")


@pytest.fixture
async def storage(tmp_path):
    opened = await values.opened(tmp_path)
    yield opened
    await opened.close()


class TestRetention:
    async def test_an_answered_request_keeps_its_texts_a_day(self, storage):
        record = await ask(storage)
        await storage.maintain(NOW + DAY - 1)
        assert (await storage.journal.get(record.id)).generation is not None
        await storage.maintain(NOW + DAY)
        later = await storage.journal.get(record.id)
        assert (later.request, later.generation) == (None, None)
        assert (later.state, later.confidence, later.decision) == (record.state, record.confidence, record.decision)

    async def test_an_open_request_keeps_them_as_long_as_it_is_open(self, storage):
        await storage.journal.open(running := values.request(), now_ms=NOW)
        record = await ask(storage, values.queued())
        await storage.maintain(NOW + 6 * DAY)
        assert (await storage.journal.get(running.id)).request == running
        assert (await storage.journal.get(record.id)).request is not None

    async def test_a_late_answer_waits_for_its_owner(self, storage):
        await ask(storage, values.queued())
        record = await resolve(storage)
        await storage.maintain(NOW + 20 * DAY)
        fetched = await storage.journal.get(record.id, now_ms=NOW + 20 * DAY, fetched=True)
        assert fetched.cloud_answer == LATE
        # Fetching again does not prolong it.
        await storage.journal.get(record.id, now_ms=NOW + 20 * DAY + 1000, fetched=True)
        await storage.maintain(NOW + 21 * DAY - 1)
        assert (await storage.journal.get(record.id)).cloud_answer == LATE
        await storage.maintain(NOW + 21 * DAY)
        assert (await storage.journal.get(record.id)).cloud_answer is None

    async def test_but_not_for_ever(self, storage):
        await ask(storage, values.queued())
        record = await resolve(storage)
        await storage.maintain(NOW + 30 * DAY)
        assert (await storage.journal.get(record.id)).cloud_answer is None

    async def test_without_bodies_the_texts_go_with_the_answer(self, tmp_path):
        storage = await values.opened(tmp_path, retention=RetentionSettings(bodies="none"))
        record = await ask(storage)
        assert record.generation.text == "Port Vila"  # who asked gets it
        stored = await storage.journal.get(record.id)
        assert (stored.request, stored.generation) == (None, None)
        assert stored.state is RequestState.ANSWERED
        await storage.close()

    async def test_without_bodies_a_late_answer_can_be_fetched_once(self, tmp_path):
        storage = await values.opened(tmp_path, retention=RetentionSettings(bodies="none"))
        await ask(storage, values.queued())
        record = await resolve(storage)
        await storage.maintain(NOW + DAY)
        assert (await storage.journal.get(record.id, now_ms=NOW + DAY, fetched=True)).cloud_answer == LATE
        await storage.maintain(NOW + DAY + 1)
        assert (await storage.journal.get(record.id)).cloud_answer is None
        await storage.close()

    async def test_an_unresolved_one_waits_for_its_owner_too(self, storage):
        record = await ask(storage, values.queued())
        await storage.outbox.expire(NOW + 7 * DAY)
        fetched = await storage.journal.get(record.id, now_ms=NOW + 8 * DAY, fetched=True)
        assert (fetched.state, fetched.generation.text) == ("unresolved", "Port Vila")
        await storage.maintain(NOW + 9 * DAY - 1)
        assert (await storage.journal.get(record.id)).generation is not None
        await storage.maintain(NOW + 9 * DAY)
        assert (await storage.journal.get(record.id)).generation is None

    @pytest.mark.parametrize("end", ["dead", "expired", "cancelled"])
    async def test_without_bodies_nothing_stays_of_what_nobody_answered(self, tmp_path, end):
        storage = await values.opened(tmp_path, retention=RetentionSettings(bodies="none"))
        record = await ask(storage, values.queued())
        await end_as(storage, end)
        stored = await storage.journal.get(record.id)
        assert stored.escalation.state == end
        assert (stored.request, stored.generation) == (None, None)
        await storage.close()

    @pytest.mark.parametrize("end", ["dead", "expired"])
    async def test_without_bodies_a_draft_that_nobody_was_given_can_be_fetched_once(self, tmp_path, end):
        storage = await values.opened(tmp_path, retention=RetentionSettings(bodies="none"))
        record = await ask(storage, values.queued(), on_low_confidence=OnLowConfidence.DEFER)
        await end_as(storage, end)
        await storage.maintain(NOW + 8 * DAY)
        fetched = await storage.journal.get(record.id, now_ms=NOW + 8 * DAY, fetched=True)
        assert fetched.generation.text == "Port Vila"
        await storage.maintain(NOW + 8 * DAY)
        assert (await storage.journal.get(record.id)).generation is None
        await storage.close()


class TestRowsOfEndedRequests:
    async def test_they_go_ninety_days_after_the_end(self, storage):
        answered = await ask(storage, idempotency_key="k")
        await ask(storage, values.queued())
        resolved = await resolve(storage)
        await storage.maintain(NOW + 90 * DAY - 1)
        assert {record.id for record in await storage.journal.list()} == {answered.id, resolved.id}
        await storage.maintain(NOW + 90 * DAY)
        assert await storage.journal.list() == []
        assert await storage.outbox.list() == []
        assert sum((await storage.journal.counts()).values()) == 0
        assert len(await storage.egress_log.list()) == 1  # the log stays
        assert await storage.journal.open(values.request("other", idempotency_key="k"), now_ms=NOW) is None

    async def test_never_before_their_texts(self, tmp_path):
        storage = await values.opened(tmp_path, retention=RetentionSettings(rows_s=0))
        answered = await ask(storage)
        await ask(storage, values.queued())
        resolved = await resolve(storage)
        waiting = await ask(storage, values.queued())
        await storage.maintain(NOW + 2 * DAY)
        assert await storage.journal.get(answered.id) is None
        assert (await storage.journal.get(resolved.id)).cloud_answer == LATE
        assert (await storage.journal.get(waiting.id)).request is not None
        await storage.close()

    async def test_in_chunks(self, tmp_path, monkeypatch):
        monkeypatch.setattr(retention, "CHUNK_ROWS", 2)
        monkeypatch.setattr(retention, "DROPPED_ROWS", 2)
        storage = await values.opened(tmp_path, retention=RetentionSettings(bodies="none", rows_s=0))
        for _ in range(5):
            await ask(storage)
        await storage.maintain(NOW)
        assert await storage.journal.list() == []
        await storage.close()
