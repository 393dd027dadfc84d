"""Copying the database while it is used, and putting a copy back.

A backup is encrypted under the same key as the database. The key is left out, unless a
passphrase is given: then it lies beside the copy in a small database of its own, which
SQLCipher's key derivation locks with that passphrase.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path

import msgspec
from sqlcipher3 import dbapi2 as sqlcipher

from agent.errors import ForeignDatabase, KeyProblem, StorageCorrupt, StorageError, WrongKey
from agent.storage import keys
from agent.storage.connection import (
    APPLICATION_ID,
    DATABASE_NAME,
    SQLITE_ERRORS,
    Connection,
    connect,
    from_os_error,
    schema_version,
    translate,
)

_KEY_SUFFIX = ".key"  # of the wrapped key, beside the copy
_PAGES_AT_ONCE = 256
_MIN_PASSPHRASE = 8


class BackupReport(msgspec.Struct, frozen=True):
    """What was written, and whether it can be opened without this device."""

    path: str
    bytes: int
    key_path: str | None  # None: the key is left out; keep `outrider key recovery` elsewhere


def backup(
    data_dir: Path, dest: Path, *, passphrase: str | None = None, environ: Mapping[str, str] | None = None
) -> BackupReport:
    """Write a consistent copy of the database to ``dest``, also while a daemon uses it.

    With a ``passphrase`` (8 characters at least) the key is wrapped into ``dest`` + ".key".
    Raises StorageError when ``dest`` exists: a backup is never overwritten.
    """
    wrapped = dest.with_name(dest.name + _KEY_SUFFIX) if passphrase is not None else None
    if passphrase is not None and len(passphrase) < _MIN_PASSPHRASE:
        raise KeyProblem(f"the passphrase is too short: {_MIN_PASSPHRASE} characters at least")
    for path in filter(None, (dest, wrapped)):
        if path.exists():
            raise StorageError(f"{path} exists already; choose another name, a backup is never overwritten")
    key = keys.load(data_dir, environ)
    source = connect(data_dir / DATABASE_NAME, key.material)
    try:
        schema_version(source, data_dir / DATABASE_NAME)
        size = _copy(source, dest, key.material)
    finally:
        source.close()
    if wrapped is not None and passphrase is not None:
        _wrap_key(wrapped, key.material, passphrase)
    return BackupReport(str(dest), size, str(wrapped) if wrapped else None)


def restore(
    source: Path, data_dir: Path, *, passphrase: str | None = None, environ: Mapping[str, str] | None = None
) -> Path | None:
    """Put a backup into ``data_dir``. The daemon must be down (hold the instance lock).

    The key is the one of ``data_dir``, or with ``passphrase`` the one wrapped beside the
    backup. A database that is there already is kept: returns where, or None. Raises
    WrongKey, ForeignDatabase, NewerSchema or StorageCorrupt, and changes nothing then.
    """
    if passphrase is None:
        material = keys.load(data_dir, environ).material
    else:
        material = _unwrap_key(source.with_name(source.name + _KEY_SUFFIX), passphrase)
    keys.make_private_folder(data_dir)
    incoming = data_dir / f".incoming-{secrets.token_hex(4)}.db"
    _copy_checked(source, incoming, material)
    if passphrase is not None:
        # Should this end half-way, the next start takes whichever key fits the database.
        keys.write_private(data_dir / keys.NEXT_KEY_NAME, material)
    try:
        kept = _set_aside(data_dir)
        incoming.rename(data_dir / DATABASE_NAME)
        keys.sync_folder(data_dir)
    except OSError as error:
        raise from_os_error(error, data_dir) from error
    if passphrase is not None:
        keys.restore(data_dir, material)
    return kept


def _copy_checked(source: Path, incoming: Path, material: bytes) -> None:
    """Copy a backup and prove that the copy is a whole database of Outrider."""
    copied = connect(source, material)
    try:
        version = schema_version(copied, source)
        if version:
            _copy(copied, incoming, material)
    finally:
        copied.close()
    if not version:
        raise ForeignDatabase(f"{source} is empty, not a backup of Outrider")
    connection = connect(incoming, material)
    try:
        verdict = connection.execute("PRAGMA quick_check").fetchone()[0]
    finally:
        connection.close()
    if verdict != "ok":
        incoming.unlink()
        raise StorageCorrupt(f"the backup is damaged ({verdict}); nothing was changed")


def _copy(source: Connection, dest: Path, key: bytes) -> int:
    """Copy page by page under one key into a new file with no log beside it, durably."""
    partial = dest.with_name(f".{dest.name}.{secrets.token_hex(4)}")
    try:
        target = connect(partial, key, create=True)
        try:
            source.backup(target, pages=_PAGES_AT_ONCE)
            # The copy carries the WAL flag; as a single file it needs no log.
            target.execute("PRAGMA journal_mode = DELETE").fetchall()
        finally:
            target.close()
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.rename(dest)
        keys.sync_folder(dest.parent)
        return dest.stat().st_size
    except SQLITE_ERRORS as error:
        raise translate(error, dest) from error
    except OSError as error:
        raise from_os_error(error, dest) from error
    finally:
        partial.unlink(missing_ok=True)


def _set_aside(data_dir: Path) -> Path | None:
    path = data_dir / DATABASE_NAME
    if not path.exists():
        return None
    kept = data_dir / f"{DATABASE_NAME}.replaced-{secrets.token_hex(4)}"
    for suffix in ("", "-wal", "-shm"):
        part = path.with_name(path.name + suffix)
        if part.exists():
            part.rename(kept.with_name(kept.name + suffix))
    return kept


def _wrap_key(path: Path, material: bytes, passphrase: str) -> None:
    keys.write_private(path, b"")
    connection = sqlcipher.connect(str(path), isolation_level=None)
    try:
        connection.execute(f"PRAGMA key = {_quoted(passphrase)}")
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute("CREATE TABLE wrapped (material BLOB NOT NULL) STRICT")
        connection.execute("INSERT INTO wrapped VALUES (?)", (material,))
    except SQLITE_ERRORS as error:
        raise translate(error, path) from error
    finally:
        connection.close()


def _unwrap_key(path: Path, passphrase: str) -> bytes:
    if not path.exists():
        raise KeyProblem(f"{path} does not exist: this backup was made without its key")
    connection = sqlcipher.connect(str(path), isolation_level=None)
    try:
        connection.execute("PRAGMA cipher_log_level = NONE")
        connection.execute(f"PRAGMA key = {_quoted(passphrase)}")
        material: bytes = connection.execute("SELECT material FROM wrapped").fetchone()[0]
    except SQLITE_ERRORS as error:
        raise WrongKey(f"the passphrase does not open {path}") from error
    finally:
        connection.close()
    return material


def _quoted(passphrase: str) -> str:
    if "\x00" in passphrase:
        raise KeyProblem("a passphrase cannot hold a NUL character")
    return "'" + passphrase.replace("'", "''") + "'"
