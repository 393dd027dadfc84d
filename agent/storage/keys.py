"""The database key: 32 random bytes, where they lie, and what that place protects against.

The place is chosen once, recorded in ``key-place.json`` and never guessed afterwards: a
missing key is an error, never a reason to make a new one beside an existing database.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import secrets
import stat
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path

import msgspec

from agent.errors import KeyProblem, StorageError, WrongKey
from agent.storage.connection import (
    DATABASE_NAME,
    PREFIXES_NAME,
    SQLITE_ERRORS,
    Connection,
    connect,
    from_os_error,
    is_busy,
    translate,
    tune,
)
from agent.storage.erasure import erase_all

KEY_BYTES = 32
KEY_NAME = "key"
NEXT_KEY_NAME = "key.next"  # exists only while a rotation is under way
PLACE_NAME = "key-place.json"
CREDENTIAL_NAME = "outrider-key"
_CHECKSUM_BYTES = 3  # with 32 key bytes: 35 bytes, 56 characters without padding
_GROUP = 7


class KeyPlace(StrEnum):
    """Where the key lies."""

    FILE = "file"  # data_dir/key, mode 0600
    CREDENTIALS = "credentials"  # $CREDENTIALS_DIRECTORY/outrider-key, given by the service manager


_PROTECTS = {
    KeyPlace.FILE: "other users of this machine, and a copy of the database without the key file",
    KeyPlace.CREDENTIALS: "other users of this machine, and a copy of the whole data directory",
}
_DOES_NOT_PROTECT = {
    KeyPlace.FILE: "a stolen disk or a backup of the whole folder: the key lies beside the data",
    KeyPlace.CREDENTIALS: "whoever may read the service manager's credentials, and root",
}


class KeyStatus(msgspec.Struct, frozen=True):
    """What ``key status`` tells. The key itself is never part of it."""

    place: KeyPlace
    path: str
    fingerprint: str  # first 8 bytes of SHA-256 of the key, hexadecimal
    protects_against: str
    does_not_protect_against: str


class Key(msgspec.Struct, frozen=True):
    """A key and its place. ``repr`` does not show the key."""

    material: bytes
    place: KeyPlace
    path: Path

    def __repr__(self) -> str:
        return f"Key(place={self.place}, path={self.path})"


def load_or_create(data_dir: Path, environ: Mapping[str, str] | None = None) -> Key:
    """Return the key of ``data_dir``; make one only when there is no database yet.

    The caller holds the instance lock: a rotation that was cut short is finished here.
    Raises KeyProblem when the key is missing, malformed, or readable by others.
    """
    environ = os.environ if environ is None else environ
    if (data_dir / PLACE_NAME).exists():
        if recorded_place(data_dir) is KeyPlace.FILE and (data_dir / NEXT_KEY_NAME).exists():
            _finish_rotation(data_dir)
        return load(data_dir, environ)
    if (data_dir / DATABASE_NAME).exists():
        raise KeyProblem(
            f"{data_dir / PLACE_NAME} is missing beside an existing database; restore it, or use `outrider key recovery --restore`"
        )
    credential = _credential(environ)
    if credential is not None and credential.exists():
        place, path = KeyPlace.CREDENTIALS, credential
    else:
        place, path = KeyPlace.FILE, data_dir / KEY_NAME
        if not path.exists():  # it does when an earlier first start ended here
            write_private(path, secrets.token_bytes(KEY_BYTES))
    material = _read(path, place)
    _record_place(data_dir, place)
    return Key(material, place, path)


def load(data_dir: Path, environ: Mapping[str, str] | None = None) -> Key:
    """Return the key from its recorded place. Changes nothing, and needs no lock.

    While a rotation is under way, or after one that was cut short, it is whichever of the
    two keys opens the database. Raises KeyProblem or WrongKey.
    """
    environ = os.environ if environ is None else environ
    place = recorded_place(data_dir)
    if place is KeyPlace.FILE:
        path = data_dir / KEY_NAME
        if (data_dir / NEXT_KEY_NAME).exists() and (data_dir / DATABASE_NAME).exists():
            return _whichever_fits(data_dir)
    else:
        credential = _credential(environ)
        if credential is None:
            raise KeyProblem(
                "the key comes from $CREDENTIALS_DIRECTORY, which is not set; start the service that sets it"
            )
        path = credential
    return Key(_read(path, place), place, path)


def status(data_dir: Path, environ: Mapping[str, str] | None = None) -> KeyStatus:
    """Say where the key is and what that place protects against. Raises KeyProblem."""
    key = load(data_dir, environ)
    return KeyStatus(
        key.place,
        str(key.path),
        hashlib.sha256(key.material).hexdigest()[:16],
        _PROTECTS[key.place],
        _DOES_NOT_PROTECT[key.place],
    )


def rotate(data_dir: Path, environ: Mapping[str, str] | None = None) -> Key:
    """Re-encrypt the database under a new key. The daemon must be down (hold the instance lock).

    A crash at any point leaves a key file that opens the database: the new key is on disk
    before the database changes, and is thrown away only when the old one is proved.
    Raises StorageError, with the old key still in force, when the database is being read.
    """
    old = load_or_create(data_dir, environ)
    if old.place is not KeyPlace.FILE:
        raise KeyProblem(
            "the key belongs to the service manager; provide a new credential there, after `outrider backup`"
        )
    fresh = secrets.token_bytes(KEY_BYTES)
    path = data_dir / DATABASE_NAME
    connection = connect(path, old.material)
    try:
        _own(connection, path)
        write_private(data_dir / NEXT_KEY_NAME, fresh)
        # Rewriting every page through a rollback journal is one atomic step, whatever the size.
        connection.execute(f"PRAGMA rekey = \"x'{fresh.hex()}'\"").fetchall()
    except SQLITE_ERRORS as error:
        raise translate(error, path) from error
    finally:
        connection.close()
    if not (data_dir / NEXT_KEY_NAME).exists():  # whatever took it away: only this process knows the key
        write_private(data_dir / NEXT_KEY_NAME, fresh)
    _finish_rotation(data_dir)
    # Under the old key, and cheaper to compute than to encrypt anew.
    erase_all(data_dir / PREFIXES_NAME)
    key = load(data_dir, environ)
    if key.material != fresh:  # SQLCipher says "ok" to a rekey that could not be written
        raise StorageError(f"{path} could not be written again; its key is the old one, nothing is lost")
    return key


def _own(connection: Connection, path: Path) -> None:
    """Leave WAL and lock the file until the connection closes. Raises StorageError when others read it."""
    tune(connection)
    try:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        mode = connection.execute("PRAGMA journal_mode = DELETE").fetchone()[0]
        connection.execute("PRAGMA locking_mode = EXCLUSIVE").fetchall()
        connection.execute("BEGIN EXCLUSIVE")
        connection.execute("COMMIT")
    except SQLITE_ERRORS as error:
        if not is_busy(error):
            raise
        mode = "busy"
    if mode != "delete":
        raise StorageError(f"another process reads {path} (a backup, perhaps); try again when it has ended")


def recovery_code(key: Key) -> str:
    """Return the key in a form to print and keep: base32 in groups, with a checksum."""
    text = base64.b32encode(key.material + _checksum(key.material)).decode("ascii")
    return "-".join(text[start : start + _GROUP] for start in range(0, len(text), _GROUP))


def from_recovery_code(code: str) -> bytes:
    """Return the key of a printed code. Raises KeyProblem when it was mistyped."""
    compact = "".join(code.split()).replace("-", "").upper().replace("0", "O").replace("1", "I")
    try:
        raw = base64.b32decode(compact)
    except ValueError as error:
        raise KeyProblem("that is not a recovery code: it has 8 groups of 7 letters and digits") from error
    material, checksum = raw[:KEY_BYTES], raw[KEY_BYTES:]
    if len(material) != KEY_BYTES or checksum != _checksum(material):
        raise KeyProblem("the recovery code is mistyped or incomplete: its checksum does not fit")
    return material


def restore(data_dir: Path, material: bytes) -> Key:
    """Put a key back as the key file. It must open the database, if there is one.

    Raises WrongKey and changes nothing when it does not. The daemon must be down.
    """
    if len(material) != KEY_BYTES:
        raise KeyProblem(f"a key has {KEY_BYTES} bytes, this one {len(material)}")
    path = data_dir / DATABASE_NAME
    if path.exists():
        try:
            connect(path, material).close()
        except WrongKey as error:
            raise WrongKey(
                f"that key does not open {path}; if it is the key of a backup, move {path} and {data_dir / KEY_NAME} "
                "away first"
            ) from error
    write_private(data_dir / KEY_NAME, material)
    _record_place(data_dir, KeyPlace.FILE)
    (data_dir / NEXT_KEY_NAME).unlink(missing_ok=True)
    return Key(material, KeyPlace.FILE, data_dir / KEY_NAME)


def write_private(path: Path, content: bytes) -> None:
    """Write a file that only its owner can read: temporary file, fsync, rename, fsync of the folder."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
        sync_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise from_os_error(error, path) from error


