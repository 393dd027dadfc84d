"""The outbox: leases, order, attempts, and what the log says after a crash."""

import pytest
from fakes import storage_values as values
from fakes.storage_values import DAY, NOW

from agent.errors import LeaseLost, StorageError, WrongState
from agent.records import CloudAnswer, EscalationState
from agent.settings import QueueSettings
from agent.storage.connection import SQLITE_ERRORS
from agent.storage.outbox import SNOOZES_PER_ATTEMPT
from agent.types import EgressPolicy

ANSWER = CloudAnswer(text="late", finish_reason="stop", model="big")
APPROVE = values.queued(egress=EgressPolicy.APPROVE)


@pytest.fixture
async def storage(tmp_path):
    opened = await values.opened(tmp_path)
    yield opened
    await opened.close()


async def claim(storage, now_ms=NOW, target="cloud"):
    claimed = await storage.outbox.claim(target, now_ms=now_ms, lease_ms=1000)
    return claimed and claimed[0]


async def sending(storage, now_ms=NOW):
    row = await claim(storage, now_ms)
    await storage.outbox.begin_send(row, body_sha256="ab" * 32, body_bytes=321, now_ms=now_ms)
    return row


class TestClaim:
    async def test_the_oldest_first_each_once_with_its_own_lease(self, storage):
        ids = [(await values.enqueue(storage, now_ms=NOW + n)).escalation.id for n in range(3)]
        rows = [await claim(storage, NOW + 9) for _ in range(3)]
        assert [row.id for row in rows] == ids
        assert len({row.lease for row in rows}) == 3
        assert await claim(storage, NOW + 9) is None

    async def test_only_rows_of_that_target(self, storage):
        await values.enqueue(storage, values.queued("near"))
        assert await claim(storage, target="far") is None
        assert (await claim(storage, target="near")).target == "near"

    async def test_nothing_that_waits_for_a_person(self, storage):
        await values.enqueue(storage, APPROVE)
        await values.enqueue(storage, values.queued(None))
        assert await claim(storage) is None

    async def test_nothing_that_has_expired(self, storage):
        await values.enqueue(storage)
        assert await claim(storage, NOW + 7 * DAY) is None

    async def test_a_deferred_row_comes_when_it_is_due(self, storage):
        await values.enqueue(storage)
        row = await claim(storage)
        await storage.outbox.snooze(row, available_at_ms=NOW + 500, reason="429", left=False, now_ms=NOW)
        assert await storage.outbox.next_available_ms("cloud", NOW) == NOW + 500
        assert await claim(storage, NOW + 499) is None
        assert await storage.outbox.pending_for("cloud") == 1
        assert (await claim(storage, NOW + 500)).attempts == 0
        assert await storage.outbox.next_available_ms("cloud", NOW) is None

    async def test_who_was_tried_goes_behind_who_was_not_but_before_who_comes_later(self, storage):
        first, second = [await values.enqueue(storage, now_ms=NOW + n) for n in range(2)]
        row = await claim(storage, NOW + 5)
        await storage.outbox.snooze(row, available_at_ms=NOW + 5, reason="portal", left=False, now_ms=NOW + 5)
        later = await values.enqueue(storage, now_ms=NOW + 6)
        order = [(await claim(storage, NOW + 9)).request_id for _ in range(3)]
        assert order == [second.id, first.id, later.id]

    async def test_a_person_can_hasten_it(self, storage):
        await values.enqueue(storage)
        row = await claim(storage)
        await storage.outbox.retry(row, available_at_ms=NOW + DAY, reason="500", left=False, now_ms=NOW)
        await storage.outbox.hasten("cloud", now_ms=NOW)
        assert await storage.outbox.next_available_ms("cloud", NOW) == NOW
        assert (await claim(storage)).attempts == 1


