"""The schema, as numbered functions that are only ever added to.

Runs in a short child process (``<executable> migrate DATABASE``, the key on standard
input) before the storage thread opens the file: sqlite-utils brings imports that the
daemon must not carry. Each step and its version number commit together. A database with
contents is copied beside itself before the first step.
"""

from __future__ import annotations

import hashlib
import hmac
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import sqlcipher3
import sqlcipher3.dbapi2

# sqlite-utils prefers pysqlite3 and catches the exception classes of whichever module it found.
sys.modules.setdefault("pysqlite3", sqlcipher3)
sys.modules.setdefault("pysqlite3.dbapi2", sqlcipher3.dbapi2)

import sqlite_utils  # noqa: E402 - the alias above must come first

from agent.errors import OutriderError, StorageError  # noqa: E402
from agent.storage import (  # noqa: E402
    batch_schema,
    egress_schema,
    feedback_schema,
    report_schema,
    subjects,
    task_schema,
    webhook_store,
)
from agent.storage.connection import (  # noqa: E402
    APPLICATION_ID,
    SCHEMA_VERSION,
    SQLITE_ERRORS,
    Connection,
    connect,
    schema_version,
    translate,
    tune,
)
from agent.storage.first_schema import (  # noqa: E402
    ATTEMPTS,
    COUNTS,
    EGRESS_LOG,
    ESCALATIONS,
    INDEXES,
    REQUESTS,
    RESULTS,
    SENT_AT_ONCE_1,
    SENT_AT_ONCE_2,
    TRIGGERS,
)
from agent.storage.upgrade import copy_aside  # noqa: E402

MIGRATIONS: list[Callable[[sqlite_utils.Database, bytes], None]] = []
_migration = MIGRATIONS.append


def main(argv: Sequence[str]) -> int:
    """Bring the database at ``argv[0]`` to this release's schema. One line on stderr, ``code: message``, says what failed."""
    path = Path(argv[0])
    key = sys.stdin.buffer.read()
    try:
        migrate(path, key)
    except OutriderError as error:
        sys.stderr.write(f"{error.code}: {error}\n")
        return error.exit_code
    return 0


def migrate(path: Path, key: bytes) -> list[int]:
    """Apply what is missing and return the versions applied. The caller holds the instance lock."""
    connection = connect(path, key, create=True)
    try:
        tune(connection)
        version = schema_version(connection, path)
        if 0 < version < SCHEMA_VERSION:
            _copy_aside(connection, path, key, version)
        applied = []
        for number, step in enumerate(MIGRATIONS[version:], start=version + 1):
            _apply(connection, step, number, key)
            applied.append(number)
    except SQLITE_ERRORS as error:
        raise translate(error, path) from error
    finally:
        connection.close()
    return applied


def migrate_to(path: Path, key: bytes, version: int) -> None:
    """Make an empty database of an earlier (or this) schema."""
    connection = connect(path, key, create=True)
    try:
        for number, step in enumerate(MIGRATIONS[:version], start=1):
            _apply(connection, step, number, key)
    finally:
        connection.close()


def _apply(
    connection: Connection, step: Callable[[sqlite_utils.Database, bytes], None], number: int, key: bytes
) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        step(sqlite_utils.Database(connection), key)  # type: ignore[arg-type]  # a sqlcipher3 connection
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {number}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _copy_aside(connection: Connection, path: Path, key: bytes, version: int) -> None:
    """Keep the database as it was, under the same key, so that a downgrade is possible."""
    aside = copy_aside(path, version)
    aside.unlink(missing_ok=True)
    copy = connect(aside, key, create=True)
    try:
        connection.backup(copy)
    finally:
        copy.close()


@_migration
def m001_main_road(db: sqlite_utils.Database, key: bytes) -> None:
    """Requests, their results, the outbox, its attempts, and the log of what left."""
    _create(db, "requests", REQUESTS)
    _create(db, "results", RESULTS)
    _create(db, "escalations", ESCALATIONS)
    _create(db, "attempts", ATTEMPTS)
    _create(db, "egress_log", EGRESS_LOG)
    for table in ("request_counts", "escalation_counts"):
        _create(db, table, COUNTS[table])
    _create(db, "secrets", "name TEXT PRIMARY KEY, value BLOB NOT NULL")
    for index in INDEXES:
        db.execute(index)
    for trigger in TRIGGERS:
        db.execute(trigger)
    # Derived once and kept: `key rotate` must not make the older part of the chain unverifiable.
    chain_key = hmac.digest(key, b"outrider egress log", hashlib.sha256)
    db.table("secrets").insert({"name": "egress_chain", "value": chain_key})


@_migration
def m002_redacted_rows(db: sqlite_utils.Database, key: bytes) -> None:
    """What was accepted under ``redact`` may go without a person, as under ``allow``.

    Only a CHECK becomes wider: the rows stay as they are, so SQLite's own way for that is taken
    (lang_altertable.html, "the procedure for changes that do not affect the on-disk content").
    """
    version = db.execute("PRAGMA schema_version").fetchone()[0]
    db.execute("PRAGMA writable_schema = ON")
    try:
        changed = db.execute(
            "UPDATE sqlite_schema SET sql = replace(sql, ?, ?) WHERE type = 'table' AND name = 'escalations'"
            " AND instr(sql, ?) > 0",
            (SENT_AT_ONCE_1, SENT_AT_ONCE_2, SENT_AT_ONCE_1),
        )
        if changed.rowcount != 1:
            raise StorageError("the table of escalations is not the one that schema 1 made; restore a backup")
        db.execute(f"PRAGMA schema_version = {version + 1}")
    finally:
        db.execute("PRAGMA writable_schema = OFF")


