"""The outbox: rows that wait for a target, and the state machine that they walk.

Claiming is one statement with a fresh random lease. Every settle is guarded by that lease:
when it is lost, LeaseLost is raised and nothing has changed. Each change of a row changes
its request in the same transaction.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Sequence
from functools import partial

from agent.errors import BodyGone, WrongState
from agent.records import CloudAnswer, Escalation, EscalationState, HoldReason, RequestRecord
from agent.settings import QueueSettings
from agent.storage import rows
from agent.storage import statements as sql
from agent.storage.changes import Changes
from agent.storage.clock import Clock
from agent.storage.connection import Connection
from agent.storage.database import Database
from agent.storage.journal import check_ceiling
from agent.storage.outbox_reader import OutboxReader
from agent.storage.retention import CHUNK_ROWS, Retention, chunk
from agent.storage.transitions import (
    ENDED,
    again,
    count_attempt,
    end,
    find,
    finish_attempt,
    follow,
    held,
    hold_changed,
    known,
    wait_for_person,
)

SNOOZES_PER_ATTEMPT = 8  # a row that is put off this often, each time by a reply, has cost an attempt
Hold = Callable[[Escalation], HoldReason | None]  # why a row that was allowed or released waits for a person again

_Ids = list[str]
_Rows = list[Escalation]


class Outbox(OutboxReader):
    """The outbox of one database. Every method returns after the commit."""

    def __init__(
        self, database: Database, changes: Changes, queue: QueueSettings, retention: Retention, clock: Clock
    ) -> None:
        super().__init__(database)
        self._changes = changes
        self._queue = queue
        self._retention = retention
        self._clock = clock

    # --- sending ----------------------------------------------------------------------

    async def claim(self, target: str, *, now_ms: int, lease_ms: int) -> tuple[Escalation, RequestRecord] | None:
        """Lease the next row for ``target`` (priority, then place in line) that may go, is due and has not expired."""

        def work(connection: Connection) -> tuple[Escalation, RequestRecord] | None:
            connection.execute(sql.ESCALATION_PROMOTE, {"target": target, "now_ms": now_ms})
            row = connection.execute(
                sql.ESCALATION_CLAIM,
                {
                    "target": target,
                    "now_ms": now_ms,
                    "lease": secrets.token_hex(16),
                    "lease_expires_at_ms": now_ms + lease_ms,
                },
            ).fetchone()
            if row is None:
                return None
            record = rows.read_record(connection, row["request_id"])
            assert record is not None
            return rows.escalation(row), record

        claimed = await self._db.write(work)
        if claimed:
            self._changes.publish(claimed[1].id)
        return claimed

    async def begin_send(self, row: Escalation, *, body_sha256: str, body_bytes: int, now_ms: int) -> None:
        """Record that ``body_bytes`` are about to leave. Durable before this returns; once per lease.

        Raises LeaseLost.
        """

        def work(connection: Connection) -> None:
            held(connection, row)
            if connection.execute(sql.ATTEMPT_OF_LEASE, {"lease": row.lease}).fetchone():
                raise WrongState(f"escalation {row.id} is being sent already under this lease")
            connection.execute(
                sql.ATTEMPT_BEGIN,
                {
                    "escalation_id": row.id,
                    "lease": row.lease,
                    "target": row.target,
                    "body_sha256": body_sha256,
                    "body_bytes": body_bytes,
                    "now_ms": now_ms,
                },
            )

        await self._db.write(work)

    async def succeed(self, row: Escalation, answer: CloudAnswer, *, now_ms: int) -> RequestRecord:
        """Join the answer to its request. Returns the request with both answers. Raises LeaseLost."""

        def work(connection: Connection) -> RequestRecord:
            leased = held(connection, row)
            finish_attempt(connection, leased, "succeeded", None, left=True, now_ms=now_ms)
            connection.execute(
                sql.RESULT_PUT,
                {
                    "request_id": leased["request_id"],
                    "source": rows.TARGET,
                    "now_ms": now_ms,
                    "body": rows.pack(answer),
                },
            )
            end(connection, self._retention, leased, EscalationState.SUCCEEDED, now_ms=now_ms)
            record = rows.read_record(connection, leased["request_id"])
            assert record is not None
            return record

        record = await self._db.write(work)
        self._changes.publish(row.request_id)
        return record

    async def snooze(
        self,
        row: Escalation,
        *,
        available_at_ms: int,
        reason: str,
        left: bool,
        now_ms: int,
        replied: bool = False,
    ) -> Escalation:
        """Put the row back until ``available_at_ms``, behind the others; not an attempt. Raises LeaseLost.

        ``replied``: somebody answered. Every ``SNOOZES_PER_ATTEMPT`` of those count as an attempt,
        so that a row which is only ever put off ends.
        """

        def work(connection: Connection) -> Escalation:
            leased = held(connection, row)
            finish_attempt(connection, leased, "snoozed", reason, left=left, now_ms=now_ms)
            snoozes = leased["snoozes"] + replied
            if snoozes >= SNOOZES_PER_ATTEMPT:
                return count_attempt(
                    connection, self._retention, leased, available_at_ms=available_at_ms, error=reason, now_ms=now_ms
                )
            return again(
                connection,
                leased,
                attempts=leased["attempts"],
                snoozes=snoozes,
                available_at_ms=available_at_ms,
                error=reason,
                now_ms=now_ms,
            )

        return await self._changed(work)

    async def retry(self, row: Escalation, *, available_at_ms: int, reason: str, left: bool, now_ms: int) -> Escalation:
        """Count an attempt and put the row back, or end it as dead when attempts are used up. Raises LeaseLost."""

        def work(connection: Connection) -> Escalation:
            leased = held(connection, row)
            finish_attempt(connection, leased, "retry", reason, left=left, now_ms=now_ms)
            return count_attempt(
                connection, self._retention, leased, available_at_ms=available_at_ms, error=reason, now_ms=now_ms
            )

        return await self._changed(work)

    async def reject(self, row: Escalation, *, reason: str, left: bool, now_ms: int) -> Escalation:
        """End the row as dead: the target will not take it. Raises LeaseLost."""

        def work(connection: Connection) -> Escalation:
            leased = held(connection, row)
            finish_attempt(connection, leased, "rejected", reason, left=left, now_ms=now_ms)
            return end(
                connection, self._retention, leased, EscalationState.DEAD, reason=reason, error=reason, now_ms=now_ms
            )

        return await self._changed(work)

    async def hold(self, row: Escalation, reason: HoldReason, *, now_ms: int) -> Escalation:
        """Put a leased row, of which nothing has left under this lease, before a person. Raises LeaseLost."""

        def work(connection: Connection) -> Escalation:
            leased = held(connection, row)
            finish_attempt(connection, leased, "snoozed", reason, left=False, now_ms=now_ms)
            return wait_for_person(connection, leased, reason)

        return await self._changed(work)

    async def hold_pending(self, target: str, *, fingerprint: str, only_released: bool) -> int:
        """Put rows before a person that were accepted for another address or model of ``target``.

        ``only_released``: also those that no person has released. Returns how many.
        """
        parameters = {
            "target": target,
            "target_fingerprint": fingerprint,
            "only_released": only_released,
            "limit": CHUNK_ROWS,
        }

        return await self._in_chunks(lambda connection: hold_changed(connection, parameters))

    async def rescue(self, now_ms: int, *, every_lease: bool = False) -> int:
        """Take back leases that expired (at start: every lease of an earlier life). Returns how many.

        Each counts as an attempt. A send whose outcome nobody knows is logged as such.
        """
        await self._clock.follow(now_ms)

        def work(connection: Connection) -> _Rows:
            statement = sql.ESCALATION_LEASED if every_lease else sql.ESCALATION_OVERDUE
            parameters: dict[str, object] = {"limit": CHUNK_ROWS}
            if not every_lease:
                parameters["now_ms"] = now_ms
            rescued = []
            for leased in connection.execute(statement, parameters).fetchall():
                reason = "the lease ended before the send was settled"
                finish_attempt(connection, leased, "unknown", reason, left=None, now_ms=now_ms)
                rescued.append(
                    count_attempt(
                        connection, self._retention, leased, available_at_ms=now_ms, error=reason, now_ms=now_ms
                    )
                )
            return rescued

        return await self._in_chunks(work)

    # --- a person's verbs -------------------------------------------------------------

    async def release(
        self,
        ids: Sequence[str] | None,
        *,
        target: str,
        fingerprint: str,
        configured: Collection[str] | None = None,
        now_ms: int,
    ) -> int:
        """Let rows that wait for a person go to ``target`` as ``fingerprint`` has it. None means all. Returns how many.

        An id is that of a row or of its request. Of the rows that are pending, those named whose
        target is not among ``configured`` (if given) move to ``target``; others are left alone.
        """
        if ids is None:
            ids = [row.id for row in await self.list(EscalationState.AWAITING_APPROVAL, limit=-1)]

        def work(connection: Connection) -> _Rows:
            released = []
            for some_id in ids:
                row = find(connection, some_id)
                if row is None:
                    continue
                stranded = (
                    configured is not None
                    and row["state"] == EscalationState.PENDING
                    and row["target"] not in configured
                )
                parameters = {
                    "id": row["id"],
                    "from_state": (EscalationState.PENDING if stranded else EscalationState.AWAITING_APPROVAL).value,
                    "target": target,
                    "target_fingerprint": fingerprint,
                    "now_ms": now_ms,
                }
                if connection.execute(sql.ESCALATION_RELEASE, parameters).rowcount:
                    released.append(rows.escalation(row))
            return released

        released = await self._db.write(work)
        self._changes.publish(*(row.request_id for row in released))
        return len(released)

    async def retry_by_hand(self, id: str, *, hold: Hold, now_ms: int) -> Escalation:  # noqa: A002 - the field's word
        """Bring an ended row back with new attempts and a new time to live; its request is queued again.

        What no person released, and no policy allowed, waits for approval again; so does what
        ``hold`` gives a reason for. Raises NotFound, WrongState, BodyGone or QueueFull.
        """

        def work(connection: Connection) -> Escalation:
            row = known(connection, id)
            if row["state"] not in {EscalationState.DEAD, EscalationState.EXPIRED, EscalationState.CANCELLED}:
                raise WrongState(
                    f"escalation {row['id']} is {row['state']}; only dead, expired or cancelled rows are retried"
                )
            record = rows.read_record(connection, row["request_id"])
            assert record is not None
            if record.request is None:
                raise BodyGone(f"the texts of request {record.id} are gone, their retention has passed")
            check_ceiling(connection, self._queue, row["bytes"])
            may_go = row["allowed"] or row["released"]
            reason = hold(rows.escalation(row)) if may_go else None
            state = EscalationState.PENDING if may_go and reason is None else EscalationState.AWAITING_APPROVAL
            changed = connection.execute(
                sql.ESCALATION_RETRY_BY_HAND,
                {
                    "id": row["id"],
                    "state": state.value,
                    "from_state": row["state"],
                    "reason": reason or "retried_by_hand",
                    "allowed": row["allowed"] if reason is None else 0,
                    "released": row["released"] if reason is None else 0,
                    "now_ms": now_ms,
                    "expires_at_ms": now_ms + self._queue.ttl_s * 1000,
                },
            ).fetchone()
            follow(connection, self._retention, changed, now_ms)
            return rows.escalation(changed)

        return await self._changed(work)

    async def cancel(self, id: str, *, now_ms: int) -> Escalation:  # noqa: A002 - the field's word
        """End an open row. A send under way ends in LeaseLost, and is logged as unknown. Raises NotFound, WrongState."""

        def work(connection: Connection) -> Escalation:
            row = known(connection, id)
            if row["state"] in ENDED:
                raise WrongState(f"escalation {row['id']} is {row['state']} already")
            finish_attempt(connection, row, "unknown", "cancelled while it was sent", left=None, now_ms=now_ms)
            return end(connection, self._retention, row, EscalationState.CANCELLED, reason="cancelled", now_ms=now_ms)

        return await self._changed(work)

    async def purge(self, *, now_ms: int, states: Sequence[EscalationState] = ENDED, unfetched: bool = False) -> int:
        """Delete ended rows with their requests and texts. The egress log stays. Returns how many.

        Late answers that nobody has fetched stay, unless ``unfetched``.
        """
        if open_states := [state.value for state in states if state not in ENDED]:
            raise WrongState(f"rows that are {', '.join(open_states)} are open: cancel them first")

        def work(connection: Connection, state: EscalationState, after_id: str) -> tuple[_Ids, str]:
            parameters = {"state": state.value, "unfetched": unfetched, "after_id": after_id, "limit": CHUNK_ROWS}
            found = connection.execute(sql.ESCALATION_ENDED, parameters).fetchall()
            purged = chunk(found)
            for request_id in purged:
                connection.execute(sql.REQUEST_DELETE, {"id": request_id})
            return purged, found[len(purged) - 1]["row_id"] if purged else after_id

        count = 0
        for state in states:
            after_id = ""
            while True:
                purged, after_id = await self._db.write(partial(work, state=state, after_id=after_id))
                if not purged:
                    break
                self._changes.publish(*purged)
                count += len(purged)
        await self._db.checkpoint()
        return count

    async def hasten(self, target: str, *, now_ms: int) -> None:
        """Make rows that back off available now."""
        await self._db.write(
            lambda connection: connection.execute(sql.ESCALATION_HASTEN, {"target": target, "now_ms": now_ms}).rowcount
        )

    async def expire(self, now_ms: int) -> int:
        """End rows whose time to live has passed, in time that has really passed. Returns how many."""
        await self._clock.follow(now_ms)

        def work(connection: Connection) -> _Rows:
            found = connection.execute(sql.ESCALATION_TO_EXPIRE, {"now_ms": now_ms, "limit": CHUNK_ROWS}).fetchall()
            return [
                end(connection, self._retention, row, EscalationState.EXPIRED, reason="expired", now_ms=now_ms)
                for row in found
            ]

        return await self._in_chunks(work)

    async def _changed(self, work: Callable[[Connection], Escalation]) -> Escalation:
        row = await self._db.write(work)
        self._changes.publish(row.request_id)
        return row

    async def _in_chunks(self, work: Callable[[Connection], _Rows]) -> int:
        """Repeat ``work`` until it finds nothing more, so that no transaction is long."""
        count = 0
        while changed := await self._db.write(work):
            self._changes.publish(*(row.request_id for row in changed))
            count += len(changed)
        return count
