"""Events for a webhook: written by the database itself, in the transaction that ends what they tell of.

Triggers write them, as they keep the counters: whatever ends a request or a batch cannot forget to.
They do so only while a webhook is configured.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from agent.storage import egress_log
from agent.storage.connection import Connection
from agent.storage.database import Database

LOG_TARGET = "webhook"  # in the log of what left
KEEP_MS = 7 * 86_400_000  # what was delivered, or given up

EVENTS = """
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    type TEXT NOT NULL,
    subject_id TEXT NOT NULL,
    created_at_ms INTEGER NOT NULL,
    state TEXT NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'delivered', 'dead')),
    attempts INTEGER NOT NULL DEFAULT 0,
    due_at_ms INTEGER NOT NULL,
    last_error TEXT
"""
WANTED = "one INTEGER PRIMARY KEY CHECK (one = 1)"
STATEMENTS = (
    "CREATE INDEX webhook_events_due ON webhook_events (due_at_ms) WHERE state = 'pending'",
    # What somebody waited for all the time needs no telling; nor does a line of a batch.
    """
    CREATE TRIGGER requests_event AFTER UPDATE OF state ON requests
    WHEN OLD.state IN ('running', 'queued') AND NEW.state NOT IN ('running', 'queued')
        AND (OLD.state = 'queued' OR NEW.lives IS NOT NULL) AND EXISTS (SELECT 1 FROM webhook_wanted)
        AND ifnull(NEW.idempotency_key, '') NOT LIKE '§%'
    BEGIN
        INSERT INTO webhook_events (id, type, subject_id, created_at_ms, due_at_ms)
        SELECT 'evt_' || lower(hex(randomblob(16))),
            CASE NEW.state WHEN 'resolved' THEN 'response.completed' WHEN 'answered' THEN 'response.completed'
                WHEN 'cancelled' THEN 'response.cancelled' ELSE 'response.failed' END,
            'resp_' || NEW.id, NEW.settled_at_ms, NEW.settled_at_ms;
    END
    """,
    """
    CREATE TRIGGER batches_event AFTER UPDATE OF status ON batches
    WHEN OLD.ended_at_ms IS NULL AND NEW.ended_at_ms IS NOT NULL AND EXISTS (SELECT 1 FROM webhook_wanted)
    BEGIN
        INSERT INTO webhook_events (id, type, subject_id, created_at_ms, due_at_ms)
        SELECT 'evt_' || lower(hex(randomblob(16))), 'batch.' || NEW.status, NEW.id, NEW.ended_at_ms, NEW.ended_at_ms;
    END
    """,
)

_WANT = "INSERT INTO webhook_wanted (one) VALUES (1) ON CONFLICT DO NOTHING"
_DUE = """
SELECT id, type, subject_id, created_at_ms, attempts FROM webhook_events INDEXED BY webhook_events_due
WHERE state = 'pending' AND due_at_ms <= :now_ms ORDER BY due_at_ms, number LIMIT :limit
"""
_SETTLE = """
UPDATE webhook_events SET state = :state, attempts = attempts + 1, due_at_ms = :due_at_ms, last_error = :error
WHERE id = :id AND state = 'pending'
"""
_COUNTS = "SELECT state, count(*) AS n_rows FROM webhook_events GROUP BY state"
_DROP = "DELETE FROM webhook_events WHERE state <> 'pending' AND created_at_ms <= :before_ms"


class Event(msgspec.Struct, frozen=True):
    """Something to tell."""

    id: str
    type: str
    subject_id: str
    created_at_ms: int
    attempts: int


class Left(msgspec.Struct, frozen=True):
    """What left the device: it holds ids and no text."""

    at_ms: int
    body_bytes: int
    body_sha256: str


class WebhookStore:
    """The events of one database. Every method returns after the commit."""

    def __init__(self, database: Database) -> None:
        self._db = database

    async def want(self, *, wanted: bool) -> None:
        """Begin to write events, or end it and forget those that wait: nobody is there to be told."""

        def work(connection: Connection) -> None:
            if wanted:
                connection.execute(_WANT)
            else:
                connection.execute("DELETE FROM webhook_wanted")
                connection.execute("DELETE FROM webhook_events WHERE state = 'pending'")

        await self._db.write(work)

    async def due(self, now_ms: int, limit: int) -> Sequence[Event]:
        """Return events whose time has come, oldest first."""
        found = await self._db.read(
            lambda connection: connection.execute(_DUE, {"now_ms": now_ms, "limit": limit}).fetchall()
        )
        return [Event(**{field: row[field] for field in Event.__struct_fields__}) for row in found]

    async def delivered(self, event: Event, left: Left | None = None) -> None:
        """Note that an event was taken. ``left``: what left the device with it, for the log of that."""
        await self._settle(event, "delivered", event.created_at_ms, None, left)

    async def put_off(self, event: Event, due_at_ms: int, error: str, left: Left | None = None) -> None:
        """Try an event again later."""
        await self._settle(event, "pending", due_at_ms, error, left)

    async def give_up(self, event: Event, error: str, left: Left | None = None) -> None:
        """End an event that nobody takes."""
        await self._settle(event, "dead", event.created_at_ms, error, left)

    async def _settle(self, event: Event, state: str, due_at_ms: int, error: str | None, left: Left | None) -> None:
        parameters = {"id": event.id, "state": state, "due_at_ms": due_at_ms, "error": error}

        def work(connection: Connection) -> None:
            connection.execute(_SETTLE, parameters)
            if left is not None:
                egress_log.append(
                    connection,
                    at_ms=left.at_ms,
                    escalation_id=event.id,
                    request_id=event.subject_id,
                    target=LOG_TARGET,
                    body_bytes=left.body_bytes,
                    body_sha256=left.body_sha256,
                    outcome=state,
                    policy=None,
                    redactions=None,
                )

        await self._db.write(work)

    async def counts(self) -> dict[str, int]:
        """Return how many events there are in each state: those of a week."""
        found: list[Any] = await self._db.read(lambda connection: connection.execute(_COUNTS).fetchall())
        return {"pending": 0, "delivered": 0, "dead": 0} | {row["state"]: row["n_rows"] for row in found}

    async def maintain(self, now_ms: int) -> None:
        """Forget what was told long ago."""
        parameters = {"before_ms": now_ms - KEEP_MS}
        await self._db.write(lambda connection: connection.execute(_DROP, parameters).rowcount)
