"""Carry models to another device in one signed file, and take them in there. No network is used."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from agent import __version__
from agent.errors import DiskFull, InvalidRequest, ModelNotFound, StorageError, WrongState
from agent.models.artifact import StoredModel
from agent.models.blobs import described, sync_folder
from agent.models.bundle_file import (
    BLOBS,
    CALIBRATIONS,
    CONFIG,
    INDEX,
    KEY,
    MOST_MEMBER_BYTES,
    SCHEMA,
    SIGNATURE,
    WHEEL_NAME,
    WHEELS,
    BundledModel,
    BundleReader,
    BundleWriter,
    Index,
    Member,
    index_fault,
)
from agent.models.file_check import check_model
from agent.models.interrupted import working_folder
from agent.models.lock_file import LockedModel, LockFile
from agent.models.minisign import PublicKey, SecretKey
from agent.models.pull_job import Progress
from agent.models.room import MARGIN, require_room
from agent.models.store import ModelStore

Follow = Callable[[Progress], None]
"""Is told how many bytes of how many are done."""

Trust = Callable[[PublicKey], None]
"""Returns for a key that is trusted, raises for any other."""

Accept = Callable[[BundledModel], None]
"""Returns when a person accepts the licence of a model, raises to decline."""


class Parcel(msgspec.Struct, frozen=True, kw_only=True):
    """What goes into a bundle beside models."""

    config: str | None = None  # TOML, without secrets
    wheels: tuple[Path, ...] = ()
    tasks: tuple[bytes, ...] = ()  # each with what it was taught and what it promises, as its owner encodes it


class Landing(msgspec.Struct, frozen=True, kw_only=True):
    """Where things out of a bundle shall go. None: they stay in it."""

    config: Path | None = None
    wheels: Path | None = None
    tasks: bool = False
    replace: bool = False  # other models of the same names


class Imported(msgspec.Struct, frozen=True, kw_only=True):
    """What came in."""

    models: tuple[StoredModel, ...]
    wheels: int  # files written
    config: bool
    tasks: tuple[bytes, ...]  # for their owner to keep
    left: tuple[str, ...]  # members that nobody asked for


def export_bundle(
    store: ModelStore, names: Sequence[str], target: Path, key: SecretKey, parcel: Parcel, follow: Follow
) -> Index:
    """Write a bundle. Blocking; ``target`` is there whole or not at all, and the same input gives the same bytes.

    Raises ModelNotFound, ModelRejected when a file does not hold, InvalidRequest, DiskFull, StorageError.
    """
    lock = LockFile(store.data_path)
    models: list[BundledModel] = []
    sources: dict[str, Path] = {}
    for name in dict.fromkeys(names):
        store.resolve(name, below_floor=True)
        model = store.get(name)
        assert model is not None, "resolve has put it there"
        # What was measured of its speed, and who allowed it, are matters of this device.
        models.append(
            BundledModel(
                model=msgspec.structs.replace(model, speeds=(), allowed=False, checked_on=""), locked=lock.get(name)
            )
        )
        sources |= {BLOBS + file.sha256: store.blobs.path(file.sha256) for file in model.files}
    with _translated(target):
        wheels = [_member(WHEELS, path, file=path.name) for path in parcel.wheels]
        members = [_member(BLOBS, path) for _, path in sorted(sources.items())] + wheels
        sources |= {wheel.name: path for wheel, path in zip(wheels, parcel.wheels, strict=True)}
        small = {CALIBRATIONS + hashlib.sha256(body).hexdigest(): body for body in sorted(parcel.tasks)}
        if parcel.config is not None:
            small = {CONFIG: parcel.config.encode()} | small
        members = [*map(_small, small, small.values()), *members]
        index = Index(schema=SCHEMA, made_by=__version__, models=tuple(models), members=tuple(members))
        if shutil.disk_usage(target.absolute().parent).free < index.bytes + MARGIN:
            raise DiskFull(f"the bundle has {index.bytes >> 20} MiB, which {target.absolute().parent} has no room for")
        if fault := index_fault(index):
            raise InvalidRequest(f"no bundle can be made of this: {fault}")
        with _whole(target) as file:
            _write(BundleWriter(file), index, key, small, sources, follow)
    return index


def _write(
    writer: BundleWriter,
    index: Index,
    key: SecretKey,
    small: dict[str, bytes],
    sources: dict[str, Path],
    follow: Follow,
) -> None:
    raw = msgspec.json.format(msgspec.json.encode(index), indent=1)
    names = ", ".join(bundled.model.name for bundled in index.models)
    writer.small(KEY, key.public.file.encode())
    writer.small(INDEX, raw)
    writer.small(SIGNATURE, key.sign(raw, f"Outrider bundle: {names[:200]}").encode())
    tell = _teller(index.bytes, follow)
    for member in index.members:
        if member.name in small:
            writer.small(member.name, small[member.name])
            tell(member.bytes)
            continue
        with sources[member.name].open("rb") as source:
            writer.member(member, source, tell)
    writer.end()


def _small(name: str, body: bytes) -> Member:
    return Member(name=name, bytes=len(body), sha256=hashlib.sha256(body).hexdigest())


def _member(folder: str, path: Path, *, file: str = "") -> Member:
    if path.stat().st_size > MOST_MEMBER_BYTES:
        raise InvalidRequest(f"{path.name} has more than 8 GiB, which no bundle carries")
    if file and not re.fullmatch(WHEEL_NAME, file):
        raise InvalidRequest(f"{file[:80]!r} cannot be the name of a wheel")
    seen = described(path, "x")
    return Member(name=folder + seen.sha256, bytes=seen.bytes, sha256=seen.sha256, file=file)


@contextmanager
def _whole(target: Path) -> Iterator[BinaryIO]:
    """Write a file that gets its name when it is whole and on disk."""
    part = target.with_name(f".{target.name}.part")
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)
        sync_folder(target.absolute().parent)
    finally:
        part.unlink(missing_ok=True)


def read_bundle(path: Path, trust: Trust, follow: Follow) -> Index:
    """Check a whole bundle and return what is in it; nothing is written. Raises ModelRejected, StorageError."""
    with _opened(path) as file:
        reader = BundleReader(file)
        index = reader.index(trust)
        tell = _teller(index.bytes, follow)
        for member in index.members:
            reader.member(member, len, tell)
        reader.end()
    return index


def import_bundle(
    store: ModelStore, path: Path, landing: Landing, trust: Trust, accept: Accept, follow: Follow
) -> Imported:
    """Take a bundle in: all of its models or none. Blocking; needs no network, only the file and the store.

    Raises ModelRejected for a bundle that does not hold, WrongState when a name means other bytes
    here, DiskFull, StorageError; whatever ``trust`` and ``accept`` raise.
    """
    with _opened(path) as file:
        reader = BundleReader(file)
        index = reader.index(trust)
        lock = LockFile(store.data_path)
        for bundled in index.models:
            _require_name(store, lock, bundled.model, replace=landing.replace)
        _require_landing(index, landing)
        accepted = tuple(_accepted(store, lock, bundled, accept) for bundled in index.models)
        missing = [m.bytes for m in index.members if not (m.name.startswith(BLOBS) and store.blobs.unchanged(m.sha256))]
        with _folder(store, index) as folder:
            require_room(store, sum(missing), f"importing {path.name}", folder)
            _unpack(reader, index, folder, follow)
            models = _arrived(store, index, folder)
            wheels, config, left = _land(index, folder, landing)
            tasks = tuple((folder / one.sha256).read_bytes() for one in _tasks(index) if landing.tasks)
            locked = {
                model.name: _locked(bundled, model, at_ms)
                for bundled, model, at_ms in zip(index.models, models, accepted, strict=True)
            }
            kept = _take_in(store, models, folder, lambda: lock.put_all(locked))
    return Imported(models=kept, wheels=wheels, config=config, tasks=tasks, left=left)


def _require_name(store: ModelStore, lock: LockFile, model: StoredModel, *, replace: bool) -> None:
    spec = store.manifest.find(model.name)
    if spec and spec.pinned and {file.sha256 for file in spec.promised} != {file.sha256 for file in model.files}:
        raise WrongState(f"{model.name} is a model of the catalogue here, with other bytes than in the bundle")
    there, locked = store.get(model.name), lock.get(model.name)
    known = there.files if there else locked.files if locked else None
    if known is not None and set(known) != set(model.files) and not replace:
        raise WrongState(
            f"the name {model.name} means other bytes here, from {there.source if there else locked and locked.source}; "
            "--force takes those of the bundle"
        )


def _require_landing(index: Index, landing: Landing) -> None:
    if landing.config is not None and landing.config.exists():
        raise WrongState(f"{landing.config} exists already; name another file, a configuration is never overwritten")
    if landing.wheels is not None and not landing.wheels.is_dir():
        raise InvalidRequest(f"there is no folder {landing.wheels}")


def _accepted(store: ModelStore, lock: LockFile, bundled: BundledModel, accept: Accept) -> int | None:
    """Return when the licence was accepted here; who made the bundle cannot accept it for another."""
    spec, locked = store.manifest.find(bundled.model.name), lock.get(bundled.model.name)
    asked = (spec is not None and spec.accept) or (
        bundled.locked is not None and bundled.locked.accepted_at_ms is not None
    )
    if not asked:
        return None
    if locked and locked.accepted_at_ms is not None and locked.licence == bundled.model.licence:
        return locked.accepted_at_ms
    accept(bundled)
    return int(time.time() * 1000)


def _unpack(reader: BundleReader, index: Index, folder: Path, follow: Follow) -> None:
    """Copy all members beside each other, named by their SHA-256; raise ModelRejected before any is used."""
    tell = _teller(index.bytes, follow)
    for member in index.members:
        with (folder / member.sha256).open("wb") as target:
            reader.member(member, target.write, tell)
            target.flush()
            os.fsync(target.fileno())
    reader.end()


def _arrived(store: ModelStore, index: Index, folder: Path) -> list[StoredModel]:
    """Return the records to keep, once the format of every file was checked."""
    for bundled in index.models:
        check_model(bundled.model, {file.name: folder / file.sha256 for file in bundled.model.files})
    return [_record(store.get(bundled.model.name), bundled.model) for bundled in index.models]


def _record(there: StoredModel | None, model: StoredModel) -> StoredModel:
    """Return what to keep of a model. What was measured and allowed here, of the same bytes, stays."""
    changes: dict[str, Any] = {"added_at_ms": int(time.time() * 1000), "speeds": (), "allowed": False, "checked_on": ""}
    if there is not None and there.digest == model.digest:
        changes |= {"speeds": there.speeds, "allowed": there.allowed, "quality": there.quality or model.quality}
    return msgspec.structs.replace(model, **changes)


def _take_in(
    store: ModelStore, models: Sequence[StoredModel], folder: Path, record: Callable[[], None]
) -> tuple[StoredModel, ...]:
    """Give all models their names, then ``record`` them. Should the disk fail in between, they lose them again."""
    kept: list[StoredModel] = []
    earlier = {model.name: store.get(model.name) for model in models}
    with store.taking_in():
        try:
            for model in models:
                paths = {file.name: folder / file.sha256 for file in model.files}
                kept.append(store.add(model, paths, move=True))
            record()
        except BaseException:
            for model in kept:
                with contextlib.suppress(Exception):  # what has failed is told; this only tidies up
                    if (before := earlier[model.name]) is not None:
                        store.add(before, {})
                    else:
                        store.forget(model.name)
            raise
    return tuple(kept)


def _locked(bundled: BundledModel, model: StoredModel, accepted_at_ms: int | None) -> LockedModel:
    before = bundled.locked if bundled.locked and set(bundled.locked.files) == set(model.files) else None
    return LockedModel(
        source=before.source if before else model.source,
        revision=before.revision if before else model.revision,
        files=model.files,
        licence=model.licence,
        accepted_at_ms=accepted_at_ms,
        pulled_at_ms=model.added_at_ms,
    )


def _land(index: Index, folder: Path, landing: Landing) -> tuple[int, bool, tuple[str, ...]]:
    """Write what shall lie outside of the store; return how many wheels, whether the configuration, what not."""
    wheels, config = 0, False
    left: list[str] = []
    for member in index.members:
        source = folder / member.sha256
        if member.name == CONFIG and landing.config is not None:
            _place(source, landing.config)
            config = True
        elif member.name.startswith(WHEELS) and landing.wheels is not None:
            _place(source, landing.wheels / member.file)
            wheels += 1
        elif member.name == CONFIG or member.name.startswith(WHEELS) or (member in _tasks(index) and not landing.tasks):
            left.append(member.file or member.name)
    return wheels, config, tuple(left)


def _tasks(index: Index) -> list[Member]:
    return [member for member in index.members if member.name.startswith(CALIBRATIONS)]


def _place(source: Path, target: Path) -> None:
    part = target.with_name(f".{target.name}.part")
    try:
        shutil.copyfile(source, part)
        part.chmod(0o600 if target.suffix == ".toml" else 0o644)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def _folder(store: ModelStore, index: Index) -> Iterator[Path]:
    """Hold a folder for this bundle alone, gone at the end: a second call begins anew."""
    key = hashlib.sha256(msgspec.json.encode(index)).hexdigest()[:24]
    store.blobs.prepare()
    busy = "the same bundle is being imported by another call; wait for it"
    with working_folder(store.blobs.root / "pulls", key, busy) as folder:
        shutil.rmtree(folder)
        folder.mkdir(mode=0o700)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    if not path.is_file():
        raise ModelNotFound(f"there is no file {path}", param="file")
    with _translated(path), path.open("rb") as file:
        yield file


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    """Turn what the file system refuses into the errors that users meet."""
    try:
        yield
    except OSError as error:
        place = error.filename or path
        if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
            raise DiskFull(f"no space is left for {place}; free some") from error
        raise StorageError(f"{place}: {error.strerror}; check its permissions") from error


def _teller(total: int, follow: Follow) -> Callable[[int], None]:
    done = 0

    def tell(count: int) -> None:
        nonlocal done
        done += count
        follow(Progress(done=done, total=total))

    return tell
