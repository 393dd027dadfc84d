"""The outbox: rows that wait for a target, and the state machine that they walk.

Claiming is one statement with a fresh random lease. Every settle is guarded by that lease:
when it is lost, LeaseLost is raised and nothing has changed. Each change of a row changes
its request in the same transaction.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence

import msgspec

from agent.errors import BodyGone, WrongState
from agent.settings import QueueSettings
from agent.storage import rows
from agent.storage import statements as sql
from agent.storage.changes import Changes
from agent.storage.connection import Connection
from agent.storage.database import Database
from agent.storage.journal import check_ceiling
from agent.storage.retention import CHUNK_ROWS, Retention, chunk
from agent.storage.transitions import ENDED, again, count_attempt, end, find, finish_attempt, follow, held, known
from agent.types import CloudAnswer, Escalation, EscalationState, RequestRecord

_Ids = list[str]
_Rows = list[Escalation]  # inside the class, `list` is the method


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """One send of a row. ``outcome`` None: under way, or cut short."""

    target: str
    body_sha256: str
    body_bytes: int
    started_at_ms: int
    finished_at_ms: int | None
    outcome: str | None
    error: str | None


class Outbox:
    """The outbox of one database. Every method returns after the commit."""

    def __init__(self, database: Database, changes: Changes, queue: QueueSettings, retention: Retention) -> None:
        self._db = database
        self._changes = changes
        self._queue = queue
        self._retention = retention

    # --- sending ----------------------------------------------------------------------

    async def claim(self, target: str, *, now_ms: int, lease_ms: int) -> tuple[Escalation, RequestRecord] | None:
        """Lease the next row for ``target`` (priority, then age) that is approved, due and not expired."""

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
        self, row: Escalation, *, available_at_ms: int, reason: str, left: bool, now_ms: int
    ) -> Escalation:
        """Put the row back until ``available_at_ms``; not an attempt. Raises LeaseLost."""

        def work(connection: Connection) -> Escalation:
            leased = held(connection, row)
            finish_attempt(connection, leased, "snoozed", reason, left=left, now_ms=now_ms)
            return again(
                connection,
                leased,
                attempts=leased["attempts"],
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

    async def rescue(self, now_ms: int, *, every_lease: bool = False) -> int:
        """Take back leases that expired (at start: every lease of an earlier life). Returns how many.

        Each counts as an attempt. A send whose outcome nobody knows is logged as such.
        """

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

    async def release(self, ids: Sequence[str] | None, *, target: str, now_ms: int) -> int:
        """Approve rows that wait for a person, to go to ``target``. None means all. Returns how many.

        An id is that of a row or of its request. Rows in another state are left alone.
        """
        if ids is None:
            ids = [row.id for row in await self.list(EscalationState.AWAITING_APPROVAL, limit=-1)]

        def work(connection: Connection) -> _Rows:
            released = []
            for some_id in ids:
                row = find(connection, some_id)
                if row is None:
                    continue
                parameters = {"id": row["id"], "target": target, "now_ms": now_ms}
                if connection.execute(sql.ESCALATION_RELEASE, parameters).rowcount:
                    released.append(rows.escalation(row))
            return released

        released = await self._db.write(work)
        self._changes.publish(*(row.request_id for row in released))
        return len(released)

    async def retry_by_hand(self, id: str, *, now_ms: int) -> Escalation:  # noqa: A002 - the field's word
        """Bring an ended row back with new attempts and a new time to live; its request is queued again.

        What no person released, and no policy allowed, waits for approval again. Raises
        NotFound, WrongState, BodyGone or QueueFull.
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
            state = EscalationState.PENDING if row["approved"] else EscalationState.AWAITING_APPROVAL
            changed = connection.execute(
                sql.ESCALATION_RETRY_BY_HAND,
                {
                    "id": row["id"],
                    "state": state.value,
                    "from_state": row["state"],
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

    async def purge(self, *, now_ms: int, states: Sequence[EscalationState] = ENDED) -> int:
        """Delete ended rows with their requests and texts. The egress log stays. Returns how many."""
        if open_states := [state.value for state in states if state not in ENDED]:
            raise WrongState(f"rows that are {', '.join(open_states)} are open: cancel them first")

        def work(connection: Connection) -> _Ids:
            found = []
            for state in states:
                parameters = {"state": state.value, "limit": CHUNK_ROWS}
                found += connection.execute(sql.ESCALATION_ENDED, parameters).fetchall()
            purged = chunk(found)
            for request_id in purged:
                connection.execute(sql.REQUEST_DELETE, {"id": request_id})
            return purged

        count = 0
        while purged := await self._db.write(work):
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
        """End rows whose time to live has passed. Returns how many."""

        def work(connection: Connection) -> _Rows:
            found = connection.execute(sql.ESCALATION_TO_EXPIRE, {"now_ms": now_ms, "limit": CHUNK_ROWS}).fetchall()
            return [
                end(connection, self._retention, row, EscalationState.EXPIRED, reason="expired", now_ms=now_ms)
                for row in found
            ]

        return await self._in_chunks(work)

    # --- reading ----------------------------------------------------------------------

    async def list(self, state: EscalationState | None = None, limit: int = 100, after_id: str | None = None) -> _Rows:
        """Return rows, oldest first; ``after_id`` goes on after an earlier page. A limit of -1 means all."""

        def work(connection: Connection) -> _Rows:
            parameters: dict[str, object] = {"after_id": after_id or "", "limit": limit}
            if state is not None:
                parameters["state"] = state.value
            statement = sql.ESCALATION_LIST if state is None else sql.ESCALATION_LIST_STATE
            return [rows.escalation(row) for row in connection.execute(statement, parameters).fetchall()]

        return await self._db.read(work)

    async def get(self, id_or_request_id: str) -> Escalation | None:
        """Return a row by its id or by that of its request."""

        def work(connection: Connection) -> Escalation | None:
            row = find(connection, id_or_request_id)
            return None if row is None else rows.escalation(row)

        return await self._db.read(work)

    async def attempts(self, id: str) -> Sequence[Attempt]:  # noqa: A002 - the field's word
        """Return the sends of a row, oldest first."""

        def work(connection: Connection) -> Sequence[Attempt]:
            found = connection.execute(sql.ATTEMPTS_OF, {"id": id}).fetchall()
            return [Attempt(**{field: row[field] for field in Attempt.__struct_fields__}) for row in found]

        return await self._db.read(work)

    async def counts(self) -> dict[str, dict[str, int]]:
        """Return rows and bytes of every state, from counters: ``{state: {"rows": n, "bytes": n}}``."""

        def work(connection: Connection) -> dict[str, dict[str, int]]:
            found = {row["state"]: row for row in connection.execute(sql.ESCALATION_COUNTS).fetchall()}
            return {
                state.value: {
                    "rows": found[state]["n_rows"] if state in found else 0,
                    "bytes": found[state]["n_bytes"] if state in found else 0,
                }
                for state in EscalationState
            }

        return await self._db.read(work)

    async def oldest_ms(self) -> int | None:
        """Return when the oldest open row was accepted, or None when the queue is empty."""

        def work(connection: Connection) -> int | None:
            found = []
            for state in EscalationState:
                if state not in ENDED:
                    row = connection.execute(sql.ESCALATION_OLDEST, {"state": state.value}).fetchone()
                    if row is not None:
                        found.append(int(row["created_at_ms"]))
            return min(found, default=None)

        return await self._db.read(work)

    async def pending_for(self, target: str) -> int:
        """Return how many rows wait for ``target``, due or not, from counters."""

        def work(connection: Connection) -> int:
            return int(connection.execute(sql.ESCALATION_PENDING_FOR, {"target": target}).fetchone()["n_rows"])

        return await self._db.read(work)

    async def next_available_ms(self, target: str, now_ms: int) -> int | None:
        """Return when the next row for ``target`` is due: ``now_ms`` when one is, None when none waits."""

        def work(connection: Connection) -> int | None:
            if connection.execute(sql.ESCALATION_READY, {"target": target}).fetchone():
                return now_ms
            row = connection.execute(sql.ESCALATION_NEXT, {"target": target}).fetchone()
            return None if row is None else max(now_ms, int(row["available_at_ms"]))

        return await self._db.read(work)

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
