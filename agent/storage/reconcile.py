"""Before a backup becomes the database: what happened since it was made is unknown to it.

Its open rows may have been sent, answered or cancelled meanwhile, so each waits for a
person. What left the device since is carried over from the database that it replaces:
the log must not forget.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from agent.storage import batch_schema, egress_log
from agent.storage import statements as sql
from agent.storage.batch_store import LineError
from agent.storage.connection import SQLITE_ERRORS, Connection
from agent.storage.transitions import finish_attempt

_CHUNK = 1000


class Reconciled(msgspec.Struct, frozen=True, kw_only=True):
    """What was changed in a backup before it became the database."""

    held: int = 0  # open rows, and requests that were running: nothing of them leaves by itself
    carried: int = 0  # rows of the log of what left, from the database that is replaced
    log_problem: str | None = None  # why not all of them could be carried over


class _Unreadable(Exception):
    """The database that is replaced cannot be read further."""


def reconcile(incoming: Connection, present: Connection | None, *, now_ms: int) -> Reconciled:
    """Carry the newer log of ``present`` over to ``incoming``, and hold all that ``incoming`` would send.

    One transaction on ``incoming``; ``present`` (None: nothing is replaced) is only read.
    """
    incoming.execute("BEGIN IMMEDIATE")
    try:
        carried, problem = (0, None) if present is None else _carry_over(incoming, present, now_ms)
        held = _hold(incoming, now_ms)
        incoming.execute("COMMIT")
    except BaseException:
        if incoming.in_transaction:
            incoming.execute("ROLLBACK")
        raise
    return Reconciled(held=held, carried=carried, log_problem=problem)


def _hold(incoming: Connection, now_ms: int) -> int:
    for row in incoming.execute(sql.ESCALATION_LEASED, {"limit": -1}).fetchall():
        attempt = incoming.execute(sql.ATTEMPT_OF_LEASE, {"lease": row["lease"]}).fetchone()
        # Its end may be in the log that was carried over; if not, it may have left.
        told = attempt is not None and _is_told(incoming, row["id"], attempt["started_at_ms"])
        reason = "the backup was made while it was sent"
        finish_attempt(incoming, row, "unknown", reason, left=False if told else None, now_ms=now_ms)
    errors = [
        LineError(code="restored", message="the database is a backup; make the batch again if it is still wanted")
    ]
    incoming.execute(batch_schema.BATCHES_RESTORED, {"now_ms": now_ms, "errors": msgspec.json.encode(errors)})
    return incoming.execute(sql.ESCALATIONS_RESTORED).rowcount + incoming.execute(sql.REQUESTS_RESTORED).rowcount


def _is_told(incoming: Connection, escalation_id: str, since_ms: int) -> bool:
    parameters = {"escalation_id": escalation_id, "since_ms": since_ms}
    return incoming.execute(sql.EGRESS_OF_ROW, parameters).fetchone() is not None


def _carry_over(incoming: Connection, present: Connection, now_ms: int) -> tuple[int, str | None]:
    """Append what only the log of ``present`` tells. Returns how many rows, and why not all."""
    carried = 0
    try:
        _keep_spent(incoming, present)
        bad = _first_bad(present)
        for row in _log_of(present, bad, now_ms):
            if incoming.execute(sql.EGRESS_KNOWN, row).fetchone() is None:
                egress_log.append(incoming, **row)
                carried += 1
    except _Unreadable as error:
        return carried, f"it cannot be read to its end ({error.__cause__})"
    return carried, None if bad is None else f"it was changed or cut off at row {bad}; the rows before that are kept"


def _keep_spent(incoming: Connection, present: Connection) -> None:
    """Count at least what the other database says was spent: no budget begins anew with a restore."""
    try:
        spent = present.execute(sql.SPENT_ALL).fetchall()
    except SQLITE_ERRORS as error:
        raise _Unreadable from error
    for row in spent:
        incoming.execute(sql.SPENT_AT_LEAST, {name: row[name] for name in row.keys()})  # noqa: SIM118 - a Row


def _first_bad(present: Connection) -> int | None:
    try:
        return egress_log.first_bad_row(present)
    except SQLITE_ERRORS as error:
        raise _Unreadable from error


def _log_of(present: Connection, bad: int | None, now_ms: int) -> Iterator[dict[str, Any]]:
    """Yield what left as the other log tells it, then what was on its way when that database was left."""
    after_id = 0
    try:
        while found := present.execute(sql.EGRESS_FROM, {"after_id": after_id, "limit": _CHUNK}).fetchall():
            for row in found:
                if bad is not None and row["id"] >= bad:
                    break
                yield _told(row, row["bytes"], row["at_ms"], row["outcome"])
            after_id = found[-1]["id"]
        for row in present.execute(sql.ESCALATION_LEASED, {"limit": -1}).fetchall():
            attempt = present.execute(sql.ATTEMPT_OF_LEASE, {"lease": row["lease"]}).fetchone()
            if attempt is not None:
                both = {"escalation_id": row["id"], "request_id": row["request_id"]}
                both |= {name: attempt[name] for name in ("target", "body_sha256", "policy", "redactions")}
                yield _told(both, attempt["body_bytes"], now_ms, "unknown")
    except SQLITE_ERRORS as error:
        raise _Unreadable from error


def _told(row: Any, body_bytes: int, at_ms: int, outcome: str) -> dict[str, Any]:
    names = ("escalation_id", "request_id", "target", "body_sha256", "policy", "redactions")
    return {name: row[name] for name in names} | {"body_bytes": body_bytes, "at_ms": at_ms, "outcome": outcome}