def make_private_folder(folder: Path) -> None:
    """Create ``folder`` for its owner alone, if it is not there."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise from_os_error(error, folder) from error


def sync_folder(folder: Path) -> None:
    """Make a rename in ``folder`` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _finish_rotation(data_dir: Path) -> None:
    """Keep whichever of the two keys opens the database. Only for who holds the instance lock."""
    following = data_dir / NEXT_KEY_NAME
    if not (data_dir / DATABASE_NAME).exists():
        return
    if _whichever_fits(data_dir).path == following:
        following.rename(data_dir / KEY_NAME)
    else:  # the rotation ended before the database changed
        following.unlink()
    sync_folder(data_dir)


def _whichever_fits(data_dir: Path) -> Key:
    """Return the one of the two keys that opens the database, and is proved by that. Raises WrongKey."""
    following, current = data_dir / NEXT_KEY_NAME, data_dir / KEY_NAME
    # The new one again at the end: the rotation may have come about between the first two.
    for path in (following, current, following):
        try:
            material = _read(path, KeyPlace.FILE)
        except KeyProblem:
            if path is following and not path.exists():  # it has just become the key
                continue
            raise
        try:
            connect(data_dir / DATABASE_NAME, material).close()
        except WrongKey:
            continue
        return Key(material, KeyPlace.FILE, path)
    material = _read(current, KeyPlace.FILE)
    connect(data_dir / DATABASE_NAME, material).close()
    return Key(material, KeyPlace.FILE, current)


