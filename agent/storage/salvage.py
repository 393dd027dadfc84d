"""Taking what can still be read out of a damaged database, row by row, into a new one.

Every page of the file carries an HMAC, so a page is read as it was written or not at all: what is salvaged is right.
Rows that are gone are counted. Nothing of the damaged file is changed; it is kept beside the new one.
"""

# ruff: noqa: S608 - the names of tables and columns are those of our own schema
from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from agent.errors import StorageCorrupt, StorageError, WrongKey
from agent.storage import egress_log, keys, subjects
from agent.storage.backup import set_aside, sync_file
from agent.storage.connection import DATABASE_NAME, SQLITE_ERRORS, Connection, connect, schema_version, translate
from agent.storage.migrations import migrate_to

_COUNTERS = ("request_counts", "escalation_counts")  # made anew from what was salvaged
_AT_ONCE = 64  # rows read by one statement; each may hold some megabytes
_MOST_FAILURES = 20_000  # seeks that fail before the rest of a table is given up: a minute or so


class TableSalvage(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one table."""

    kept: int  # rows in the new database
    lost: int | None  # rows that are known to be gone; None: how many there were cannot be read either


class SalvageReport(msgspec.Struct, frozen=True, kw_only=True):
    """What was salvaged, and where the damaged database is."""

    kept: Path
    tables: Mapping[str, TableSalvage]
    held: int = 0  # requests whose row in the queue is lost: they wait for a person
    unanswered: int = 0  # requests whose late answer is lost, though they had one
    log_bad_row: int | None = None  # first line of the log of what left that is gone or does not fit

    @property
    def lost(self) -> int:
        """Rows that are known to be gone."""
        return sum(table.lost or 0 for table in self.tables.values())


def salvage(data_dir: Path, *, now_ms: int, environ: Mapping[str, str] | None = None) -> SalvageReport:
    """Replace the damaged database of ``data_dir`` by what can be read of it. The caller holds the instance lock.

    Raises StorageCorrupt when its first pages, which list the tables, cannot be read, KeyProblem, ForeignDatabase or NewerSchema, and
    changes nothing then.
    """
    path = data_dir / DATABASE_NAME
    key = keys.load(data_dir, environ).material

    def opened() -> Connection:
        return connect(path, key)

    incoming = data_dir / f".salvaged-{secrets.token_hex(4)}.db"
    try:
        old = opened()
    except (WrongKey, StorageCorrupt) as error:
        what = "its first page is damaged, or the key is another one"
        if isinstance(error, StorageCorrupt):
            what = "the list of its tables is damaged"
        raise StorageCorrupt(
            f"nothing can be read of {path}: {what}; restore a backup, or move the file away and start anew"
        ) from error
    try:
        version = schema_version(old, path)
    except SQLITE_ERRORS as error:
        raise translate(error, path) from error
    finally:
        old.close()
    try:
        migrate_to(incoming, key, version)
        new = connect(incoming, key)
        try:
            report = _fill(new, opened, now_ms)
            new.execute("PRAGMA journal_mode = DELETE").fetchall()  # a single file until the daemon opens it
        finally:
            new.close()
        sync_file(incoming)
        kept = set_aside(data_dir, "damaged")
        assert kept is not None
        incoming.rename(path)
        keys.sync_folder(data_dir)
    except SQLITE_ERRORS as error:
        raise translate(error, incoming) from error
    finally:
        for suffix in ("", "-wal", "-shm"):
            incoming.with_name(incoming.name + suffix).unlink(missing_ok=True)
    return msgspec.structs.replace(report, kept=kept)


def _fill(new: Connection, opened: Callable[[], Connection], now_ms: int) -> SalvageReport:
    new.execute("PRAGMA foreign_keys = OFF")
    new.execute("PRAGMA synchronous = OFF")  # the whole file is synced before it takes its place
    new.execute("BEGIN IMMEDIATE")
    triggers = [row["sql"] for row in _schema(new, "trigger")]
    for row in _schema(new, "trigger"):
        new.execute(f'DROP TRIGGER "{row["name"]}"')
    salvaged = {
        row["name"]: _copy(new, _Damaged(opened, row["name"]))
        for row in _schema(new, "table")
        if row["name"] not in _COUNTERS
    }
    _keep_row_counters(new, opened)
    _drop_orphans(new, salvaged)
    held, unanswered = _mend(new, now_ms)
    _count(new)
    if new.execute("SELECT 1 FROM sqlite_schema WHERE name = 'subject_tags'").fetchone():  # not in an older schema
        subjects.tag_older(new)
    for trigger in triggers:
        new.execute(trigger)
    new.execute("COMMIT")
    return SalvageReport(
        kept=Path(),
        tables={
            name: TableSalvage(kept=kept, lost=None if rows is None else max(0, rows - kept))
            for name, (kept, rows) in sorted(salvaged.items())
        },
        held=held,
        unanswered=unanswered,
        log_bad_row=egress_log.first_bad_row(new),
    )


def _schema(connection: Connection, kind: str) -> list[Any]:
    return connection.execute(
        "SELECT name, sql FROM sqlite_schema WHERE type = :kind AND name NOT LIKE 'sqlite_%'", {"kind": kind}
    ).fetchall()


class _Damaged:
    """One table of the damaged database. After a page that cannot be read its connection is of no more use."""

    def __init__(self, opened: Callable[[], Connection], table: str) -> None:
        self.table = table
        self.failures = 0
        self._opened = opened
        self._connection: Connection | None = None

    def ask(self, sql: str, **parameters: object) -> list[Any] | None:
        """Return the rows, or None where a page on the way to them is damaged."""
        try:
            if self._connection is None:
                self._connection = self._opened()
            return self._connection.execute(sql, parameters).fetchall()
        except (SQLITE_ERRORS, StorageError):
            self.failures += 1
            self.close()
            return None

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def rows(self) -> int | None:
        """Return how many rows there were, from an index or a counter, whichever can be read."""
        counter = {"requests": "request_counts", "escalations": "escalation_counts"}.get(self.table)
        for sql in (
            *([f"SELECT sum(n_rows) AS n FROM {counter}"] if counter else []),
            f'SELECT count(*) AS n FROM "{self.table}"',
        ):
            if found := self.ask(sql):
                return int(found[0]["n"] or 0)
        return None

    def readable(self) -> Iterator[list[Any]]:
        """Yield every row that can be read, in groups."""
        last = self.ask(f'SELECT max(rowid) AS n FROM "{self.table}"')
        end = (last[0]["n"] or 0) + 1 if last else self._end_by_index()
        low = 0
        while low < end and self.failures < _MOST_FAILURES:
            found = self.ask(
                f'SELECT rowid AS "_rowid", * FROM "{self.table}" WHERE rowid >= :low AND rowid < :end'
                " ORDER BY rowid LIMIT :limit",
                low=low, end=end, limit=_AT_ONCE,
            )  # fmt: skip
            if found is not None:
                if found:
                    yield found
                if len(found) < _AT_ONCE:
                    return
                low = found[-1]["_rowid"] + 1
            else:
                high = min(end, low + _AT_ONCE)
                yield from self._between(low, high)
                low = high

    def _between(self, low: int, high: int) -> Iterator[list[Any]]:
        """Halve until each half can be read, or is one row."""
        if self.failures >= _MOST_FAILURES:
            return
        found = self.ask(
            f'SELECT rowid AS "_rowid", * FROM "{self.table}" WHERE rowid >= :low AND rowid < :high', low=low, high=high
        )
        if found:
            yield found
        if found is None and high - low > 1:
            middle = (low + high) // 2
            yield from self._between(low, middle)
            yield from self._between(middle, high)

    def _end_by_index(self) -> int:
        """Return a bound of the row ids where the last page of the table is damaged."""
        indexes = self.ask("SELECT name FROM sqlite_schema WHERE type = 'index' AND tbl_name = :name", name=self.table)
        for index in indexes or ():
            found = self.ask(f'SELECT max(rowid) AS n FROM "{self.table}" INDEXED BY "{index["name"]}"')
            if found and found[0]["n"] is not None:
                return int(found[0]["n"]) + 1
        # Beyond the last key a seek ends at the last page: above the highest that works there may be as much again.
        powers = [1 << bit for bit in range(48)]
        works = [at for at in powers if self.ask(f'SELECT 1 FROM "{self.table}" WHERE rowid = :at', at=at) is not None]
        return 2 * max(works, default=0) + _AT_ONCE


def _copy(new: Connection, damaged: _Damaged) -> tuple[int, int | None]:
    """Copy what can be read of one table; return how many rows that is, and how many there were."""
    kept = 0
    columns = [row["name"] for row in new.execute(f'PRAGMA table_info("{damaged.table}")').fetchall()]
    insert = (
        f'INSERT OR REPLACE INTO "{damaged.table}" ({", ".join(columns)})'
        f" VALUES ({', '.join(f':{name}' for name in columns)})"
    )
    for found in damaged.readable():
        new.executemany(insert, [{name: row[name] for name in columns} for row in found])
        kept += len(found)
    rows = damaged.rows()
    damaged.close()
    return kept, rows


def _keep_row_counters(new: Connection, opened: Callable[[], Connection]) -> None:
    """Keep the highest number that each table gave out: a log whose end is lost must show that."""
    sequence = _Damaged(opened, "sqlite_sequence")
    for row in sequence.ask("SELECT name, seq FROM sqlite_sequence") or ():
        known = {"name": row["name"], "seq": row["seq"]}
        if not new.execute("UPDATE sqlite_sequence SET seq = max(seq, :seq) WHERE name = :name", known).rowcount:
            new.execute("INSERT INTO sqlite_sequence (name, seq) VALUES (:name, :seq)", known)
    sequence.close()


def _drop_orphans(new: Connection, salvaged: dict[str, tuple[int, int | None]]) -> None:
    """Remove rows whose request, file or batch is gone: nothing can be done with them."""
    while orphans := new.execute("PRAGMA foreign_key_check").fetchall():
        for table, rowid in {(orphan["table"], orphan["rowid"]) for orphan in orphans}:
            new.execute(f'DELETE FROM "{table}" WHERE rowid = :rowid', {"rowid": rowid})
            kept, rows = salvaged[table]
            salvaged[table] = (kept - 1, rows)


# Its row said where it may go, and how far it was: without it a person decides.
_HOLD = """
INSERT INTO escalations (id, request_id, state, reason, egress, handoff, allowed, max_attempts, turn_ms, created_at_ms,
    available_at_ms, expires_at_ms, bytes)
SELECT lower(hex(randomblob(16))), id, 'awaiting_approval', 'restored', 'approve', 'fresh', 0, 12, received_at_ms,
    received_at_ms, :now_ms, :now_ms + 7 * 86400000, length(body)
FROM requests WHERE state = 'queued' AND id NOT IN (SELECT request_id FROM escalations)
"""
_UNANSWERED = """
SELECT count(*) AS n FROM requests WHERE state = 'resolved'
    AND NOT EXISTS (SELECT 1 FROM results WHERE request_id = requests.id AND source = 'target')
"""


def _mend(new: Connection, now_ms: int) -> tuple[int, int]:
    """Give requests that lost their row a new one that waits for a person. Returns them, and answers that are lost."""
    held = new.execute(_HOLD, {"now_ms": now_ms}).rowcount
    return held, int(new.execute(_UNANSWERED).fetchone()["n"])


def _count(new: Connection) -> None:
    for statement in (
        "DELETE FROM request_counts",
        "DELETE FROM escalation_counts",
        "INSERT INTO request_counts SELECT state, count(*) FROM requests GROUP BY state",
        "INSERT INTO escalation_counts SELECT state, ifnull(target, ''), count(*), sum(bytes) FROM escalations GROUP BY 1, 2",
    ):
        new.execute(statement)