class TestLease:
    @pytest.fixture(params=["succeed", "snooze", "retry", "reject", "begin_send"])
    def settle(self, request, storage):
        outbox = storage.outbox
        return {
            "succeed": lambda row: outbox.succeed(row, ANSWER, now_ms=NOW),
            "snooze": lambda row: outbox.snooze(row, available_at_ms=NOW, reason="x", left=True, now_ms=NOW),
            "retry": lambda row: outbox.retry(row, available_at_ms=NOW, reason="x", left=True, now_ms=NOW),
            "reject": lambda row: outbox.reject(row, reason="x", left=True, now_ms=NOW),
            "begin_send": lambda row: outbox.begin_send(row, body_sha256="cd", body_bytes=1, now_ms=NOW),
        }[request.param]

    async def changes_nothing(self, storage, row, settle):
        before = await storage.outbox.get(row.id)
        logged = await storage.egress_log.list()
        with pytest.raises(LeaseLost):
            await settle(row)
        assert await storage.outbox.get(row.id) == before
        assert await storage.egress_log.list() == logged

    async def test_lost_by_rescue(self, storage, settle):
        await values.enqueue(storage)
        row = await sending(storage)
        await storage.maintain(NOW + 1000)
        await self.changes_nothing(storage, row, settle)

    async def test_lost_to_another_worker(self, storage, settle):
        await values.enqueue(storage)
        row = await sending(storage)
        await storage.maintain(NOW + 1000)
        assert (await claim(storage, NOW + 1000)).id == row.id
        await self.changes_nothing(storage, row, settle)

    async def test_lost_by_a_cancel(self, storage, settle):
        await values.enqueue(storage)
        row = await sending(storage)
        await storage.outbox.cancel(row.id, now_ms=NOW)
        await self.changes_nothing(storage, row, settle)

    async def test_used_once(self, storage, settle):
        await values.enqueue(storage)
        row = await sending(storage)
        await storage.outbox.reject(row, reason="400", left=True, now_ms=NOW)
        await self.changes_nothing(storage, row, settle)

    async def test_not_rescued_before_its_time(self, storage):
        await values.enqueue(storage)
        row = await sending(storage)
        await storage.maintain(NOW + 999)
        await storage.outbox.succeed(row, ANSWER, now_ms=NOW)


class TestAttempts:
    async def test_offline_is_not_one(self, storage):
        await values.enqueue(storage)
        for n in range(50):
            row = await claim(storage, NOW + n)
            await storage.outbox.snooze(row, available_at_ms=NOW + n, reason="offline", left=False, now_ms=NOW + n)
        row = await storage.outbox.get(row.id)
        assert (row.state, row.attempts, row.last_error) == ("pending", 0, "offline")

    async def test_being_put_off_by_a_reply_again_and_again_is_one(self, storage):
        await values.enqueue(storage)
        attempts = []
        for n in range(2 * SNOOZES_PER_ATTEMPT + 1):
            row = await sending(storage, NOW + n)
            row = await storage.outbox.snooze(
                row, available_at_ms=NOW + n, reason="429", left=True, now_ms=NOW + n, replied=True
            )
            attempts.append(row.attempts)
        assert attempts == [0] * (SNOOZES_PER_ATTEMPT - 1) + [1] * SNOOZES_PER_ATTEMPT + [2, 2]

    async def test_used_up_ends_the_row_and_leaves_the_draft(self, tmp_path):
        storage = await values.opened(tmp_path, queue=QueueSettings(ballast_bytes=0, max_attempts=2))
        record = await values.enqueue(storage)
        for expected in ("pending", "dead"):
            row = await sending(storage)
            row = await storage.outbox.retry(row, available_at_ms=NOW, reason="503", left=True, now_ms=NOW)
            assert row.state == expected
        assert (row.reason, row.last_error, row.attempts) == ("attempts_used_up", "503", 2)
        later = await storage.journal.get(record.id)
        assert later.state == "unresolved"
        assert later.generation == record.generation
        await storage.close()

    async def test_a_rejected_row_says_why(self, storage):
        record = await values.enqueue(storage)
        row = await sending(storage)
        row = await storage.outbox.reject(row, reason="400 context_length_exceeded", left=True, now_ms=NOW)
        assert (row.state, row.reason) == ("dead", "400 context_length_exceeded")
        assert (await storage.journal.get(record.id)).state == "unresolved"

    async def test_each_send_is_kept(self, storage):
        await values.enqueue(storage)
        row = await sending(storage)
        await storage.outbox.retry(row, available_at_ms=NOW, reason="503", left=True, now_ms=NOW + 5)
        row = await sending(storage, NOW + 6)
        await storage.outbox.succeed(row, ANSWER, now_ms=NOW + 9)
        first, second = await storage.outbox.attempts(row.id)
        assert (first.outcome, first.error, first.finished_at_ms) == ("retry", "503", NOW + 5)
        assert (second.outcome, second.body_bytes, second.started_at_ms) == ("succeeded", 321, NOW + 6)

    async def test_bytes_cannot_have_left_before_they_were_announced(self, storage):
        await values.enqueue(storage)
        row = await claim(storage)
        with pytest.raises(WrongState, match="begin_send"):
            await storage.outbox.succeed(row, ANSWER, now_ms=NOW)
        assert (await storage.outbox.get(row.id)).state == "leased"


