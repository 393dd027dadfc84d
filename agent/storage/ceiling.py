"""The ceiling of the queue, and which rows go for a new one. What is dropped ends as dead, where its owner sees it."""

from __future__ import annotations

from agent.delivery_settings import WhenFull
from agent.errors import QueueFull
from agent.records import EscalationState
from agent.settings import QueueSettings
from agent.storage import statements as sql
from agent.storage import transitions
from agent.storage.connection import Connection
from agent.storage.retention import Retention

DROPPED = "dropped"  # reason of a row that went for another
# The first to go for a new row at the ceiling: what is being sent stays.
_OLDEST_WAITING = """
SELECT * FROM escalations INDEXED BY escalations_waiting WHERE state IN ('awaiting_approval', 'pending')
ORDER BY id LIMIT 1
"""
_LOWEST_WAITING = """
SELECT * FROM escalations INDEXED BY escalations_lowest WHERE state IN ('awaiting_approval', 'pending')
ORDER BY priority, id LIMIT 1
"""
_ORDERS = {WhenFull.DROP_OLDEST: _OLDEST_WAITING, WhenFull.DROP_LOWEST: _LOWEST_WAITING}


def check_ceiling(connection: Connection, queue: QueueSettings, body_bytes: int) -> None:
    """Raise QueueFull unless one more open row of ``body_bytes`` fits."""
    total = connection.execute(sql.ESCALATION_OPEN_TOTAL).fetchone()
    if total["n_rows"] + 1 > queue.max_rows:
        raise QueueFull(
            f"the queue holds {total['n_rows']} rows, its ceiling; drain, cancel or purge, or raise queue.max_rows"
        )
    if total["n_bytes"] + body_bytes > queue.max_bytes:
        raise QueueFull(
            f"the queue holds {total['n_bytes']} bytes, {body_bytes} more pass its ceiling; "
            "drain, cancel or purge, or raise queue.max_bytes"
        )


def has_room(connection: Connection, queue: QueueSettings) -> bool:
    """Whether one more row fits, with room to spare for those that must: what only checks an answer drops nothing."""
    total = connection.execute(sql.ESCALATION_OPEN_TOTAL).fetchone()
    return bool(total["n_rows"] < queue.max_rows // 2 and total["n_bytes"] < queue.max_bytes // 2)


def make_room(
    connection: Connection,
    queue: QueueSettings,
    retention: Retention,
    body_bytes: int,
    *,
    priority: int,
    now_ms: int,
) -> list[str]:
    """End rows until one more of ``body_bytes`` fits, as ``queue.when_full`` says. Returns their requests.

    Raises QueueFull where none may go: the policy keeps those that wait, each of them is as important as the new
    one, all are being sent, or the new one is too large by itself. Nothing is changed then: the caller's transaction
    is undone.
    """
    dropped: list[str] = []
    while True:
        try:
            check_ceiling(connection, queue, body_bytes)
        except QueueFull:
            order = _ORDERS.get(queue.when_full)
            row = connection.execute(order).fetchone() if order and body_bytes <= queue.max_bytes else None
            if row is None or (queue.when_full is WhenFull.DROP_LOWEST and row["priority"] >= priority):
                raise
            error = f"the queue was full, and its policy is {queue.when_full}"
            ended = transitions.end(
                connection, retention, row, EscalationState.DEAD, reason=DROPPED, error=error, now_ms=now_ms
            )
            dropped.append(ended.request_id)
        else:
            return dropped
