"""One encrypted SQLite connection: how it is opened, checked, and how its errors are told.

The file format is SQLCipher's, with a raw 32-byte key. ``application_id`` says that a
database is Outrider's, ``user_version`` which schema it has.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from sqlcipher3 import dbapi2 as sqlcipher

from agent.errors import (
    DiskFull,
    ForeignDatabase,
    NewerSchema,
    SqliteTooOld,
    StorageCorrupt,
    StorageError,
    WrongKey,
)

APPLICATION_ID = 0x4F757472  # "Outr"
SCHEMA_VERSION = 15  # agent.storage.migrations brings a database up to it
DATABASE_NAME = "outrider.db"
PREFIXES_NAME = "prefixes"  # folder of what models have computed for named prefixes, under the same key
# Older releases can corrupt a WAL database when two connections checkpoint at once.
SQLITE_FLOOR = (3, 51, 3)
SQLITE_ERRORS: type[Exception] = sqlcipher.Error
_CACHE_KIB = 8000  # of decrypted pages: the ceiling of what a growing database takes of the memory

_PLAIN_HEADER = b"SQLite format 3\x00"
_FULL, _CORRUPT, _NOTADB = sqlcipher.SQLITE_FULL, sqlcipher.SQLITE_CORRUPT, sqlcipher.SQLITE_NOTADB
_IOERR, _READONLY, _CANTOPEN = sqlcipher.SQLITE_IOERR, sqlcipher.SQLITE_READONLY, 14
_BUSY = sqlcipher.SQLITE_BUSY


class Cursor(Protocol):
    """What a statement gives back."""

    rowcount: int
    lastrowid: int | None

    def fetchone(self) -> Any: ...
    def fetchall(self) -> list[Any]: ...
    def fetchmany(self, size: int) -> list[Any]: ...
    def __iter__(self) -> Any: ...


class Connection(Protocol):
    """The part of a DB-API connection that storage uses. Rows are read by column name."""

    in_transaction: bool
    row_factory: Any

    def execute(self, sql: str, parameters: Mapping[str, object] = ...) -> Cursor: ...
    def executemany(self, sql: str, parameters: Iterable[Mapping[str, object]]) -> Cursor: ...
    def backup(self, target: Connection, *, pages: int = ...) -> None: ...
    def close(self) -> None: ...


def connect(path: Path, key: bytes, *, create: bool = False) -> Connection:
    """Open ``path`` with a raw key and prove that the key fits.

    The file must exist unless ``create``. Raises WrongKey, ForeignDatabase, SqliteTooOld,
    StorageCorrupt or StorageError. ``application_id`` is not checked here.
    """
    if sqlcipher.sqlite_version_info < SQLITE_FLOOR:
        raise SqliteTooOld(
            f"SQLite {sqlcipher.sqlite_version} can corrupt its write-ahead log; install sqlcipher3 with SQLite >= 3.51.3"
        )
    if create:
        _create_private(path)
    elif not path.exists():
        raise StorageError(f"{path} does not exist; start the daemon once, or restore a backup")
    try:
        raw = sqlcipher.connect(str(path), isolation_level=None)
    except SQLITE_ERRORS as error:
        raise StorageError(f"{path} cannot be opened: {error}; check its permissions") from error
    raw.row_factory = sqlcipher.Row
    connection: Connection = raw
    try:
        connection.execute("PRAGMA cipher_log_level = NONE")  # a wrong key would write noise to stderr
        connection.execute(f"PRAGMA key = \"x'{key.hex()}'\"")
        connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    except SQLITE_ERRORS as error:
        connection.close()
        raise _why_unreadable(path, error) from error
    return connection


def _create_private(path: Path) -> None:
    """Make an empty file that only its owner can read; SQLite gives -wal and -shm the same mode."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise from_os_error(error, path) from error


def _why_unreadable(path: Path, error: Exception) -> StorageError:
    if getattr(error, "sqlite_errorcode", None) != _NOTADB:
        return translate(error, path)
    with path.open("rb") as file:
        header = file.read(len(_PLAIN_HEADER))
    if header == _PLAIN_HEADER:
        return ForeignDatabase(f"{path} is an unencrypted SQLite database, not one of Outrider; move it away")
    return WrongKey(
        f"the key does not open {path} (or the file is damaged); put the right key back, see `outrider key status`"
    )


def tune(connection: Connection) -> None:
    """Set what makes a commit durable and deleted text gone."""
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")  # "queued" is a promise: NORMAL loses it in a power cut
    connection.execute("PRAGMA secure_delete = ON")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA recursive_triggers = OFF")
    connection.execute("PRAGMA temp_store = MEMORY")  # no plain text in temporary files
    connection.execute(f"PRAGMA cache_size = {-_CACHE_KIB}")
    connection.execute(f"PRAGMA journal_size_limit = {16 << 20}")
    connection.execute("PRAGMA busy_timeout = 5000")


def schema_version(connection: Connection, path: Path) -> int:
    """Return ``user_version``; 0 is an empty new file. Raises ForeignDatabase or NewerSchema."""
    application_id = connection.execute("PRAGMA application_id").fetchone()[0]
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    tables = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
    if application_id != APPLICATION_ID and (application_id or version or tables):
        raise ForeignDatabase(f"{path} is a database of another program; move it away or set another data_dir")
    if version > SCHEMA_VERSION:
        raise NewerSchema(
            f"{path} has schema {version}, this release knows {SCHEMA_VERSION}; install the newer release again"
        )
    return version


def is_full(error: BaseException) -> bool:
    """Whether SQLite had no space left."""
    return bool(_primary(error) == _FULL)


def is_io_error(error: BaseException) -> bool:
    """Whether the device failed under SQLite; the connection must not be trusted further."""
    return bool(_primary(error) == _IOERR)


def is_busy(error: BaseException) -> bool:
    """Whether another connection held the lock that was needed."""
    return bool(_primary(error) == _BUSY)


def _primary(error: BaseException) -> int | None:
    code = getattr(error, "sqlite_errorcode", None)
    return None if code is None else int(code) & 0xFF


def translate(error: Exception, path: Path) -> StorageError:
    """Turn an error of SQLite into one that says what to do."""
    match _primary(error):
        case code if code == _FULL:
            return DiskFull(f"no space left for {path}; free some, nothing that was acknowledged is lost")
        case code if code in {_CORRUPT, _NOTADB}:
            return StorageCorrupt(
                f"{path} is damaged ({error}); stop Outrider, then `outrider salvage`, or restore a backup"
            )
        case code if code in {_READONLY, _CANTOPEN}:
            return StorageError(f"no write permission for {path} or its folder ({error}); correct it")
        case code if code == _BUSY:
            return StorageError(f"another process holds {path}; try again when it has ended")
        case code if code == _IOERR:
            return StorageError(f"the device failed under {path} ({error}); check the disk")
        case _:
            return StorageError(f"{path}: {error}")


def from_os_error(error: OSError, path: Path) -> StorageError:
    """Turn an error of the file system into one that says what to do."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return DiskFull(f"no space left for {path}; free some")
    if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
        return StorageError(f"no write permission for {path} ({error.strerror}); correct it or set another data_dir")
    return StorageError(f"{path}: {error.strerror or error}; set another data_dir or correct it")