class TestCrash:
    """A daemon that dies holds leases; the next one takes them back at once."""

    async def restarted(self, data, first, now_ms=NOW + 1):
        await first.close()
        return await values.open_storage(data, values.QUEUE, values.KEEP, now_ms=now_ms)

    async def test_between_begin_send_and_settle(self, tmp_path):
        data = values.prepared_dir(tmp_path)
        first = await values.open_storage(data, values.QUEUE, values.KEEP, now_ms=NOW)
        await values.enqueue(first)
        row = await sending(first)
        second = await self.restarted(data, first)
        rescued = await second.outbox.get(row.id)
        assert (rescued.state, rescued.attempts, rescued.lease) == ("pending", 1, None)
        [logged] = await second.egress_log.list()
        assert (logged.outcome, logged.bytes, logged.escalation_id) == ("unknown", 321, row.id)
        [attempt] = await second.outbox.attempts(row.id)
        assert attempt.outcome == "unknown"
        with pytest.raises(LeaseLost):
            await second.outbox.succeed(row, ANSWER, now_ms=NOW + 2)
        again = await sending(second, NOW + 2)
        assert again.id == row.id  # so is the Idempotency-Key
        await second.outbox.succeed(again, ANSWER, now_ms=NOW + 2)
        assert (await second.egress_log.totals()).rows == 2
        assert await second.egress_log.verify() is None
        await second.close()

    async def test_between_claim_and_begin_send_nothing_left(self, tmp_path):
        data = values.prepared_dir(tmp_path)
        first = await values.open_storage(data, values.QUEUE, values.KEEP, now_ms=NOW)
        await values.enqueue(first)
        row = await claim(first)
        second = await self.restarted(data, first)
        assert (await second.outbox.get(row.id)).attempts == 1
        assert await second.egress_log.list() == []
        await second.close()

    async def test_a_row_that_always_kills_us_is_dead_in_the_end(self, tmp_path):
        data = values.prepared_dir(tmp_path)
        queue = QueueSettings(ballast_bytes=0, max_attempts=3)
        storage = await values.open_storage(data, queue, values.KEEP, now_ms=NOW)
        await values.enqueue(storage)
        for _ in range(3):
            row = await sending(storage)
            storage = await self.restarted(data, storage)
        assert (await storage.outbox.get(row.id)).state == "dead"
        assert await claim(storage) is None
        await storage.close()


async def test_expiry_is_told_to_the_owner(storage):
    record = await values.enqueue(storage, APPROVE)
    assert await storage.outbox.expire(NOW + 7 * DAY - 1) == 0
    assert await storage.outbox.expire(NOW + 7 * DAY) == 1
    later = await storage.journal.get(record.id)
    assert (later.state, later.escalation.state, later.escalation.reason) == ("unresolved", "expired", "expired")


