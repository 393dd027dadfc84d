"""What left the device: append-only, each row chained to the one before by an HMAC-SHA-256.

It holds hashes, not content. The tables refuse UPDATE and DELETE by triggers; the chain
shows what was changed by other means. The newest rows cut off leave a gap against the
table's own row counter, which is part of the same encrypted database.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from functools import partial
from typing import Any

import msgspec

from agent.storage import statements as sql
from agent.storage.connection import Connection
from agent.storage.database import Database

_FIELDS = ("id", "at_ms", "escalation_id", "request_id", "target", "bytes", "body_sha256", "outcome")
_LATER_FIELDS = ("policy", "redactions")  # not in lines of an earlier schema, where they are NULL
_CHUNK = 1000
_START = b"\x00" * 32


class EgressRow(msgspec.Struct, frozen=True, kw_only=True):
    """One send: bytes of a body that left, or may have left, the device."""

    id: int
    at_ms: int
    escalation_id: str
    request_id: str
    target: str
    bytes: int
    body_sha256: str
    outcome: str  # succeeded, snoozed, retry, rejected; unknown: the daemon died, or a person cancelled, in between
    policy: str | None = None  # that let it leave: allow, redact, approve (a person saw it); None: an older line
    redactions: dict[str, int] | None = None  # pieces that were replaced, by kind
    mac: str = ""  # of this line and all before it


class EgressTotal(msgspec.Struct, frozen=True):
    """A number of sends and their bytes."""

    rows: int = 0
    bytes: int = 0


class ChainHead(msgspec.Struct, frozen=True):
    """How far the log reaches. Kept elsewhere, it shows later whether the log was cut off or made anew."""

    rows: int = 0
    mac: str = ""


class EgressTotals(msgspec.Struct, frozen=True):
    """What left since a moment, in all and by target."""

    rows: int
    bytes: int
    by_target: dict[str, EgressTotal]


_Rows = list[EgressRow]  # inside the class, `list` is the method


class EgressLog:
    """Reading the log. Rows are appended by the outbox, in the transaction of each settle."""

    def __init__(self, database: Database) -> None:
        self._db = database

    async def list(self, since_ms: int = 0, limit: int = 100) -> _Rows:
        """Return rows from ``since_ms`` on, newest first."""
        parameters = {"since_ms": since_ms, "limit": limit}
        return await self._db.read(
            lambda connection: [_value(row) for row in connection.execute(sql.EGRESS_LIST, parameters).fetchall()]
        )

    async def page(self, after_id: int, limit: int = 1000) -> _Rows:
        """Return rows from the one after ``after_id`` on, oldest first."""
        parameters = {"after_id": after_id, "limit": limit}
        return await self._db.read(
            lambda connection: [_value(row) for row in connection.execute(sql.EGRESS_FROM, parameters).fetchall()]
        )

    async def head(self) -> ChainHead:
        """Return how far the log reaches now."""

        def work(connection: Connection) -> ChainHead:
            last = connection.execute(sql.EGRESS_LAST).fetchone()
            return ChainHead(last["id"], last["mac"].hex()) if last else ChainHead()

        return await self._db.read(work)

    async def totals(self, since_ms: int = 0) -> EgressTotals:
        """Return how much left from ``since_ms`` on."""

        def work(connection: Connection) -> EgressTotals:
            found = connection.execute(sql.EGRESS_TOTALS, {"since_ms": since_ms}).fetchall()
            by_target = {row["target"]: EgressTotal(row["n_rows"], row["n_bytes"]) for row in found}
            return EgressTotals(
                sum(total.rows for total in by_target.values()),
                sum(total.bytes for total in by_target.values()),
                by_target,
            )

        return await self._db.read(work)

    async def verify(self) -> int | None:
        """Check the chain. Returns the id of the first row that is changed, missing or cut off, or None."""
        after_id, mac = 0, _START
        while True:
            outcome = await self._db.read(partial(_verify_chunk, after_id=after_id, mac=mac))
            if not isinstance(outcome, tuple):
                return outcome
            after_id, mac = outcome


def first_bad_row(connection: Connection) -> int | None:
    """Check the whole chain on an open connection, as ``EgressLog.verify`` does."""
    after_id, mac = 0, _START
    while isinstance(outcome := _verify_chunk(connection, after_id, mac), tuple):
        after_id, mac = outcome
    return outcome


def append(
    connection: Connection,
    *,
    at_ms: int,
    escalation_id: str,
    request_id: str,
    target: str,
    body_bytes: int,
    body_sha256: str,
    outcome: str,
    policy: str | None,
    redactions: str | None,
) -> None:
    """Add a row inside the caller's transaction."""
    last = connection.execute(sql.EGRESS_LAST).fetchone()
    row: dict[str, Any] = {
        "id": last["id"] + 1 if last else 1,
        "at_ms": at_ms,
        "escalation_id": escalation_id,
        "request_id": request_id,
        "target": target,
        "bytes": body_bytes,
        "body_sha256": body_sha256,
        "outcome": outcome,
        "policy": policy,
        "redactions": redactions,
    }
    row["mac"] = _mac(_chain_key(connection), last["mac"] if last else _START, row)
    connection.execute(sql.EGRESS_APPEND, row)


def _verify_chunk(connection: Connection, after_id: int, mac: bytes) -> int | tuple[int, bytes] | None:
    """Return where the next chunk starts, the id of a bad row, or None at a good end."""
    key = _chain_key(connection)
    found = connection.execute(sql.EGRESS_FROM, {"after_id": after_id, "limit": _CHUNK}).fetchall()
    for row in found:
        after_id += 1
        mac = _mac(key, mac, row)
        if row["id"] != after_id or not hmac.compare_digest(mac, row["mac"]):
            return after_id
    if found:
        return after_id, mac
    # In the same read as the end of the table: a row that was added meanwhile is not one cut off.
    highest = connection.execute(sql.EGRESS_HIGHEST).fetchone()
    return after_id + 1 if highest is not None and highest["seq"] > after_id else None


def _chain_key(connection: Connection) -> bytes:
    key: bytes = connection.execute(sql.CHAIN_KEY).fetchone()["value"]
    return key


def _mac(key: bytes, previous: bytes, row: Any) -> bytes:
    fields = _FIELDS if row["policy"] is None else _FIELDS + _LATER_FIELDS
    content = json.dumps([row[field] for field in fields], separators=(",", ":")).encode()
    return hmac.digest(key, previous + content, hashlib.sha256)


def _value(row: Any) -> EgressRow:
    redactions = None if row["redactions"] is None else json.loads(row["redactions"])
    return EgressRow(
        **{field: row[field] for field in _FIELDS}, policy=row["policy"], redactions=redactions, mac=row["mac"].hex()
    )
