"""How long texts stay.

An answered request keeps them ``answered_s``. A late answer stays until ``answered_s``
after its owner fetched it, ``late_s`` at most; so do the texts of a request that nobody
answered. With ``bodies = "none"`` texts go with the transaction that ends the request; only
what its owner could not read before waits to be fetched once: a late answer, or the draft
of a deferred request that nobody answered. It goes at the next clean-up after that. An open
request keeps its texts: they are the work.

What is known of an ended request without its texts (states, scores, its Idempotency-Key)
stays ``rows_s``. The log of what left the device stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from agent.records import RequestState
from agent.settings import RetentionSettings
from agent.storage import statements as sql
from agent.storage.connection import Connection

LATE = frozenset({RequestState.RESOLVED, RequestState.UNRESOLVED})
_OPEN = frozenset({RequestState.RUNNING, RequestState.QUEUED})
CHUNK_ROWS = 200  # in one transaction
# A request goes with all its rows and index entries, and SQLite keeps a copy of each page that a savepoint changes, in
# memory: some 27 KiB for each request, which the allocator does not always give back.
DROPPED_ROWS = 50
_CHUNK_BYTES = 1 << 20


class Retention:
    """Turns the settings into moments."""

    def __init__(self, settings: RetentionSettings) -> None:
        self._forget_ended = settings.bodies == "none"
        self._answered_ms = 0 if self._forget_ended else settings.answered_s * 1000
        self._late_ms = settings.late_s * 1000
        self._rows_ms = settings.rows_s * 1000

    def forgets(self, state: RequestState, *, unread: bool = False) -> bool:
        """Whether the texts go in the very transaction that reaches ``state``. ``unread``: a draft is still to be told."""
        return self._forget_ended and state not in _OPEN and state is not RequestState.RESOLVED and not unread

    def until_ms(self, state: RequestState, now_ms: int, *, unread: bool = False) -> int | None:
        """When the texts of a request that reaches ``state`` now may go. None: not yet known, or gone."""
        if state in _OPEN or self.forgets(state, unread=unread):
            return None
        return now_ms + (self._late_ms if state in LATE else self._answered_ms)

    @property
    def longest_ms(self) -> int:
        """The longest span for which the texts of an ended request stay."""
        return max(self._answered_ms, self._late_ms)

    def fetched_until_ms(self, now_ms: int) -> int:
        """When the texts of a late answer may go that its owner fetches now."""
        return now_ms + self._answered_ms

    def settled_before_ms(self, now_ms: int) -> int:
        """Up to which end nothing more is kept of a request whose texts are gone."""
        return now_ms - self._rows_ms


def forget(connection: Connection, request_id: str) -> None:
    """Remove the texts of one request; its states and numbers stay."""
    connection.execute(sql.REQUEST_FORGET, {"id": request_id})
    connection.execute(sql.RESULTS_FORGET, {"id": request_id})
    connection.execute(sql.ESCALATION_FORGET, {"id": request_id})


def purge_bodies(connection: Connection, now_ms: int) -> list[str]:
    """Remove texts whose time has passed, a chunk at a time. Returns the requests concerned."""
    ids = chunk(connection.execute(sql.REQUEST_TO_PURGE, {"now_ms": now_ms, "limit": CHUNK_ROWS}).fetchall())
    for request_id in ids:
        forget(connection, request_id)
    return ids


def purge_rows(connection: Connection, settled_before_ms: int) -> list[str]:
    """Remove ended requests without texts, with their outbox rows, a chunk at a time. Returns their ids."""
    parameters = {"settled_before_ms": settled_before_ms, "limit": DROPPED_ROWS}
    ids = [row["id"] for row in connection.execute(sql.REQUEST_TO_DROP, parameters).fetchall()]
    for request_id in ids:
        connection.execute(sql.REQUEST_DELETE, {"id": request_id})
    return ids


def chunk(found: Sequence[Any]) -> list[str]:
    """Return the ids of the first rows whose texts together are small enough for one transaction.

    Deleted text is overwritten, so a transaction writes as much as it deletes: it must fit
    into what the ballast gives back on a full disk.
    """
    ids: list[str] = []
    size = 0
    for row in found:
        size += row["bytes"]
        if ids and size > _CHUNK_BYTES:
            break
        ids.append(row["id"])
    return ids
