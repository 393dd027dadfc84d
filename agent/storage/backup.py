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
    SCHEMA_VERSION,
    SQLITE_ERRORS,
    Connection,
    connect,
    from_os_error,
    schema_version,
    translate,
)
from agent.storage.reconcile import Reconciled, reconcile
from agent.storage.upgrade import copy_aside, upgrade

_KEY_SUFFIX = ".key"  # of the wrapped key, beside the copy
_PAGES_AT_ONCE = 256
_MIN_PASSPHRASE = 8


class BackupReport(msgspec.Struct, frozen=True):
    """What was written, and whether it can be opened without this device."""

    path: str
    bytes: int
    key_path: str | None  # None: the key is left out; keep `outrider key recovery` elsewhere


class RestoreReport(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the data directory."""

    kept: Path | None  # the database that was there
    kept_key: Path | None  # its key, when the backup brought another one
    reconciled: Reconciled


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
    source: Path,
    data_dir: Path,
    *,
    now_ms: int,
    passphrase: str | None = None,
    environ: Mapping[str, str] | None = None,
) -> RestoreReport:
    """Put a backup into ``data_dir``. The daemon must be down (hold the instance lock).

    The key is the one of ``data_dir``, or with ``passphrase`` the one wrapped beside the
    backup. What was open in the backup waits for a person. A database that is there already
    is kept, and what it tells of bytes that left is carried over. Raises KeyProblem,
    WrongKey, ForeignDatabase, NewerSchema or StorageCorrupt, and changes nothing then.
    """
    material = _key_for(source, data_dir, passphrase, environ)
    keys.make_private_folder(data_dir)
    incoming = data_dir / f".incoming-{secrets.token_hex(4)}.db"
    try:
        _copy_checked(source, incoming, material)
        present, problem = _present(data_dir, environ)
        reconciled = _reconciled(incoming, material, present, now_ms)
        if problem is not None:
            reconciled = msgspec.structs.replace(reconciled, log_problem=problem)
        if passphrase is not None:
            # Should this end half-way, the next start takes whichever key fits the database.
            keys.write_private(data_dir / keys.NEXT_KEY_NAME, material)
        kept = set_aside(data_dir, "replaced")
        incoming.rename(data_dir / DATABASE_NAME)
        keys.sync_folder(data_dir)
    except OSError as error:
        raise from_os_error(error, data_dir) from error
    finally:
        incoming.unlink(missing_ok=True)
    kept_key = None
    if passphrase is not None:
        kept_key = _keep_key(data_dir, kept, material)
        keys.restore(data_dir, material)
    return RestoreReport(kept=kept, kept_key=kept_key, reconciled=reconciled)


def _key_for(source: Path, data_dir: Path, passphrase: str | None, environ: Mapping[str, str] | None) -> bytes:
    """Return the key that opens ``source``, or say where it can come from."""
    if passphrase is not None:
        return _unwrap_key(source.with_name(source.name + _KEY_SUFFIX), passphrase)
    if not (data_dir / keys.PLACE_NAME).exists():
        raise KeyProblem(
            f"{data_dir} has no key to open {source} with: use --with-key if the backup was made so, "
            "or put its key back first with `outrider key recovery --restore`"
        )
    material = keys.load(data_dir, environ).material
    try:
        connect(source, material).close()
    except WrongKey as error:
        raise WrongKey(
            f"the key of {data_dir} does not open {source} (or the file is damaged): use --with-key if the backup was "
            f"made so; else move {DATABASE_NAME} and the key away, then `outrider key recovery --restore` and this again"
        ) from error
    return material


def _present(data_dir: Path, environ: Mapping[str, str] | None) -> tuple[Connection | None, str | None]:
    """Open the database that is to be replaced, or say why its log cannot be read."""
    path = data_dir / DATABASE_NAME
    if not path.exists():
        return None, None
    try:
        connection = connect(path, keys.load(data_dir, environ).material)
    except StorageError as error:
        return None, str(error)
    try:
        version = schema_version(connection, path)
    except (StorageError, SQLITE_ERRORS) as error:
        connection.close()
        return None, str(error)
    if version != SCHEMA_VERSION:
        connection.close()
        return None, f"{path} has schema {version}, not {SCHEMA_VERSION}"
    return connection, None


def _reconciled(incoming: Path, material: bytes, present: Connection | None, now_ms: int) -> Reconciled:
    try:
        connection = connect(incoming, material)
        try:
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute("PRAGMA secure_delete = ON")
            return reconcile(connection, present, now_ms=now_ms)
        except SQLITE_ERRORS as error:
            raise translate(error, incoming) from error
        finally:
            connection.close()
    finally:
        if present is not None:
            present.close()


def _keep_key(data_dir: Path, kept: Path | None, material: bytes) -> Path | None:
    """Keep the key that is about to be replaced beside the database that it opens."""
    current = data_dir / keys.KEY_NAME
    if kept is None or not current.exists() or current.read_bytes() == material:
        return None
    aside = kept.with_name(kept.name + ".raw-key")
    keys.write_private(aside, current.read_bytes())
    return aside


def _copy_checked(source: Path, incoming: Path, material: bytes) -> None:
    """Copy a backup, bring the copy to this release's schema and prove that it is a whole database of Outrider."""
    copied = connect(source, material)
    try:
        version = schema_version(copied, source)
        if version:
            _copy(copied, incoming, material)
    finally:
        copied.close()
    if not version:
        raise ForeignDatabase(f"{source} is empty, not a backup of Outrider")
    if version < SCHEMA_VERSION:
        upgrade(incoming, material)
        copy_aside(incoming, version).unlink()  # of the copy: the backup itself is not touched
    connection = connect(incoming, material)
    try:
        verdict = connection.execute("PRAGMA quick_check").fetchone()[0]
    finally:
        connection.close()
    if verdict != "ok":
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
        sync_file(partial)
        partial.rename(dest)
        keys.sync_folder(dest.parent)
        return dest.stat().st_size
    except SQLITE_ERRORS as error:
        raise translate(error, dest) from error
    except OSError as error:
        raise from_os_error(error, dest) from error
    finally:
        partial.unlink(missing_ok=True)


def sync_file(path: Path) -> None:
    """Wait until the file is on disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def set_aside(data_dir: Path, why: str) -> Path | None:
    """Rename the database, with its log, to a name that says ``why``. Returns that, or None where there is none."""
    path = data_dir / DATABASE_NAME
    if not path.exists():
        return None
    kept = data_dir / f"{DATABASE_NAME}.{why}-{secrets.token_hex(4)}"
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
