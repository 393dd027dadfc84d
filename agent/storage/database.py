"""The one thread that owns the database, and group commit.

Callers hand over functions of a connection. Writes that arrive while a commit runs are
committed together by the next one: each has its own savepoint, and its caller hears of
success only after the commit is on disk. Reads run on the same thread, outside a
transaction, after the writes that arrived before them.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

from agent.errors import DiskFull, StorageError
from agent.storage.ballast import Ballast
from agent.storage.connection import (
    SCHEMA_VERSION,
    SQLITE_ERRORS,
    Connection,
    connect,
    is_full,
    is_io_error,
    schema_version,
    translate,
    tune,
)
from agent.telemetry import LOG, log_fault

T = TypeVar("T")
Work = Callable[[Connection], T]

_GROUP_LIMIT = 256  # writes in one commit


class _Job(Generic[T]):
    """One function to run and the future of its caller."""

    def __init__(self, work: Work[T], *, writes: bool, grows: bool) -> None:
        self.work = work
        self.writes = writes
        self.grows = grows
        self.remedies: list[Callable[[], bool]] = []  # against a full disk, each tried once
        self._loop = asyncio.get_running_loop()
        self.future: asyncio.Future[T] = self._loop.create_future()

    def resolve(self, value: T) -> None:
        self._tell(lambda: self.future.set_result(value))

    def fail(self, error: BaseException) -> None:
        self._tell(lambda: self.future.set_exception(error))

    def _tell(self, call: Callable[[], None]) -> None:
        def tell() -> None:
            if not self.future.done():  # the caller may have been cancelled; the write stands all the same
                call()

        # A loop that is closed has nobody left to tell.
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(tell)


class _GroupLost(Exception):
    """The transaction of a group ended early; nothing of it is stored."""


class Database:
    """The database of one data directory. Open it with ``await Database.open(...)``."""

    def __init__(self, path: Path, key: bytes, ballast: Ballast) -> None:
        self.path = path
        self._key = key
        self._ballast = ballast
        self._jobs: queue.SimpleQueue[_Job[Any] | None] = queue.SimpleQueue()
        self._connection: Connection | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="outrider-storage", daemon=True)

    @classmethod
    async def open(cls, path: Path, key: bytes, ballast: Ballast) -> Database:
        """Start the storage thread. Raises what ``connect`` raises, and StorageError for another schema."""
        database = cls(path, key, ballast)
        database._thread.start()
        try:
            await database.read(lambda _: None)
        except BaseException:
            await database.close()
            raise
        return database

    async def write(self, work: Work[T], *, grows: bool = False) -> T:
        """Run ``work`` in a transaction and return its value once that is durable.

        ``work`` may run twice when its group could not be committed: it must change nothing
        but the database. An exception undoes this work alone. Raises DiskFull when no space
        is left; work that ``grows`` the database is then refused before all other.
        """
        job = _Job(work, writes=True, grows=grows)
        job.remedies = [self._trim_log] if grows else [self._trim_log, self._give_up_ballast]
        return await self._submit(job)

    async def write_in_pieces(self, statement: str, parameters: Mapping[str, object]) -> None:
        """Execute a statement with a limit in transactions of its own until it changes nothing.

        What one transaction changes is in memory until it ends (see agent.storage.retention), and in the log.
        """
        while await self.write(lambda connection: connection.execute(statement, parameters).rowcount):
            pass

    async def read(self, work: Work[T]) -> T:
        """Run ``work`` on the committed state. It must not write."""
        return await self._submit(_Job(work, writes=False, grows=False))

    async def checkpoint(self) -> None:
        """Move the write-ahead log into the database, so that deleted text leaves the disk."""
        self._ballast.hold()
        await self.read(lambda connection: connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall())

    async def close(self) -> None:
        """Finish what was handed over, checkpoint, close. Safe to call twice."""
        if not self._closed:
            self._closed = True
            self._jobs.put(None)
        await asyncio.to_thread(self._thread.join)

    async def _submit(self, job: _Job[T]) -> T:
        if self._closed:
            raise StorageError("the database is closed; the daemon is stopping")
        self._jobs.put(job)
        return await job.future

    # --- the storage thread -----------------------------------------------------------

    def _run(self) -> None:
        stopping = False
        while not stopping:
            jobs, stopping = self._next_group()
            try:
                self._serve(jobs)
            except Exception as error:
                # Nobody may wait for ever on a thread that met a surprise.
                log_fault("the storage thread met an error that it does not know")
                self._undo()
                for job in jobs:
                    job.fail(self._told(error))
        self._shut()

    def _serve(self, jobs: list[_Job[Any]]) -> None:
        self._write_group([job for job in jobs if job.writes])
        for job in jobs:
            if not job.writes:
                self._read_one(job)

    def _next_group(self) -> tuple[list[_Job[Any]], bool]:
        """Wait for one job, then take what else is there."""
        jobs: list[_Job[Any]] = []
        job = self._jobs.get()
        while job is not None:
            jobs.append(job)
            if len(jobs) >= _GROUP_LIMIT:
                return jobs, False
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                return jobs, False
        return jobs, True

    def _write_group(self, jobs: list[_Job[Any]]) -> None:
        jobs = self._refuse_growth(jobs)
        if not jobs:
            return
        try:
            outcomes = self._commit_together(jobs)
        except Exception as error:
            self._undo()
            if len(jobs) == 1:
                self._write_alone(jobs[0], error)
            else:
                # One of them, or the disk, was at fault: each gets a transaction of its own.
                for job in jobs:
                    self._write_group([job])
            return
        for job, (value, failure) in zip(jobs, outcomes, strict=True):
            if failure is None:
                job.resolve(value)
            else:
                job.fail(failure)
        if not self._ballast.held and self._ballast.size:
            # The log must not take what little is left: to empty it, the database itself may have to grow.
            self._trim_log()

    def _commit_together(self, jobs: list[_Job[Any]]) -> list[tuple[Any, Exception | None]]:
        connection = self._opened()
        connection.execute("BEGIN IMMEDIATE")
        outcomes: list[tuple[Any, Exception | None]] = []
        for job in jobs:
            connection.execute("SAVEPOINT job")
            try:
                outcomes.append((job.work(connection), None))
            except Exception as error:
                if not connection.in_transaction or is_full(error) or is_io_error(error):
                    raise _GroupLost from error
                connection.execute("ROLLBACK TO job")
                outcomes.append((None, self._told(error)))
            connection.execute("RELEASE job")
        connection.execute("COMMIT")
        return outcomes

    def _write_alone(self, job: _Job[Any], error: Exception) -> None:
        """A single write failed: on a full disk it may still succeed once there is room."""
        cause = error.__cause__ if isinstance(error, _GroupLost) and isinstance(error.__cause__, Exception) else error
        if is_full(cause) and self._make_room(job):
            self._write_group([job])
            return
        if is_io_error(cause):
            self._reopen_later()
        job.fail(self._told(cause))

    def _make_room(self, job: _Job[Any]) -> bool:
        """Apply the next remedy that frees anything. The ballast is not for work that grows the database."""
        while job.remedies:
            if job.remedies.pop(0)():
                return True
        return False

    def _give_up_ballast(self) -> bool:
        """Free the reserved space, and use it at once to empty the log, which is then reused from its start."""
        if not self._ballast.release():
            return False
        self._trim_log()
        return True

    def _trim_log(self) -> bool:
        """Move the write-ahead log into the database. Returns whether that gave space back."""
        log = self.path.with_name(self.path.name + "-wal")
        before = log.stat().st_size
        try:
            self._opened().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        except SQLITE_ERRORS as error:
            LOG.warning("the write-ahead log could not be trimmed: %s", error)
        return log.stat().st_size < before

    def _read_one(self, job: _Job[Any]) -> None:
        try:
            value = job.work(self._opened())
        except Exception as error:
            self._undo()
            if is_io_error(error):
                self._reopen_later()
            job.fail(self._told(error))
        else:
            job.resolve(value)

    def _refuse_growth(self, jobs: list[_Job[Any]]) -> list[_Job[Any]]:
        """Without the ballast, what space is left is for the work that ends requests."""
        if not any(job.grows for job in jobs) or self._ballast.hold() or self._has_spare_pages():
            return jobs
        for job in jobs:
            if job.grows:
                job.fail(DiskFull(f"no space left for {self.path}; new requests are refused until some is free"))
        return [job for job in jobs if not job.grows]

    def _has_spare_pages(self) -> bool:
        """Whether deletions left as much room inside the database as the ballast would."""
        connection = self._opened()
        pages, size = (
            int(connection.execute(f"PRAGMA {name}").fetchone()[0]) for name in ("freelist_count", "page_size")
        )
        return pages * size >= self._ballast.size

    def _opened(self) -> Connection:
        if self._connection is None:
            connection = connect(self.path, self._key)
            try:
                _check_schema(connection, self.path)
                tune(connection)
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return self._connection

    def _undo(self) -> None:
        if self._connection is not None and self._connection.in_transaction:
            try:
                self._connection.execute("ROLLBACK")
            except SQLITE_ERRORS as error:
                LOG.error("a transaction could not be rolled back (%s); the database is opened anew", error)
                self._reopen_later()

    def _reopen_later(self) -> None:
        # After a failed write or fsync SQLite's view of the file is not to be trusted.
        if self._connection is not None:
            try:
                self._connection.close()
            finally:
                self._connection = None

    def _told(self, error: Exception) -> Exception:
        return translate(error, self.path) if isinstance(error, SQLITE_ERRORS) else error

    def _shut(self) -> None:
        if self._connection is None:
            return
        try:
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        except SQLITE_ERRORS as error:
            LOG.warning("the write-ahead log stays until the next start: %s", error)
        self._connection.close()
        self._connection = None


def _check_schema(connection: Connection, path: Path) -> None:
    version = schema_version(connection, path)
    if version != SCHEMA_VERSION:
        raise StorageError(f"{path} has schema {version}, not {SCHEMA_VERSION}; start the daemon to migrate it")
