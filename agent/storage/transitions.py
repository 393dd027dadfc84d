"""The steps of an outbox row inside a transaction. Each keeps the row and its request in step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from agent.errors import LeaseLost, NotFound, WrongState
from agent.next_target import NextTarget
from agent.records import Escalation, EscalationState, HoldReason, RequestState
from agent.storage import egress_log, rows, spending
from agent.storage import statements as sql
from agent.storage.connection import Connection
from agent.storage.retention import Retention, forget
from agent.types import OnLowConfidence

ENDED = (EscalationState.SUCCEEDED, EscalationState.DEAD, EscalationState.EXPIRED, EscalationState.CANCELLED)

# The invariant between a row and its request, in one place.
REQUEST_STATE = {
    EscalationState.AWAITING_APPROVAL: RequestState.QUEUED,
    EscalationState.PENDING: RequestState.QUEUED,
    EscalationState.LEASED: RequestState.QUEUED,
    EscalationState.SUCCEEDED: RequestState.RESOLVED,
    EscalationState.DEAD: RequestState.UNRESOLVED,
    EscalationState.EXPIRED: RequestState.UNRESOLVED,
    EscalationState.CANCELLED: RequestState.CANCELLED,
}


def find(connection: Connection, some_id: str) -> Any | None:
    """Return the row of this id, or of the request of this id."""
    for statement in (sql.ESCALATION_GET, sql.ESCALATION_OF_REQUEST):
        row = connection.execute(statement, {"id": some_id}).fetchone()
        if row is not None:
            return row
    return None


def known(connection: Connection, some_id: str) -> Any:
    """Return the row as ``find`` does. Raises NotFound."""
    row = find(connection, some_id)
    if row is None:
        raise NotFound(f"there is no row {some_id} in the queue")
    return row


def held(connection: Connection, row: Escalation) -> Any:
    """Return the row if it is still held under this lease. Raises LeaseLost."""
    found = connection.execute(sql.ESCALATION_HELD, {"id": row.id, "lease": row.lease}).fetchone()
    if found is None:
        raise LeaseLost(f"the lease on escalation {row.id} is lost: it was rescued, settled or cancelled meanwhile")
    return found


def finish_attempt(
    connection: Connection, row: Any, outcome: str, error: str | None, *, left: bool | None, now_ms: int
) -> bool:
    """Close the attempt of the row's lease, and log what left the device. Returns whether there was one.

    ``left`` None: nobody knows, so an attempt that had begun is logged as having left.
    """
    attempt = None
    if row["lease"] is not None:
        attempt = connection.execute(sql.ATTEMPT_OF_LEASE, {"lease": row["lease"]}).fetchone()
    if attempt is None:
        if left:
            raise WrongState(f"escalation {row['id']}: bytes cannot have left before begin_send")
        return False
    connection.execute(
        sql.ATTEMPT_FINISH, {"lease": row["lease"], "now_ms": now_ms, "outcome": outcome, "error": error}
    )
    spending.give_back(connection, attempt)
    if left is not False:
        egress_log.append(
            connection,
            at_ms=now_ms,
            escalation_id=row["id"],
            request_id=row["request_id"],
            target=attempt["target"],
            body_bytes=attempt["body_bytes"],
            body_sha256=attempt["body_sha256"],
            outcome=outcome,
            policy=attempt["policy"],
            redactions=attempt["redactions"],
        )
    return True


def again(
    connection: Connection,
    row: Any,
    *,
    attempts: int,
    available_at_ms: int,
    error: str,
    now_ms: int,
    snoozes: int = 0,
) -> Escalation:
    """Put a leased row back to pending, behind the others."""
    changed = connection.execute(
        sql.ESCALATION_AGAIN,
        {
            "id": row["id"],
            "lease": row["lease"],
            "error": error,
            "attempts": attempts,
            "snoozes": snoozes,
            "available_at_ms": available_at_ms,
            "now_ms": now_ms,
        },
    ).fetchone()
    return rows.escalation(changed)


def count_attempt(
    connection: Connection, retention: Retention, row: Any, *, available_at_ms: int, error: str, now_ms: int
) -> Escalation:
    """Put a leased row back with one more attempt; when they are used up, to the next target, or end it as dead."""
    attempts = row["attempts"] + 1
    if attempts < row["max_attempts"]:
        return again(connection, row, attempts=attempts, available_at_ms=available_at_ms, error=error, now_ms=now_ms)
    if moved := move_on(connection, row, error, now_ms):
        return moved
    return end(
        connection,
        retention,
        row,
        EscalationState.DEAD,
        reason="attempts_used_up",
        error=error,
        attempts=attempts,
        now_ms=now_ms,
    )


def packed(targets: Sequence[NextTarget]) -> str | None:
    """Encode who is asked next."""
    return msgspec.json.encode(targets).decode() if targets else None


def move_on(connection: Connection, row: Any, why: str, now_ms: int) -> Escalation | None:
    """Put an open row to the next target of its rule; None when there is none. A person's release ends with it."""
    if row["next_targets"] is None:
        return None
    first, *others = msgspec.json.decode(row["next_targets"], type=list[NextTarget])
    moved = connection.execute(
        sql.ESCALATION_MOVE_ON,
        {
            "id": row["id"],
            "from_state": row["state"],
            "lease": row["lease"],
            "target": first.name,
            "target_fingerprint": first.fingerprint,
            "next_targets": packed(others),
            "error": f"{row['target']}: {why}",
            "now_ms": now_ms,
        },
    ).fetchone()
    return rows.escalation(moved)