async def test_the_oldest_open_row(storage):
    assert await storage.outbox.oldest_ms() is None
    first = await values.enqueue(storage, APPROVE, now_ms=NOW)
    await values.enqueue(storage, now_ms=NOW + 7)
    assert await storage.outbox.oldest_ms() == NOW
    await storage.outbox.cancel(first.id, now_ms=NOW + 8)
    assert await storage.outbox.oldest_ms() == NOW + 7


async def test_counts_by_state(storage):
    await values.enqueue(storage)
    await values.enqueue(storage, APPROVE)
    counts = await storage.outbox.counts()
    assert set(counts) == {state.value for state in EscalationState}
    assert counts["pending"]["rows"] == counts["awaiting_approval"]["rows"] == 1
    assert counts["pending"]["bytes"] > 100


class TestEgressLog:
    @pytest.fixture
    async def four(self, storage):
        for n in range(4):
            await values.enqueue(storage, values.queued("cloud" if n else "near"), now_ms=NOW + n)
            row = await claim(storage, NOW + n, target="cloud" if n else "near")
            await storage.outbox.begin_send(row, body_sha256=f"{n}", body_bytes=100 + n, now_ms=NOW + n)
            await storage.outbox.succeed(row, ANSWER, now_ms=NOW + n)

    async def test_totals_since_a_moment(self, storage, four):
        totals = await storage.egress_log.totals()
        assert (totals.rows, totals.bytes) == (4, 406)
        assert totals.by_target["near"].bytes == 100
        assert (await storage.egress_log.totals(NOW + 3)).bytes == 103
        assert [row.bytes for row in await storage.egress_log.list(NOW + 2)] == [103, 102]

    @pytest.mark.parametrize("verb", ["UPDATE egress_log SET bytes = 0 WHERE id = 2", "DELETE FROM egress_log"])
    async def test_is_append_only(self, storage, four, verb):
        with pytest.raises(Exception, match="append-only"):
            await storage.db.write(lambda connection: connection.execute(verb).rowcount)
        assert await storage.egress_log.verify() is None

    @pytest.mark.parametrize(
        ("forgery", "first_bad"),
        [
            ("UPDATE egress_log SET bytes = 1 WHERE id = 2", 2),
            ("UPDATE egress_log SET target = 'nobody' WHERE id = 1", 1),
            ("UPDATE egress_log SET mac = zeroblob(32) WHERE id = 4", 4),
            ("UPDATE egress_log SET policy = 'approve' WHERE id = 2", 2),
            ("UPDATE egress_log SET redactions = '{\"EMAIL\": 9}' WHERE id = 3", 3),
            ("UPDATE egress_log SET policy = NULL, redactions = NULL WHERE id = 3", 3),  # as if it were an older line
            ("DELETE FROM egress_log WHERE id = 3", 3),
            ("DELETE FROM egress_log WHERE id = 4", 4),
            ("DELETE FROM egress_log", 1),
        ],
    )
    async def test_a_forgery_past_the_triggers_is_found(self, storage, four, forgery, first_bad):
        def forge(connection):
            for trigger in ("update", "delete"):
                connection.execute(f"DROP TRIGGER egress_log_no_{trigger}")
            connection.execute(forgery)

        await storage.db.write(forge)
        assert await storage.egress_log.verify() == first_bad

    async def test_a_crash_while_writing_leaves_no_half_row(self, storage, four):
        await values.enqueue(storage, now_ms=NOW + 9)
        row = await sending(storage, NOW + 9)
        with pytest.raises(StorageError):
            await storage.db.write(lambda connection: _fail_after_append(connection, row))
        assert await storage.egress_log.verify() is None
        assert (await storage.egress_log.totals()).rows == 4


def _fail_after_append(connection, row):
    from agent.storage import transitions

    leased = transitions.held(connection, row)
    transitions.finish_attempt(connection, leased, "succeeded", None, left=True, now_ms=NOW)
    raise SQLITE_ERRORS("the disk went away")
