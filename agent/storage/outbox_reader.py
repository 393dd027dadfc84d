"""Looking at the outbox: rows, their sends, and how many there are."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from agent.records import Escalation, EscalationState
from agent.storage import rows
from agent.storage import statements as sql
from agent.storage.connection import Connection
from agent.storage.database import Database
from agent.storage.transitions import ENDED, find

LOWEST_PRIORITY = -(1 << 31)
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


class OutboxReader:
    """What the outbox can be asked. Changes nothing."""

    def __init__(self, database: Database) -> None:
        self._db = database

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

    async def unfetched(self) -> int:
        """Return how many late answers are here that nobody has fetched, from their own index."""
        return await self._db.read(
            lambda connection: int(connection.execute(sql.REQUEST_UNFETCHED).fetchone()["n_rows"])
        )

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

    async def next_available_ms(self, target: str, now_ms: int, *, least: int = LOWEST_PRIORITY) -> int | None:
        """Return when the next row for ``target`` is due, of at least this priority: ``now_ms`` when one is, None when none waits."""
        parameters = {"target": target, "least": least}

        def work(connection: Connection) -> int | None:
            if connection.execute(sql.ESCALATION_READY, parameters).fetchone():
                return now_ms
            row = connection.execute(sql.ESCALATION_NEXT, parameters).fetchone()
            return None if row is None else max(now_ms, int(row["available_at_ms"]))

        return await self._db.read(work)