def wait_for_person(connection: Connection, row: Any, reason: HoldReason) -> Escalation:
    """Put a pending or leased row before a person: what allowed it does not hold any more."""
    parameters = {"id": row["id"], "from_state": row["state"], "lease": row["lease"], "reason": reason.value}
    return rows.escalation(connection.execute(sql.ESCALATION_HOLD, parameters).fetchone())


def hold_changed(connection: Connection, wanted: dict[str, object]) -> list[Escalation]:
    """Put a chunk of pending rows before a person: those that ``ESCALATION_TO_HOLD`` finds for a target."""
    held_back = []
    for row in connection.execute(sql.ESCALATION_TO_HOLD, wanted).fetchall():
        same = row["target_fingerprint"] == wanted["target_fingerprint"]
        reason = HoldReason.POLICY_TIGHTENED if same else HoldReason.TARGET_CHANGED
        held_back.append(wait_for_person(connection, row, reason))
    return held_back


def end(
    connection: Connection,
    retention: Retention,
    row: Any,
    state: EscalationState,
    *,
    now_ms: int,
    reason: str | None = None,
    error: str | None = None,
    attempts: int | None = None,
) -> Escalation:
    """Bring an open row to an ended state, and its request with it."""
    ended = connection.execute(
        sql.ESCALATION_END,
        {
            "id": row["id"],
            "from_state": row["state"],
            "lease": row["lease"],
            "state": state.value,
            "reason": reason,
            "error": error,
            "attempts": row["attempts"] if attempts is None else attempts,
            "now_ms": now_ms,
        },
    ).fetchone()
    follow(connection, retention, ended, now_ms)
    return rows.escalation(ended)


def follow(connection: Connection, retention: Retention, row: Any, now_ms: int) -> None:
    """Bring the request to the state that the row's state implies; let its texts go if they go with it.

    A quality sample changes nothing of its request, which was answered.
    """
    if row["purpose"] == "quality_sample":
        return
    state = REQUEST_STATE[EscalationState(row["state"])]
    unread = state is RequestState.UNRESOLVED and _draft_is_unread(connection, row["request_id"])
    connection.execute(
        sql.REQUEST_FOLLOW,
        {
            "id": row["request_id"],
            "state": state.value,
            "now_ms": now_ms,
            "answered_by": row["target"] if state is RequestState.RESOLVED else None,
            "bodies_until_ms": retention.until_ms(state, now_ms, unread=unread),
        },
    )
    if retention.forgets(state, unread=unread):
        forget(connection, row["request_id"])


def _draft_is_unread(connection: Connection, request_id: str) -> bool:
    """Whether there is a local draft that its caller, who deferred, was not given."""
    record = rows.read_record(connection, request_id)
    if record is None or record.request is None or record.generation is None:
        return False
    return record.request.on_low_confidence is OnLowConfidence.DEFER and record.generation.failure is None
