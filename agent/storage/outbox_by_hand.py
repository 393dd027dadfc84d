"""What a person does with rows of the outbox: release, retry, cancel, purge, hasten.

Each change of a row changes its request in the same transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial

from agent.egress_settings import BudgetSettings
from agent.errors import BodyGone, WrongState
from agent.records import CloudAnswer, Escalation, EscalationState, Feedback, HoldReason
from agent.settings import QueueSettings
from agent.storage import costs, figures, rows
from agent.storage import statements as sql
from agent.storage.ceiling import check_ceiling
from agent.storage.changes import Changes
from agent.storage.clock import Clock
from agent.storage.connection import Connection
from agent.storage.database import Database
from agent.storage.feedback_store import put_feedback
from agent.storage.outbox_reader import OutboxReader
from agent.storage.retention import CHUNK_ROWS, Retention, chunk
from agent.storage.transitions import ENDED, end, find, finish_attempt, follow, known
from agent.types import Message

Hold = Callable[[Escalation], HoldReason | None]  # why a row that was allowed or released waits for a person again

PERSON = "person"  # stands in the place of a target's name
_Ids = list[str]
_Rows = list[Escalation]


def nothing_known(target: str, input_tokens: int, output_tokens: int) -> costs.Charge | None:
    """Charge as long as nobody has said what a target costs."""
    return None


def nobody_listens(feedback: Feedback) -> None:
    """Take a feedback as long as nobody wants to know of it."""


class OutboxByHand(OutboxReader):
    """A person's verbs. Every method returns after the commit."""

    def __init__(
        self, database: Database, changes: Changes, queue: QueueSettings, retention: Retention, clock: Clock
    ) -> None:
        super().__init__(database)
        self._changes = changes
        self._queue = queue
        self._retention = retention
        self._clock = clock
        self.charging: costs.Charging = nothing_known
        self.budgets: Sequence[BudgetSettings] = ()
        self.on_feedback: Callable[[Feedback], None] = nobody_listens

    async def release(
        self,
        ids: Sequence[str] | None,
        *,
        target: str,
        fingerprint: str,
        configured: Collection[str] | None = None,
        now_ms: int,
    ) -> int:
        """Let rows that wait for a person go to ``target`` as ``fingerprint`` has it. None: all that wait now. Returns how many.

        An id is that of a row or of its request. Of the rows that are pending, those named whose
        target is not among ``configured`` (if given) move to ``target``; others are left alone.
        """
        if ids is None:
            waiting = {"state": EscalationState.AWAITING_APPROVAL.value}
            found = await self._db.read(lambda connection: connection.execute(sql.ESCALATION_IDS, waiting).fetchall())
            ids = [row["id"] for row in found]

        def work(connection: Connection, some_ids: Sequence[str]) -> _Rows:
            released = []
            for some_id in some_ids:
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

        count = 0
        for at in range(0, len(ids), CHUNK_ROWS):
            released = await self._db.write(partial(work, some_ids=ids[at : at + CHUNK_ROWS]))
            self._changes.publish(*(row.request_id for row in released))
            count += len(released)
        return count

    async def edit(self, id: str, messages: Sequence[Message]) -> Escalation:  # noqa: A002 - the field's word
        """Put other messages in place of those that would leave; no draft goes along. The request stays as it is.

        Only while the row waits for a person. Raises NotFound, WrongState or BodyGone.
        """

        def work(connection: Connection) -> Escalation:
            row = known(connection, id)
            if row["state"] != EscalationState.AWAITING_APPROVAL:
                raise WrongState(
                    f"escalation {row['id']} is {row['state']}; only what waits for a person can be edited"
                )
            if connection.execute(sql.REQUEST_BODY_LENGTH, {"id": row["request_id"]}).fetchone()["bytes"] is None:
                raise BodyGone(f"the texts of request {row['request_id']} are gone, their retention has passed")
            parameters = {"id": row["id"], "edited": rows.pack_messages(messages)}
            return rows.escalation(connection.execute(sql.ESCALATION_EDIT, parameters).fetchone())

        return await self._changed(work)

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

    async def answer(self, id: str, answer: CloudAnswer, feedback: Feedback, *, now_ms: int) -> Escalation:  # noqa: A002 - the field's word
        """End a row that waits with a person's answer, in place of a target's: nothing of it leaves.

        Raises NotFound, WrongState.
        """
        counted: list[Feedback] = []

        def work(connection: Connection) -> Escalation:
            counted.clear()  # of an earlier try
            row = known(connection, id)
            if row["state"] not in {EscalationState.AWAITING_APPROVAL, EscalationState.PENDING}:
                raise WrongState(f"escalation {row['id']} is {row['state']}: only a row that waits can be answered")
            connection.execute(sql.ESCALATION_TO_PERSON, {"id": row["id"], "person": PERSON})
            connection.execute(
                sql.RESULT_PUT,
                {
                    "request_id": row["request_id"],
                    "source": rows.TARGET,
                    "now_ms": now_ms,
                    "body": rows.pack(answer),
                    **figures.of_answer(answer),
                },
            )
            figures.count_late_label(connection, row["request_id"], answer, now_ms)
            if put_feedback(connection, feedback):
                counted.append(feedback)
            reason = "answered_by_person"
            return end(connection, self._retention, row, EscalationState.SUCCEEDED, reason=reason, now_ms=now_ms)

        ended = await self._changed(work)
        for one in counted:
            self.on_feedback(one)
        return ended

    async def cancel(self, id: str, *, now_ms: int) -> Escalation:  # noqa: A002 - the field's word
        """End an open row. A send under way ends in LeaseLost, and is logged as unknown. Raises NotFound, WrongState."""

        def work(connection: Connection) -> Escalation:
            row = known(connection, id)
            if row["state"] in ENDED:
                raise WrongState(f"escalation {row['id']} is {row['state']} already")
            if finish_attempt(connection, row, "unknown", "cancelled while it was sent", left=None, now_ms=now_ms):
                costs.spend(connection, row, "unknown", None, self.charging, now_ms)
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
