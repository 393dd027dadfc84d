"""Uploaded files and the outputs of batches, in pieces inside the encrypted database."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import msgspec

from agent.delivery_settings import FileSettings
from agent.errors import IdempotencyMismatch, NotFound, QueueFull, WrongState
from agent.identifiers import uuid7
from agent.storage import batch_schema as sql
from agent.storage.connection import Connection
from agent.storage.database import Database

CHUNK_BYTES = 1 << 20
INPUT, OUTPUT = "batch", "batch_output"
DROPPED_CHUNKS, DROPPED_ANSWERS = 4, 500  # in one transaction
_LINES_AT_ONCE = 200
_LAST_ID = "~"  # sorts after every id


class FilesFull(QueueFull):
    """Uploaded files and the outputs of batches are at their ceiling."""

    code = "files_full"


class StoredFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file as its owner sees it."""

    id: str
    purpose: str
    filename: str
    bytes: int
    created_at_ms: int
    expires_at_ms: int | None
    batch_id: str | None = None  # of an output: whose answers are its content


_Files = list[StoredFile]  # inside the class, `list` is the method


class FileStore:
    """The files of one database. Every method returns after the commit."""

    def __init__(self, database: Database, settings: FileSettings) -> None:
        self._db = database
        self.settings = settings

    async def begin(self, *, now_ms: int) -> str:
        """Return the id of a new file, which nobody sees until it is ready. Raises FilesFull."""
        file_id = f"file-{uuid7(now_ms)}"

        def work(connection: Connection) -> None:
            self._check_room(connection, 0)
            connection.execute(sql.FILE_BEGIN, {"id": file_id, "now_ms": now_ms})

        await self._db.write(work, grows=True)
        return file_id

    async def append(self, file_id: str, number: int, body: bytes) -> None:
        """Add a piece. Raises FilesFull, DiskFull."""

        def work(connection: Connection) -> None:
            self._check_room(connection, len(body))
            connection.execute(sql.FILE_CHUNK, {"id": file_id, "number": number, "body": body})
            connection.execute(sql.FILE_GROW, {"id": file_id, "bytes": len(body)})

        await self._db.write(work, grows=True)

    def _check_room(self, connection: Connection, more: int) -> None:
        held = int(connection.execute(sql.FILES_TOTAL).fetchone()["n_bytes"])
        if held + more > self.settings.total_bytes:
            raise FilesFull(
                f"files hold {held} bytes, their ceiling (files.total_bytes); delete some, with those of old batches"
            )

    async def ready(
        self, file_id: str, *, filename: str, sha256: str, key: str | None, keep_s: int | None, now_ms: int
    ) -> StoredFile:
        """Let a whole file be seen. That of the same Idempotency-Key and content is returned instead, if there is one.

        ``keep_s``: how long it stays, None: as configured. Raises IdempotencyMismatch.
        """

        def work(connection: Connection) -> StoredFile:
            known = connection.execute(sql.FILE_OF_KEY, {"key": key}).fetchone() if key is not None else None
            if known is not None:
                connection.execute(sql.FILE_DELETE, {"id": file_id})
                if known["sha256"] != sha256:
                    raise IdempotencyMismatch("this Idempotency-Key came with another file before; use a new key")
                return _file(known)
            connection.execute(
                sql.FILE_READY,
                {
                    "id": file_id,
                    "purpose": INPUT,
                    "filename": filename,
                    "sha256": sha256,
                    "key": key,
                    "expires_at_ms": now_ms + 1000 * (self.settings.keep_s if keep_s is None else keep_s),
                },
            )
            return _file(connection.execute(sql.FILE_GET, {"id": file_id}).fetchone())

        return await self._db.write(work)

    async def drop(self, file_id: str) -> None:
        """Remove a file that nobody sees."""
        await self._db.write_in_pieces(sql.FILE_DROP_SOME, {"id": file_id, "limit": DROPPED_CHUNKS})
        await self._db.write(lambda connection: connection.execute(sql.FILE_DELETE, {"id": file_id}).rowcount)

    async def get(self, file_id: str) -> StoredFile:
        """Return a file. Raises NotFound."""
        row = await self._db.read(lambda connection: connection.execute(sql.FILE_GET, {"id": file_id}).fetchone())
        if row is None:
            raise NotFound(f"there is no file {file_id[:100]}", param="file_id")
        return _file(row)

    async def list(self, *, purpose: str | None, after: str | None, limit: int, newest_first: bool) -> _Files:
        """Return files, without those that are still uploaded."""
        statement = sql.FILE_LIST_NEWEST if newest_first else sql.FILE_LIST
        first = _LAST_ID if newest_first else ""
        parameters = {"purpose": purpose, "after": after or first, "limit": limit}
        found = await self._db.read(lambda connection: connection.execute(statement, parameters).fetchall())
        return [_file(row) for row in found]

    async def content(self, file: StoredFile) -> AsyncIterator[bytes]:
        """Yield the content, a piece at a time: of an output the answers, in the order of their lines."""
        if file.batch_id is None:
            number = 0
            while (piece := await self._piece(file.id, number)) is not None:
                yield piece
                number += 1
            return
        after = -1
        while lines := await self._answers(file, after):
            after = lines[-1]["number"]
            yield b"".join(line["answer"] + b"\n" for line in lines if line["answer"])

    async def _piece(self, file_id: str, number: int) -> bytes | None:
        parameters = {"id": file_id, "number": number}
        row = await self._db.read(lambda connection: connection.execute(sql.FILE_READ, parameters).fetchone())
        return None if row is None else row["body"]

    async def _answers(self, file: StoredFile, after: int) -> Any:
        parameters = {"batch_id": file.batch_id, "after": after, "good": _is_good(file.id), "limit": _LINES_AT_ONCE}
        return await self._db.read(lambda connection: connection.execute(sql.OUTPUT_READ, parameters).fetchall())

    async def delete(self, file_id: str) -> None:
        """Remove a file and its texts. Raises NotFound, or WrongState for the input of an open batch."""
        file = await self.get(file_id)
        if not await self._remove(file.id, file.batch_id):
            raise WrongState(f"file {file_id} is the input of a batch that runs: cancel that first")
        await self._db.checkpoint()

    async def expire_now(self, file_id: str, now_ms: int) -> None:
        """Let a file go at the next clean-up."""
        parameters = {"id": file_id, "now_ms": now_ms}
        await self._db.write(lambda connection: connection.execute(sql.FILE_EXPIRES, parameters).rowcount)

    async def maintain(self, now_ms: int) -> None:
        """Remove files whose time has passed, but for the inputs of open batches."""
        parameters = {"now_ms": now_ms, "limit": 50}
        found = await self._db.read(lambda connection: connection.execute(sql.FILES_EXPIRED, parameters).fetchall())
        for row in found:
            await self._remove(row["id"], row["batch_id"])

    async def recover(self) -> None:
        """Remove what an earlier life did not receive, or not remove, whole."""
        for row in await self._db.read(lambda connection: connection.execute(sql.FILES_UNREADY).fetchall()):
            await self.drop(row["id"])

    async def _remove(self, file_id: str, batch_id: str | None) -> bool:
        """Remove a file; of an output the answers, first. False, and it stays: an open batch needs it."""

        def hide(connection: Connection) -> bool:
            used = file_id in inputs_in_use(connection)
            if not used:
                connection.execute(sql.FILE_HIDE, {"id": file_id})
            return not used

        if batch_id is not None:
            await self._forget_answers(batch_id, good=_is_good(file_id))
        if hidden := await self._db.write(hide):
            await self.drop(file_id)
        return hidden

    async def _forget_answers(self, batch_id: str, *, good: bool) -> None:
        def work(connection: Connection) -> int | None:
            some = {"batch_id": batch_id, "after": after, "limit": DROPPED_ANSWERS}
            last: int | None = connection.execute(sql.OUTPUT_LAST, some).fetchone()["last"]
            if last is not None:
                some |= {"last": last, "good": good}
                connection.execute(sql.OUTPUT_FORGET, some)
            return last

        after: int | None = -1
        while after is not None:
            after = await self._db.write(work)


def output_id(batch_id: str, *, good: bool) -> str:
    """Return the id of an output of a batch: of its answers, or of its errors."""
    return f"file-{batch_id.removeprefix('batch_')}{'-output' if good else '-errors'}"


def _is_good(file_id: str) -> bool:
    return file_id.endswith("-output")


def inputs_in_use(connection: Connection) -> set[str]:
    """Return the inputs of the batches that have not ended."""
    return {
        msgspec.json.decode(row["body"])["input_file_id"] for row in connection.execute(sql.BATCHES_USING).fetchall()
    }


def _file(row: Any) -> StoredFile:
    return StoredFile(**{field: row[field] for field in StoredFile.__struct_fields__})
