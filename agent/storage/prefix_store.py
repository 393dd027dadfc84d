"""Named prefixes on disk: what a model has computed for them, kept across restarts.

Each is an SQLCipher file of its own in ``data_dir/prefixes``, under the key of the database.
It is written beside its place and put there whole by a rename, so there is never half of one.
Whatever cannot be read (cut short, changed, under an earlier key) is thrown away: it can be
computed again. docs/decisions/0003-saved-prefixes.md says why.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
from collections.abc import AsyncIterator, Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

import msgspec

from agent.errors import DiskFull, ForeignDatabase, StorageCorrupt, WrongKey
from agent.records import StoredPrefix
from agent.storage.connection import (
    APPLICATION_ID,
    PREFIXES_NAME,
    SQLITE_ERRORS,
    Connection,
    connect,
    from_os_error,
    translate,
)
from agent.storage.erasure import erase, erase_all
from agent.storage.keys import make_private_folder, sync_folder
from agent.telemetry import LOG

FORMAT = 1  # user_version of a file
RESERVE_BYTES = 64 << 20  # of the disk: what is queued comes first
_SUFFIX, _UNFINISHED = ".db", ".unfinished"
_UNREADABLE = (WrongKey, ForeignDatabase, StorageCorrupt)

T = TypeVar("T")


class PrefixStore:
    """All prefixes of one data directory. Its owner holds the instance lock.

    One thread of its own reads and writes: neither the event loop nor the database waits for it.
    """

    def __init__(self, data_dir: Path, key: bytes, *, most_bytes: int) -> None:
        """``most_bytes`` is the ceiling of all files together; 0: none is kept."""
        self._folder = data_dir / PREFIXES_NAME
        self._key = key
        self._most_bytes = most_bytes
        self._thread = ThreadPoolExecutor(1, "outrider-prefixes")

    async def all(self) -> list[StoredPrefix]:
        """Return all that can be read, the most recently used first. Throws away what cannot."""
        return await self._run(self._list)

    async def find(self, name: str, model: str) -> StoredPrefix | None:
        """Return the prefix of a model, None when there is none."""
        return next((one for one in await self.all() if (one.name, one.model) == (name, model)), None)

    async def read(self, stored: StoredPrefix) -> AsyncIterator[bytes]:
        """Yield its bytes in order, and note the use. Raises StorageError when they cannot be read; then it is gone."""
        path = self._folder / stored.file
        number = 0
        connection = await self._run(lambda: self._opened(path))
        try:
            while data := await self._run(partial(_piece, connection, number)):
                yield data
                number += 1
            await self._run(lambda: os.utime(path))
        except SQLITE_ERRORS as error:
            await self._run(lambda: self._throw_away(path, "it is damaged"))
            raise translate(error, path) from error
        finally:
            await self._run(connection.close)

    async def write(self, prefix: StoredPrefix, pieces: AsyncIterator[bytes]) -> bool:
        """Keep a prefix instead of an earlier one of that name and model; the least recently used leave for it.

        False: it is above the ceiling by itself, or ``pieces`` are not as many bytes as it says. Raises StorageError; then nothing is kept.
        """
        size = sum(part[2] for part in prefix.parts)
        if size > self._most_bytes:
            return False
        path = self._folder / (secrets.token_hex(8) + _UNFINISHED)
        connection = await self._run(lambda: self._create(path, prefix, size))
        try:
            number = written = 0
            async for data in pieces:
                await self._run(partial(_add_piece, connection, number, data))
                number, written = number + 1, written + len(data)
                if written > size:
                    break
            if written == size:
                await self._run(lambda: connection.execute("COMMIT"))
                await self._run(lambda: self._put_in_place(path, prefix))
        except SQLITE_ERRORS as error:
            raise translate(error, path) from error
        finally:
            # Not to be interrupted: whoever cancels must not leave half a file.
            await asyncio.shield(self._run(lambda: _close_and_erase(connection, path)))
        return written == size

    async def keep_only(self, named: Collection[tuple[str, str]]) -> int:
        """Erase all but these (name and model), and what is above the ceiling. Returns how many are gone."""
        return await self._run(lambda: self._keep_only(named))

    async def remove(self, names: Collection[str] | None = None) -> int:
        """Erase the prefixes of these names, None: all. Returns how many are gone."""
        return await self._run(lambda: self._remove(names))

    async def close(self) -> None:
        """Finish what was begun."""
        await asyncio.to_thread(self._thread.shutdown)

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    # --- in the thread ----------------------------------------------------------------

    def _list(self) -> list[StoredPrefix]:
        found = []
        for path in self._folder.glob("*" + _SUFFIX):
            try:
                connection = self._opened(path)
            except _UNREADABLE:
                continue  # and gone
            try:
                found.append(self._described(connection, path))
            except (SQLITE_ERRORS, msgspec.MsgspecError):
                self._throw_away(path, "it is damaged")
            finally:
                connection.close()
        return sorted(found, key=lambda one: one.used_at_ms, reverse=True)

    def _described(self, connection: Connection, path: Path) -> StoredPrefix:
        about = connection.execute("SELECT body FROM about").fetchone()[0]
        status = path.stat()
        return msgspec.structs.replace(
            msgspec.json.decode(about, type=StoredPrefix),
            file=path.name,
            disk_bytes=status.st_size,
            used_at_ms=status.st_mtime_ns // 1_000_000,
        )

    def _opened(self, path: Path) -> Connection:
        """Open a prefix. Raises StorageError; what is no prefix under this key is thrown away."""
        try:
            connection = connect(path, self._key)
            if connection.execute("PRAGMA user_version").fetchone()[0] != FORMAT:
                connection.close()
                raise ForeignDatabase(f"{path} is a saved prefix of another release")
        except _UNREADABLE:
            self._throw_away(path, "it is damaged, under an earlier key, or of another release")
            raise
        return connection

    def _throw_away(self, path: Path, why: str) -> None:
        LOG.warning("a saved prefix is thrown away, %s (%s); it is computed again when it is needed", why, path.name)
        erase(path)

    def _create(self, path: Path, prefix: StoredPrefix, size: int) -> Connection:
        make_private_folder(self._folder)
        if shutil.disk_usage(self._folder).free < size + RESERVE_BYTES:
            raise DiskFull(f"no space left to save prefix {prefix.name}: {size} bytes, and {RESERVE_BYTES} stay free")
        connection = connect(path, self._key, create=True)
        try:
            # Half a file is never looked at: the rename makes it whole, so no journal is needed.
            connection.execute("PRAGMA journal_mode = OFF").fetchall()
            connection.execute("PRAGMA synchronous = OFF")
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {FORMAT}")
            connection.execute("BEGIN")
            connection.execute("CREATE TABLE about (body BLOB NOT NULL) STRICT")
            connection.execute("CREATE TABLE pieces (number INTEGER PRIMARY KEY, data BLOB NOT NULL) STRICT")
            connection.execute("INSERT INTO about VALUES (:body)", {"body": msgspec.json.encode(prefix)})
        except BaseException:
            _close_and_erase(connection, path)
            raise
        return connection

    def _put_in_place(self, unfinished: Path, prefix: StoredPrefix) -> None:
        path = unfinished.with_suffix(_SUFFIX)
        try:
            with unfinished.open("rb") as file:
                os.fsync(file.fileno())
            earlier = [one for one in self._list() if (one.name, one.model) == (prefix.name, prefix.model)]
            unfinished.rename(path)
            sync_folder(self._folder)
            for one in earlier:
                erase(self._folder / one.file)
            self._make_room()
        except OSError as error:
            raise from_os_error(error, path) from error

    def _make_room(self) -> int:
        """Erase the least recently used until the ceiling holds. Returns how many are gone."""
        kept = self._list()
        total, gone = sum(one.disk_bytes for one in kept), 0
        while kept and total > self._most_bytes:
            one = kept.pop()
            erase(self._folder / one.file)
            total, gone = total - one.disk_bytes, gone + 1
        return gone

    def _keep_only(self, named: Collection[tuple[str, str]]) -> int:
        # Nobody else writes here, so what is not finished is of a process that has ended.
        for path in self._folder.glob("*" + _UNFINISHED):
            erase(path)
        others = [one for one in self._list() if (one.name, one.model) not in named]
        for one in others:
            erase(self._folder / one.file)
        return len(others) + self._make_room()

    def _remove(self, names: Collection[str] | None) -> int:
        if names is None:
            return erase_all(self._folder)
        found = [one for one in self._list() if one.name in names]
        for one in found:
            erase(self._folder / one.file)
        return len(found)


def _piece(connection: Connection, number: int) -> bytes:
    row = connection.execute("SELECT data FROM pieces WHERE number = :number", {"number": number}).fetchone()
    return bytes(row[0]) if row else b""


def _add_piece(connection: Connection, number: int, data: bytes) -> None:
    connection.execute("INSERT INTO pieces VALUES (:number, :data)", {"number": number, "data": data})


def _close_and_erase(connection: Connection, path: Path) -> None:
    connection.close()
    erase(path)