def _credential(environ: Mapping[str, str]) -> Path | None:
    folder = environ.get("CREDENTIALS_DIRECTORY")
    return Path(folder) / CREDENTIAL_NAME if folder else None


def recorded_place(data_dir: Path) -> KeyPlace:
    """Return where the key of a data directory is said to be. Raises KeyProblem when nothing says it."""
    path = data_dir / PLACE_NAME
    try:
        return KeyPlace(json.loads(path.read_bytes())["place"])
    except FileNotFoundError as error:
        raise KeyProblem(f"there is no key yet: {path} does not exist; start the daemon once") from error
    except OSError as error:
        raise from_os_error(error, path) from error
    except (ValueError, KeyError, TypeError) as error:
        raise KeyProblem(f'{path} is malformed; it should read {{"place": "file"}}') from error


def _record_place(data_dir: Path, place: KeyPlace) -> None:
    write_private(data_dir / PLACE_NAME, json.dumps({"place": place.value}).encode() + b"\n")


def _read(path: Path, place: KeyPlace) -> bytes:
    """Read a key: 32 raw bytes, or 64 hexadecimal digits. Refuse one that others could have read or set."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError as error:
        raise KeyProblem(f"the key {path} is missing; put it back, or use `outrider key recovery --restore`") from error
    except OSError as error:
        raise KeyProblem(
            f"the key {path} cannot be opened ({error.strerror}); it must be a plain file of yours"
        ) from error
    with os.fdopen(descriptor, "rb") as file:
        info = os.fstat(file.fileno())
        content = file.read(4 * KEY_BYTES)
    if not stat.S_ISREG(info.st_mode) or info.st_nlink != 1:
        raise KeyProblem(f"the key {path} must be a plain file with one name, not a link or device")
    if place is KeyPlace.FILE and info.st_uid != os.geteuid():
        raise KeyProblem(f"the key {path} belongs to another user; run as its owner or correct the owner")
    # A service manager may grant its credential to our group by an access list.
    too_open = 0o077 if place is KeyPlace.FILE else 0o027
    if info.st_mode & too_open:
        raise KeyProblem(
            f"the key {path} has mode {stat.S_IMODE(info.st_mode):04o}, others may read it; run: chmod 600 {path}"
        )
    if len(content) == KEY_BYTES:
        return content
    try:
        material = bytes.fromhex(content.decode("ascii").strip())
    except ValueError:
        material = b""
    if len(material) != KEY_BYTES:
        raise KeyProblem(
            f"the key {path} is malformed: it must hold {KEY_BYTES} raw bytes or {2 * KEY_BYTES} hexadecimal digits"
        )
    return material


def _checksum(material: bytes) -> bytes:
    return hashlib.sha256(b"outrider recovery code\x00" + material).digest()[:_CHECKSUM_BYTES]
