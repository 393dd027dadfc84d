"""Batches and their lines: each line is answered once, in the transaction that counts it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from agent.errors import Busy, IdempotencyMismatch, NotFound
from agent.storage import batch_schema as sql
from agent.storage import subjects
from agent.storage.connection import Connection
from agent.storage.database import Database
from agent.storage.file_store import output_id
from agent.types import EgressPolicy

MOST_OPEN = 100  # batches under way
DROPPED_LINES = 500  # in one transaction
_LAST_ID = "~"


class BatchBody(msgspec.Struct, frozen=True, kw_only=True):
    """What a batch was asked with."""

    input_file_id: str
    endpoint: str
    completion_window: str
    metadata: dict[str, str] | None = None
    headers: dict[str, str] = {}  # x-outrider-*, which hold for every line
    key: str | None = None  # name of the caller's own key, whose policy holds for every line
    key_egress: EgressPolicy | None = None  # what that policy was


class LineError(msgspec.Struct, frozen=True, kw_only=True):
    """What is wrong with an input."""

    code: str
    message: str
    line: int | None = None  # from 1
    param: str | None = None


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """A batch as it stands."""

    id: str
    status: str
    body: BatchBody
    created_at_ms: int
    expires_at_ms: int
    began_at_ms: int | None = None
    cancelling_at_ms: int | None = None
    ended_at_ms: int | None = None
    total: int = 0
    completed: int = 0
    failed: int = 0
    output_file_id: str | None = None
    error_file_id: str | None = None
    errors: tuple[LineError, ...] = ()


class Line(msgspec.Struct, frozen=True):
    """A line that is not answered yet."""

    number: int  # from 1
    custom_id: str
    request_id: str | None  # of one that waits for a late answer
    body: bytes


_Batches = list[Batch]  # inside the class, `list` is the method


class BatchStore:
    """The batches of one database. Every method returns after the commit."""

    def __init__(self, database: Database) -> None:
        self._db = database

    async def create(self, batch: Batch, *, key: str | None, sha256: str) -> Batch:
        """Store a new batch, or return that of the Idempotency-Key. Raises IdempotencyMismatch, Busy."""

        def work(connection: Connection) -> Batch:
            known = connection.execute(sql.BATCH_OF_KEY, {"key": key}).fetchone() if key is not None else None
            if known is not None:
                if known["body_sha256"] != sha256:
                    raise IdempotencyMismatch("this Idempotency-Key came with another batch before; use a new key")
                return _batch(known)
            if len(connection.execute(sql.BATCHES_OPEN).fetchall()) >= MOST_OPEN:
                raise Busy(f"{MOST_OPEN} batches are under way already; wait, or cancel some")
            connection.execute(
                sql.BATCH_PUT,
                {
                    "id": batch.id,
                    "key": key,
                    "sha256": sha256,
                    "now_ms": batch.created_at_ms,
                    "expires_at_ms": batch.expires_at_ms,
                    "body": msgspec.json.encode(batch.body),
                },
            )
            return batch

        return await self._db.write(work, grows=True)

    async def get(self, batch_id: str) -> Batch:
        """Return a batch. Raises NotFound."""
        row = await self._db.read(lambda connection: connection.execute(sql.BATCH_GET, {"id": batch_id}).fetchone())
        if row is None:
            raise NotFound(f"there is no batch {batch_id[:100]}", param="batch_id")
        return _batch(row)

    async def list(self, *, after: str | None, limit: int) -> _Batches:
        """Return batches, newest first."""
        parameters = {"after": after or _LAST_ID, "limit": limit}
        found = await self._db.read(lambda connection: connection.execute(sql.BATCH_LIST, parameters).fetchall())
        return [_batch(row) for row in found]

    async def open(self) -> _Batches:
        """Return the batches that have not ended."""
        found = await self._db.read(lambda connection: connection.execute(sql.BATCHES_OPEN).fetchall())
        return [_batch(row) for row in found]

    async def add_lines(self, batch_id: str, lines: Sequence[Line]) -> None:
        """Store lines of a batch that is not begun yet. Those of an earlier try must have been cleared."""
        rows = [
            {"id": batch_id, "number": line.number, "custom_id": line.custom_id, "body": line.body} for line in lines
        ]

        def work(connection: Connection) -> None:
            connection.executemany(sql.LINE_PUT, rows)
            subjects.tag_lines(connection, batch_id, ((line.number, line.body) for line in lines))

        await self._db.write(work, grows=True)

    async def clear_lines(self, batch_id: str) -> None:
        """Remove the lines of a batch that was not begun, or that is to go as a whole."""
        await self._db.write_in_pieces(sql.LINES_DROP_SOME, {"id": batch_id, "limit": DROPPED_LINES})

    async def begin(self, batch_id: str, total: int, *, now_ms: int) -> None:
        """Let the lines be answered; a batch that was cancelled meanwhile stays so."""
        parameters = {"id": batch_id, "total": total, "now_ms": now_ms}
        await self._db.write(lambda connection: connection.execute(sql.BATCH_BEGIN, parameters).rowcount)

    async def cancel(self, batch_id: str, *, now_ms: int) -> Batch:
        """Let a batch end early, if it is under way. Raises NotFound."""
        parameters = {"id": batch_id, "now_ms": now_ms}
        await self._db.write(lambda connection: connection.execute(sql.BATCH_CANCEL, parameters).rowcount)
        return await self.get(batch_id)

    async def new_lines(self, batch_id: str, after: int, limit: int) -> Sequence[Line]:
        """Return lines that nobody has begun, or that an earlier life of the daemon had begun."""
        return await self._lines(sql.LINES_NEW, {"id": batch_id, "after": after, "limit": limit})

    async def waiting_lines(self, batch_id: str, after: int, limit: int) -> Sequence[Line]:
        """Return lines that wait for a late answer."""
        return await self._lines(sql.LINES_WAITING, {"id": batch_id, "after": after, "limit": limit})

    async def joined_lines(self, batch_id: str, limit: int) -> Sequence[Line]:
        """Return lines that waited and whose requests have come to an end."""
        return await self._lines(sql.LINES_JOINED, {"id": batch_id, "limit": limit})

    async def _lines(self, statement: str, parameters: dict[str, object]) -> Sequence[Line]:
        found = await self._db.read(lambda connection: connection.execute(statement, parameters).fetchall())
        return [Line(row["number"], row["custom_id"], row["request_id"], row["body"]) for row in found]

    async def wait(self, batch_id: str, number: int, request_id: str) -> None:
        """Note that a line waits for the late answer of a request."""
        parameters = {"id": batch_id, "number": number, "request_id": request_id}
        await self._db.write(lambda connection: connection.execute(sql.LINE_WAITS, parameters).rowcount)

    async def answer(self, batch_id: str, number: int, status: int, answer: bytes) -> bool:
        """Store the answer of a line with its count. False: it has one already, which stays."""
        parameters = {"id": batch_id, "number": number, "status": status, "answer": answer}

        def work(connection: Connection) -> bool:
            if not connection.execute(sql.LINE_ANSWER, parameters).rowcount:
                return False
            connection.execute(sql.BATCH_COUNT, {"id": batch_id, "good": 200 <= status < 300})
            return True

        return await self._db.write(work)

    async def end(
        self,
        batch: Batch,
        status: str,
        *,
        now_ms: int,
        keep_s: int,
        forget_input: bool = False,
        errors: Sequence[LineError] = (),
    ) -> None:
        """End a batch; its answers and errors become files. ``forget_input``: that file goes with it."""

        def work(connection: Connection) -> None:
            row = connection.execute(sql.BATCH_GET, {"id": batch.id}).fetchone()
            outputs: dict[bool, str | None] = {True: None, False: None}
            for good, count in ((True, row["completed"]), (False, row["failed"])):
                if count:
                    outputs[good] = output_id(batch.id, good=good)
                    connection.execute(
                        sql.FILE_OUTPUT,
                        {
                            "id": outputs[good],
                            "filename": f"{batch.id}_{'output' if good else 'error'}.jsonl",
                            "now_ms": now_ms,
                            "expires_at_ms": now_ms + keep_s * 1000,
                            "batch_id": batch.id,
                            "good": good,
                        },
                    )
            connection.execute(
                sql.BATCH_END,
                {
                    "id": batch.id,
                    "status": status,
                    "now_ms": now_ms,
                    "errors": msgspec.json.encode(errors) if errors else None,
                    "output": outputs[True],
                    "error": outputs[False],
                },
            )
            if forget_input:
                connection.execute(sql.FILE_EXPIRES, {"id": batch.body.input_file_id, "now_ms": now_ms})

        await self._db.write(work)

    async def maintain(self, now_ms: int, keep_s: int) -> None:
        """Remove batches that ended long ago, with all that is left of their lines."""
        parameters = {"before_ms": now_ms - keep_s * 1000}
        found = await self._db.read(lambda connection: connection.execute(sql.BATCHES_TO_DROP, parameters).fetchall())
        for row in found:
            await self.clear_lines(row["id"])
            await self._db.write_in_pieces(sql.BATCH_DELETE, {"id": row["id"]})


def _batch(row: Any) -> Batch:
    plain = {field: row[field] for field in Batch.__struct_fields__ if field not in {"body", "errors"}}
    return Batch(
        **plain,
        body=msgspec.json.decode(row["body"], type=BatchBody),
        errors=msgspec.json.decode(row["errors"], type=tuple[LineError, ...]) if row["errors"] else (),
    )
