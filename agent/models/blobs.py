"""Files addressed by their content: each is kept once, read-only, and never served unverified.

::

    blobs/<sha256>            read-only, verified
    verified/<sha256>.json    the file's inode, size and times when it was last verified
    quarantine/<sha256>       what did not hold, with <sha256>.json: why
    incoming/                 files under way

A file gets its name in ``blobs`` by an atomic rename after its size, SHA-256 and format were
checked and its bytes are on disk. It is hashed again when its inode, size or times are not
those of the last verification.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from agent.errors import ModelRejected
from agent.models.artifact import StoredFile
from agent.models.holding import held

_CHUNK = 1 << 20
_VERIFY_ATTEMPTS = 10
_PLACING = "placing.lock"  # held for the moment in which a file gets its name
_PLACING_S = 60.0

Check = Callable[[Path], None]
"""Looks into a file whose size and digest hold; raises ModelRejected with the reason."""


class Quarantined(msgspec.Struct, frozen=True):
    """Why a file was set aside."""

    model: str
    reason: str


class _Fingerprint(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What changes when somebody writes to or replaces a file."""

    inode: int
    bytes: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, path: Path) -> _Fingerprint | None:
        """Return None for a link or anything else that is not a regular file."""
        seen = path.lstat()
        if not stat.S_ISREG(seen.st_mode):
            return None
        return cls(seen.st_ino, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns)


