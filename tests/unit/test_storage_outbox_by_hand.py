"""The outbox under a person's verbs: release, retry, cancel, purge."""

import pytest
from fakes import storage_values as values
from fakes.storage_values import DAY, NOW

from agent.errors import BodyGone, NotFound, WrongState
from agent.records import CloudAnswer, EscalationState
from agent.storage import outbox as outbox_module
from agent.types import EgressPolicy

ANSWER = CloudAnswer(text="late", finish_reason="stop", model="big")
APPROVE = values.queued(egress=EgressPolicy.APPROVE)


@pytest.fixture
async def storage(tmp_path):
    opened = await values.opened(tmp_path)
    yield opened
    await opened.close()


def as_it_was(row):
    """The configuration has not changed: no row waits for a person because of it."""


async def claim(storage, now_ms=NOW, target="cloud"):
    claimed = await storage.outbox.claim(target, now_ms=now_ms, lease_ms=1000)
    return claimed and claimed[0]


async def sending(storage, now_ms=NOW):
    row = await claim(storage, now_ms)
    await storage.outbox.begin_send(row, body_sha256="ab" * 32, body_bytes=321, now_ms=now_ms)
    return row


class TestRelease:
    async def test_rows_accepted_without_a_target_stay_until_a_person_says_so(self, storage):
        for n in range(20):
            await values.enqueue(storage, values.queued(None), now_ms=NOW + n)
        assert await claim(storage, NOW + 99, target="new") is None
        assert await storage.outbox.release(None, target="new", fingerprint=values.FINGERPRINT, now_ms=NOW + 99) == 20
        row = await claim(storage, NOW + 99, target="new")
        assert (row.target, row.egress) == ("new", "allow")

    async def test_some_by_their_ids_or_those_of_their_requests(self, storage):
        records = [await values.enqueue(storage, APPROVE, now_ms=NOW + n) for n in range(3)]
        ids = [records[0].escalation.id, records[2].id, "no-such-id"]
        assert await storage.outbox.release(ids, target="cloud", fingerprint=values.FINGERPRINT, now_ms=NOW) == 2
        assert await storage.outbox.release(ids, target="cloud", fingerprint=values.FINGERPRINT, now_ms=NOW) == 0
        waiting = await storage.outbox.list(EscalationState.AWAITING_APPROVAL)
        assert [row.id for row in waiting] == [records[1].escalation.id]

    async def test_a_long_queue_is_released_in_short_transactions(self, storage, monkeypatch):
        monkeypatch.setattr("agent.storage.outbox_by_hand.CHUNK_ROWS", 3)
        for n in range(7):
            await values.enqueue(storage, APPROVE, now_ms=NOW + n)
        write, writes = storage.db.write, []

        async def counted(work, **options):
            writes.append(work)
            return await write(work, **options)

        monkeypatch.setattr(storage.db, "write", counted)
        assert await storage.outbox.release(None, target="cloud", fingerprint=values.FINGERPRINT, now_ms=NOW) == 7
        assert len(writes) == 3, "others, who want a row claimed or an answer stored, wait for one of them at most"

    async def test_not_what_has_expired(self, storage):
        await values.enqueue(storage, APPROVE)
        assert (
            await storage.outbox.release(None, target="cloud", fingerprint=values.FINGERPRINT, now_ms=NOW + 7 * DAY)
            == 0
        )

    async def test_only_a_row_whose_target_is_gone_moves_to_another(self, storage):
        stranded = await values.enqueue(storage, values.queued("gone"))
        pending = await values.enqueue(storage)
        ids = [stranded.id, pending.id]

        async def release(configured):
            return await storage.outbox.release(
                ids, target="new", fingerprint=values.FINGERPRINT, configured=configured, now_ms=NOW
            )

        assert await release(None) == 0
        assert await release({"gone", "cloud", "new"}) == 0
        assert await release({"cloud", "new"}) == 1
        assert (await claim(storage, target="new")).request_id == stranded.id
        assert (await claim(storage)).request_id == pending.id

    async def test_the_database_itself_refuses_to_send_what_nobody_approved(self, storage):
        await values.enqueue(storage, APPROVE)

        def tamper(connection):
            connection.execute("UPDATE escalations SET state = 'pending', target = 'cloud'")

        with pytest.raises(Exception, match="CHECK constraint"):
            await storage.db.write(tamper)


