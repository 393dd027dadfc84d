"""What was learned of tasks, as rows: bodies that their owner encodes. Every method returns after the commit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from agent.storage import feedback_statements, subjects
from agent.storage import statements as sql
from agent.storage.connection import Connection
from agent.storage.database import Database


class Learned(msgspec.Struct, frozen=True):
    """All bodies that hold now."""

    heads: tuple[bytes, ...]
    appraisers: tuple[bytes, ...]
    calibrations: tuple[bytes, ...]
    means: tuple[bytes, ...]
    monitors: tuple[bytes, ...]


class TaskStore:
    """The heads, appraisers, calibrations and mean label scores of one database."""

    def __init__(self, database: Database) -> None:
        self._db = database

    async def all(self) -> Learned:
        """Return what holds now, of every task."""

        def work(connection: Connection) -> Learned:
            found = [
                tuple(row["body"] for row in connection.execute(statement).fetchall())
                for statement in (sql.HEADS, sql.APPRAISERS, sql.CALIBRATIONS, sql.MEANS, feedback_statements.MONITORS)
            ]
            return Learned(*found)

        return await self._db.read(work)

    async def put_head(self, task: str, body: bytes, *, now_ms: int) -> None:
        """Store the head of a task in place of an earlier one; what was calibrated with that one ends."""

        def work(connection: Connection) -> None:
            connection.execute(sql.HEAD_PUT, {"task": task, "now_ms": now_ms, "body": body})
            connection.execute(sql.CALIBRATION_END, {"task": task, "now_ms": now_ms})

        await self._db.write(work, grows=True)

    async def put_appraiser(self, task: str, body: bytes, *, now_ms: int) -> None:
        """Store the appraiser of a task in place of an earlier one; what was calibrated with that one ends."""

        def work(connection: Connection) -> None:
            connection.execute(sql.APPRAISER_PUT, {"task": task, "now_ms": now_ms, "body": body})
            connection.execute(sql.CALIBRATION_END, {"task": task, "now_ms": now_ms})

        await self._db.write(work, grows=True)

    async def put_calibration(self, task: str, calibration_id: str, body: bytes, *, now_ms: int) -> None:
        """Store a calibration; it holds from now on in place of an earlier one."""

        def work(connection: Connection) -> None:
            connection.execute(sql.CALIBRATION_END, {"task": task, "now_ms": now_ms})
            connection.execute(
                sql.CALIBRATION_PUT, {"id": calibration_id, "task": task, "now_ms": now_ms, "body": body}
            )

        await self._db.write(work, grows=True)

    async def put_means(self, bodies: Mapping[str, bytes]) -> None:
        """Store mean label scores by task."""

        def work(connection: Connection) -> None:
            for task, body in bodies.items():
                connection.execute(sql.MEANS_PUT, {"task": task, "body": body})

        if bodies:
            await self._db.write(work)

    async def put_monitors(self, bodies: Mapping[str, bytes], *, broken: Sequence[str], now_ms: int) -> None:
        """Store what watches calibrations, by task; ``broken``: calibrations that do not keep their promise."""

        def work(connection: Connection) -> None:
            for task, body in bodies.items():
                connection.execute(feedback_statements.MONITOR_PUT, {"task": task, "body": body})
            for calibration in broken:
                connection.execute(sql.CALIBRATION_BROKEN, {"id": calibration, "now_ms": now_ms})

        if bodies:
            await self._db.write(work)

    async def forget(self, task: str, *, now_ms: int) -> None:
        """Delete head, appraiser, means, examples, feedback and monitor of a task and end its calibration."""

        def work(connection: Connection) -> None:
            connection.execute(sql.HEAD_DELETE, {"task": task})
            connection.execute(sql.APPRAISER_DELETE, {"task": task})
            connection.execute(sql.MEANS_DELETE, {"task": task})
            connection.execute(feedback_statements.MONITOR_DELETE, {"task": task})
            connection.execute(sql.CALIBRATION_END, {"task": task, "now_ms": now_ms})
            connection.execute(sql.EXAMPLES_DELETE, {"task": task})
            connection.execute(feedback_statements.FEEDBACK_DELETE, {"task": task})

        await self._db.write(work)

    async def calibrations_of(self, task: str, most: int) -> tuple[bytes, ...]:
        """Return the last calibrations of a task, those that ended too, newest first; none that broke its promise."""

        def work(connection: Connection) -> tuple[bytes, ...]:
            found = connection.execute(sql.CALIBRATIONS_OF, {"task": task, "most": most})
            return tuple(row["body"] for row in found.fetchall())

        return await self._db.read(work)

    async def put_examples(self, task: str, use: str, body: bytes, *, inputs: Sequence[str], now_ms: int) -> None:
        """Store what a task was taught or calibrated with, in place of earlier ones; an empty body drops those.

        ``inputs`` are the texts in ``body``, by which it is known whose requests they were.
        """

        def work(connection: Connection) -> None:
            if body:
                connection.execute(sql.EXAMPLES_PUT, {"task": task, "use": use, "now_ms": now_ms, "body": body})
            else:
                connection.execute(sql.EXAMPLES_DROP, {"task": task, "use": use})
            subjects.tag_examples(connection, f"{task}:{use}", inputs)

        await self._db.write(work, grows=bool(body))

    async def examples(self, task: str, use: str) -> bytes:
        """Return what was stored; empty for nothing."""

        def work(connection: Connection) -> bytes:
            row = connection.execute(sql.EXAMPLES, {"task": task, "use": use}).fetchone()
            return bytes(row["body"]) if row else b""

        return await self._db.read(work)