class BlobStore:
    """The files of one store. Blocking; several threads or processes may use it at once."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, sha256: str) -> Path:
        return self.root / "blobs" / sha256

    def has(self, sha256: str) -> bool:
        return os.path.lexists(self.path(sha256))

    def unchanged(self, sha256: str) -> bool:
        """Whether the file is there as it was when it was last verified. Reads no content."""
        try:
            now = _Fingerprint.of(self.path(sha256))
            return now == msgspec.json.decode(self._record(sha256).read_bytes(), type=_Fingerprint)
        except (FileNotFoundError, msgspec.DecodeError):
            return False  # never verified, or cut short: the file is hashed again

    def prepare(self) -> None:
        """Make the folders. Raises OSError."""
        self.root.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # the data directory is nobody else's
        self.root.mkdir(mode=0o700, exist_ok=True)
        for folder in ("blobs", "verified", "refs", "incoming"):
            (self.root / folder).mkdir(mode=0o700, exist_ok=True)

    def put(self, source: Path, wanted: StoredFile, check: Check, *, model: str, move: bool = False) -> None:
        """Take a file in, if it is exactly ``wanted`` and passes ``check``.

        ``move`` renames the file instead of copying it: for one of ours on the same file system.
        Raises ModelRejected, the bad file in quarantine, or OSError with nothing changed.
        """
        self.prepare()
        if move:
            self._put_own(source, wanted, check, model)
            return
        handle, name = tempfile.mkstemp(prefix="copy-", dir=self.root / "incoming")
        copy = Path(name)
        try:
            with source.open("rb") as reader, os.fdopen(handle, "wb") as writer:
                shutil.copyfileobj(reader, writer, _CHUNK)
            self._put_own(copy, wanted, check, model)
        finally:
            copy.unlink(missing_ok=True)

    def _put_own(self, file: Path, wanted: StoredFile, check: Check, model: str) -> None:
        file.chmod(0o600)  # an earlier call may have made it read-only, and been stopped then
        with file.open("rb+") as reader:
            digest = hashlib.file_digest(reader, "sha256").hexdigest()
            os.fchmod(reader.fileno(), 0o444)
            os.fsync(reader.fileno())
        self._examine(file, digest, wanted, check, model)
        busy = f"{wanted.name} of model {model} is being stored by another call; try again"
        with held(self.root / _PLACING, busy, patience_s=_PLACING_S):
            if self.unchanged(wanted.sha256):  # replaced by its equal it would seem altered to who looks meanwhile
                file.unlink()
                return
            file.replace(self.path(wanted.sha256))
            sync_folder(self.root / "blobs")
            self._remember(wanted.sha256, _Fingerprint.of(self.path(wanted.sha256)))

    def verify(self, wanted: StoredFile, check: Check, *, model: str) -> None:
        """Hash a kept file and check it again, whatever is recorded.

        Raises ModelRejected when it does not hold: the file is then in quarantine.
        """
        for _ in range(_VERIFY_ATTEMPTS):
            if seen := self._verified(wanted, check, model):
                self._remember(wanted.sha256, seen)
                return
        raise ModelRejected(f"{wanted.name} of model {model} was altered while it was verified; try again")

    def _verified(self, wanted: StoredFile, check: Check, model: str) -> _Fingerprint | None:
        """Return None if the file was replaced meanwhile, as by another who takes in the same one."""
        blob = self.path(wanted.sha256)
        before = _Fingerprint.of(blob)
        if before is None:
            raise ModelRejected(f"{blob} is not a regular file; remove it")
        with blob.open("rb") as reader:
            digest = hashlib.file_digest(reader, "sha256").hexdigest()
        self._examine(blob, digest, wanted, check, model)
        return before if _Fingerprint.of(blob) == before else None

    def _remember(self, sha256: str, seen: _Fingerprint | None) -> None:
        write_durably(self._record(sha256), msgspec.json.encode(seen))

    def remove(self, sha256: str) -> None:
        self._record(sha256).unlink(missing_ok=True)
        self.path(sha256).unlink(missing_ok=True)

    def digests(self) -> list[str]:
        """Return the digests of the kept files."""
        return sorted(path.name for path in (self.root / "blobs").glob("*"))

    def quarantined(self) -> Iterator[Quarantined]:
        """Yield what was set aside and why, but for notes that are damaged or go while they are looked at."""
        for note in sorted((self.root / "quarantine").glob("*.json")):
            with contextlib.suppress(OSError, msgspec.DecodeError):
                yield msgspec.json.decode(note.read_bytes(), type=Quarantined)

    def _record(self, sha256: str) -> Path:
        return self.root / "verified" / f"{sha256}.json"

    def _examine(self, path: Path, digest: str, wanted: StoredFile, check: Check, model: str) -> None:
        fault = _fault(path, digest, wanted, check)
        if fault is not None:
            reason = f"{wanted.name} of model {model} is refused: {fault}"
            self._quarantine(path, digest, model, reason)
            raise ModelRejected(reason)

    def _quarantine(self, path: Path, digest: str, model: str, reason: str) -> None:
        folder = self.root / "quarantine"
        folder.mkdir(mode=0o700, exist_ok=True)
        # Named by what it is: the same bad file coming again takes no further space.
        path.replace(folder / digest)
        write_durably(folder / f"{digest}.json", msgspec.json.encode(Quarantined(model, reason)))


def _fault(path: Path, digest: str, wanted: StoredFile, check: Check) -> str | None:
    """Return why a file is not the one that is wanted, or None."""
    if digest != wanted.sha256:
        return f"its SHA-256 is {digest}, not {wanted.sha256}: damaged or altered"
    try:
        check(path)
    except ModelRejected as error:
        return str(error)
    return None


def described(path: Path, name: str) -> StoredFile:
    """Return what a file is: its size and SHA-256, under the name it shall have. Raises OSError."""
    with path.open("rb") as reader:
        digest = hashlib.file_digest(reader, "sha256").hexdigest()
    return StoredFile(name=name, bytes=path.stat().st_size, sha256=digest)


def write_durably(path: Path, data: bytes) -> None:
    """Replace a file in one step; its bytes are on disk when this returns."""
    handle, name = tempfile.mkstemp(prefix=".", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable."""
    if os.name != "posix":
        return  # Windows cannot open a folder; its rename is durable with the file
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name; where the file system has no hard links, a read-only copy."""
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)
        target.chmod(0o444)
        seen = source.stat()
        os.utime(target, ns=(seen.st_atime_ns, seen.st_mtime_ns))


def is_link_or_copy(source: Path, target: Path) -> bool:
    """Whether ``target`` is what ``link_or_copy`` has made of ``source``: the same file, or a copy never altered.

    Reads no content. A copy counts where the file itself has no second name and neither was written since.
    """
    try:
        one, other = source.lstat(), target.lstat()
    except FileNotFoundError:
        return False
    if os.path.samestat(one, other):
        return True
    alone = one.st_nlink == 1 and other.st_nlink == 1 and stat.S_ISREG(other.st_mode)
    return alone and one.st_size == other.st_size and other.st_mtime_ns == one.st_mtime_ns