class TestByHand:
    @pytest.fixture
    async def dead(self, storage):
        record = await values.enqueue(storage)
        await storage.outbox.reject(await sending(storage), reason="400", left=True, now_ms=NOW)
        return record

    async def test_a_dead_row_gets_new_attempts_and_a_new_life(self, storage, dead):
        row = await storage.outbox.retry_by_hand(dead.id, hold=as_it_was, now_ms=NOW + DAY)
        assert (row.state, row.attempts, row.expires_at_ms) == ("pending", 0, NOW + 8 * DAY)
        assert (await storage.journal.get(dead.id)).state == "queued"
        assert (await claim(storage, NOW + DAY)).id == row.id

    async def test_what_no_person_released_waits_for_one_again(self, storage):
        record = await values.enqueue(storage, APPROVE)
        await storage.outbox.cancel(record.id, now_ms=NOW)
        row = await storage.outbox.retry_by_hand(record.id, hold=as_it_was, now_ms=NOW)
        assert row.state == "awaiting_approval"
        assert await claim(storage) is None

    async def test_a_retry_needs_the_text(self, storage, dead):
        await storage.maintain(NOW + 30 * DAY)
        with pytest.raises(BodyGone):
            await storage.outbox.retry_by_hand(dead.id, hold=as_it_was, now_ms=NOW + 30 * DAY)

    async def test_only_ended_rows_are_retried_and_only_open_ones_cancelled(self, storage, dead):
        with pytest.raises(WrongState):
            await storage.outbox.cancel(dead.id, now_ms=NOW)
        await storage.outbox.retry_by_hand(dead.id, hold=as_it_was, now_ms=NOW)
        with pytest.raises(WrongState):
            await storage.outbox.retry_by_hand(dead.id, hold=as_it_was, now_ms=NOW)
        with pytest.raises(NotFound):
            await storage.outbox.retry_by_hand("no-such-id", hold=as_it_was, now_ms=NOW)
        with pytest.raises(NotFound):
            await storage.outbox.cancel("no-such-id", now_ms=NOW)

    async def test_a_cancelled_send_is_logged_as_unknown(self, storage):
        record = await values.enqueue(storage)
        await sending(storage)
        await storage.outbox.cancel(record.id, now_ms=NOW)
        assert [row.outcome for row in await storage.egress_log.list()] == ["unknown"]
        assert (await storage.journal.get(record.id)).state == "cancelled"

    async def test_purge_takes_what_has_ended_and_leaves_the_log(self, storage, dead):
        waiting = await values.enqueue(storage)
        assert await storage.outbox.purge(now_ms=NOW, states=[EscalationState.SUCCEEDED]) == 0
        assert await storage.outbox.purge(now_ms=NOW) == 1
        assert await storage.journal.get(dead.id) is None
        assert await storage.outbox.attempts(dead.escalation.id) == []
        assert [row.id for row in await storage.outbox.list()] == [waiting.escalation.id]
        assert (await storage.egress_log.totals()).rows == 1
        with pytest.raises(WrongState):
            await storage.outbox.purge(now_ms=NOW, states=[EscalationState.PENDING])

    async def test_purge_leaves_late_answers_that_nobody_has_fetched(self, storage):
        records = [await values.enqueue(storage) for _ in range(3)]
        for _ in records:
            await storage.outbox.succeed(await sending(storage), ANSWER, now_ms=NOW)
        await storage.journal.get(records[1].id, now_ms=NOW, fetched=True)
        assert await storage.outbox.unfetched() == 2
        assert await storage.outbox.purge(now_ms=NOW) == 1
        assert (await storage.journal.get(records[0].id)).cloud_answer == ANSWER
        assert await storage.outbox.purge(now_ms=NOW, unfetched=True) == 2
        assert await storage.outbox.unfetched() == 0

    async def test_purge_takes_a_late_answer_whose_text_is_gone(self, storage):
        await values.enqueue(storage)
        await storage.outbox.succeed(await sending(storage), ANSWER, now_ms=NOW)
        await storage.maintain(NOW + 30 * DAY)
        assert await storage.outbox.unfetched() == 0
        assert await storage.outbox.purge(now_ms=NOW) == 1

    async def test_purge_goes_past_what_stays(self, storage, monkeypatch):
        monkeypatch.setattr(outbox_module, "CHUNK_ROWS", 2)
        records = [await values.enqueue(storage) for _ in range(7)]
        for _ in records:
            await storage.outbox.succeed(await sending(storage), ANSWER, now_ms=NOW)
        for record in records[2::2]:
            await storage.journal.get(record.id, now_ms=NOW, fetched=True)
        assert await storage.outbox.purge(now_ms=NOW) == 3
        assert await storage.outbox.unfetched() == 4
