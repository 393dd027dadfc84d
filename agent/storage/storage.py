"""Opening a data directory: lock, key, schema, thread, rescue. In this order, each with one clear error."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from agent.delivery_settings import FileSettings
from agent.errors import QueueFull
from agent.records import Accepted
from agent.settings import QueueSettings, RetentionSettings
from agent.storage import keys
from agent.storage.ballast import Ballast
from agent.storage.batch_store import BatchStore
from agent.storage.changes import Changes
from agent.storage.clock import Clock, Uptime, uptime_ms
from agent.storage.connection import DATABASE_NAME, SCHEMA_VERSION, connect, schema_version
from agent.storage.database import Database
from agent.storage.egress_log import EgressLog
from agent.storage.feedback_store import FeedbackStore
from agent.storage.file_store import FileStore
from agent.storage.heap import trim
from agent.storage.instance_lock import InstanceLock
from agent.storage.journal import Journal, cut_short
from agent.storage.outbox import Outbox
from agent.storage.prefix_store import PrefixStore
from agent.storage.report_reader import ReportReader
from agent.storage.retention import Retention, purge_bodies, purge_rows
from agent.storage.subject_erasure import SubjectErasure
from agent.storage.task_store import TaskStore
from agent.storage.upgrade import upgrade
from agent.storage.webhook_store import WebhookStore
from agent.types import Action, Decision, Generation, InferenceRequest, Reason

Decide = Callable[[InferenceRequest, Accepted, Generation], Decision]
TRIM_ROWS = 500  # removed in one clean-up: fewer leave little behind


class Storage:
    """Everything that lasts. Built by ``open_storage``; the instance lock is held until ``close``."""

    def __init__(
        self,
        db: Database,
        queue: QueueSettings,
        retention: RetentionSettings,
        files: FileSettings,
        *,
        key: keys.Key,
        lock: InstanceLock,
        now_ms: int,
        uptime: Uptime | None,
    ) -> None:
        changes = Changes()
        self._keep = Retention(retention)
        self._lock = lock
        self._key = key
        self.db = db
        self.key_place = key.place
        self.journal = Journal(db, changes, queue, self._keep)
        self.outbox = Outbox(db, changes, queue, self._keep, Clock(db, queue, self._keep, now_ms, uptime))
        self.egress_log = EgressLog(db)
        self.subjects = SubjectErasure(db, changes, self.outbox)
        self.tasks = TaskStore(db)
        self.report = ReportReader(db)
        self.feedback = FeedbackStore(db)
        self.files = FileStore(db, files)
        self.batches = BatchStore(db)
        self.webhooks = WebhookStore(db)

    def prefix_store(self, most_bytes: int) -> PrefixStore:
        """Return the store of named prefixes of this data directory, under the database's key."""
        return PrefixStore(self.db.path.parent, self._key.material, most_bytes=most_bytes)

    async def recover(self, now_ms: int, decide: Decide) -> int:
        """Settle requests that an earlier life left running. Returns how many.

        ``decide`` turns a request, the route that it was accepted under and its cut-short
        generation (failure crash) into a decision: queued where policy allows, else refused.
        They are never run again, and those in the background not more than MOST_LIVES times.
        """
        await self.journal.begin_life()
        count = 0
        while running := await self.journal.running():
            for request, accepted in running:
                generation = cut_short()
                decision = decide(request, accepted, generation)
                try:
                    await self.journal.settle(request, generation, None, decision, now_ms=now_ms)
                except QueueFull:
                    refused = Decision(action=Action.REFUSED, reason=Reason.QUEUE_FULL, rule_id="recover")
                    await self.journal.settle(request, generation, None, refused, now_ms=now_ms)
                count += 1
        return count

    async def maintain(self, now_ms: int) -> None:
        """Rescue overdue leases, expire rows, remove texts and ended requests whose time has passed, trim the log."""
        await self.outbox.rescue(now_ms)
        await self.outbox.expire(now_ms)
        removed = 0
        while texts := await self.db.write(lambda connection: purge_bodies(connection, now_ms)):
            removed += len(texts)
        settled_before_ms = self._keep.settled_before_ms(now_ms)
        while rows := await self.db.write(lambda connection: purge_rows(connection, settled_before_ms)):
            removed += len(rows)
        await self.files.maintain(now_ms)
        await self.webhooks.maintain(now_ms)
        await self.subjects.maintain(now_ms)
        await self.batches.maintain(now_ms, self.files.settings.keep_s)
        await self.db.checkpoint()
        if removed > TRIM_ROWS:
            trim()

    async def close(self) -> None:
        """Finish, checkpoint, close, and let another instance in. Safe to call twice."""
        await self.db.close()
        self._lock.release()


async def open_storage(
    data_dir: Path,
    queue: QueueSettings,
    retention: RetentionSettings,
    *,
    now_ms: int,
    uptime: Uptime | None = uptime_ms,
    files: FileSettings = FileSettings(),  # noqa: B008 - frozen
) -> Storage:
    """Open or create the storage of ``data_dir`` for this process alone.

    ``uptime`` tells a clock that was set from time that has passed; None: the moments passed in are believed.
    Raises AlreadyRunning, KeyProblem, WrongKey, ForeignDatabase, NewerSchema, SqliteTooOld,
    DiskFull or StorageError, each one line; nothing is damaged then.
    """
    keys.make_private_folder(data_dir)
    lock = InstanceLock(data_dir)
    try:
        key = keys.load_or_create(data_dir)
        path = data_dir / DATABASE_NAME
        if await asyncio.to_thread(_needs_migration, path, key.material):
            await asyncio.to_thread(upgrade, path, key.material)
        ballast = Ballast(data_dir / "ballast", queue.ballast_bytes)
        ballast.hold()
        database = await Database.open(path, key.material, ballast)
    except BaseException:
        lock.release()
        raise
    storage = Storage(database, queue, retention, files, key=key, lock=lock, now_ms=now_ms, uptime=uptime)
    try:
        # One process owns the file, so every lease is of an earlier life.
        await storage.outbox.rescue(now_ms, every_lease=True)
    except BaseException:
        await storage.close()
        raise
    return storage


def _needs_migration(path: Path, key: bytes) -> bool:
    if not path.exists():
        return True
    connection = connect(path, key)
    try:
        return schema_version(connection, path) < SCHEMA_VERSION
    finally:
        connection.close()