@_migration
def m003_tasks(db: sqlite_utils.Database, key: bytes) -> None:
    """What was learned of tasks: heads, calibrations (the last one of a task holds), mean label scores."""
    _create(db, "task_heads", task_schema.TASK_HEADS)
    _create(db, "calibrations", task_schema.CALIBRATIONS)
    _create(db, "label_means", task_schema.LABEL_MEANS)
    db.execute("CREATE INDEX calibrations_by_task ON calibrations (task, number)")


@_migration
def m004_feedback(db: sqlite_utils.Database, key: bytes) -> None:
    """What people and targets said of answers, what watches each task's promise, and rows that only check an answer."""
    _create(db, "feedback", feedback_schema.FEEDBACK)
    _create(db, "monitors", feedback_schema.MONITORS)
    for statement in feedback_schema.STATEMENTS:
        db.execute(statement)


@_migration
def m005_report(db: sqlite_utils.Database, key: bytes) -> None:
    """What a report adds up: figures that outlive the texts, money, and how often each label was the answer."""
    for statement in report_schema.COLUMNS:
        db.execute(statement)
    _create(db, "costs", report_schema.COSTS)
    _create(db, "label_counts", report_schema.LABEL_COUNTS)
    for statement in report_schema.INDEXES:
        db.execute(statement)


@_migration
def m006_task_examples(db: sqlite_utils.Database, key: bytes) -> None:
    """The examples that taught and calibrated a task, so that both can be done again for another model."""
    _create(db, "task_examples", task_schema.TASK_EXAMPLES)


@_migration
def m007_background(db: sqlite_utils.Database, key: bytes) -> None:
    """``lives``: in how many lives of the daemon a request in the background was begun; NULL: somebody waits for it."""
    db.execute("ALTER TABLE requests ADD COLUMN lives INTEGER")


@_migration
def m008_budgets(db: sqlite_utils.Database, key: bytes) -> None:
    """What rows are expected to take, what is reserved for each send, and what each day has cost."""
    for statement in egress_schema.STATEMENTS:
        db.execute(statement)
    _create(db, "spent", egress_schema.SPENT)


@_migration
def m009_egress_log(db: sqlite_utils.Database, key: bytes) -> None:
    """Each line of the log says which policy let it leave, and what was replaced; a person may edit what leaves."""
    for statement in egress_schema.LOG_STATEMENTS:
        db.execute(statement)


@_migration
def m010_appraisers(db: sqlite_utils.Database, key: bytes) -> None:
    """What was learned of tasks whose answers are written."""
    _create(db, "task_appraisers", task_schema.TASK_HEADS)


@_migration
def m011_next_targets(db: sqlite_utils.Database, key: bytes) -> None:
    """A rule may name several targets in order."""
    for statement in egress_schema.ROUTES:
        db.execute(statement)


@_migration
def m012_batches(db: sqlite_utils.Database, key: bytes) -> None:
    """Uploaded files, batches and their lines."""
    _create(db, "files", batch_schema.FILES)
    _create(db, "file_chunks", batch_schema.FILE_CHUNKS)
    _create(db, "batches", batch_schema.BATCHES)
    _create(db, "batch_lines", batch_schema.LINES)
    for statement in batch_schema.INDEXES:
        db.execute(statement)


@_migration
def m013_delivery(db: sqlite_utils.Database, key: bytes) -> None:
    """Events for a webhook, and the order in which rows go for new ones."""
    _create(db, "webhook_wanted", webhook_store.WANTED)
    _create(db, "webhook_events", webhook_store.EVENTS)
    waiting = "WHERE state IN ('awaiting_approval', 'pending')"
    for statement in (
        *webhook_store.STATEMENTS,
        f"CREATE INDEX escalations_waiting ON escalations (id) {waiting}",
        f"CREATE INDEX escalations_lowest ON escalations (priority, id) {waiting}",
    ):
        db.execute(statement)


@_migration
def m014_subjects(db: sqlite_utils.Database, key: bytes) -> None:
    """Whose rows are, so that what is kept of a person can be erased without a search."""
    _create(db, "subject_tags", subjects.TAGS)
    _create(db, "erasures", subjects.ERASURES)
    for statement in subjects.STATEMENTS:
        db.execute(statement)
    secret = hmac.digest(key, b"outrider subject tags", hashlib.sha256)
    db.table("secrets").insert({"name": subjects.SECRET, "value": secret})
    subjects.tag_older(db.conn)  # type: ignore[arg-type]  # a sqlcipher3 connection


@_migration
def m015_broken_promises(db: sqlite_utils.Database, key: bytes) -> None:
    """Since when it is known that a calibration does not keep its promise: it never holds again."""
    db.execute("ALTER TABLE calibrations ADD COLUMN broken_at_ms INTEGER")


def _create(db: sqlite_utils.Database, table: str, columns: str) -> None:
    # Not Database.create(): it has no words for CHECK constraints over several columns.
    db.execute(f"CREATE TABLE {table} ({columns}) STRICT")
