"""Give space back: a model that is wanted no more, and whatever nothing refers to.

Both hold the store's lock alone, so nothing is removed between taking a file in and naming it;
pulls, makings and environments under way hold locks of their own and are passed over.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import msgspec

from agent.errors import StorageError
from agent.models.artifact import StoredModel
from agent.models.build_env import ENVIRONMENTS, BuildEnvironment
from agent.models.build_env import FOLDER as BUILD_ENVIRONMENTS
from agent.models.holding import held
from agent.models.interrupted import KEPT_S, interrupted, remove_interrupted
from agent.models.store import LOCK_NAME, TREES, ModelStore

_PATIENCE_S = 10.0  # longest that somebody who takes files in is waited for


class Leftover(msgspec.Struct, frozen=True):
    """Something that nobody needs, or that only an interrupted call would."""

    kind: str  # "file", "pull", "making", "quarantine", "environment", "temporary"
    name: str
    bytes: int


class Collected(msgspec.Struct, frozen=True, kw_only=True):
    """What is gone, or would be, and what could be gone too."""

    removed: tuple[Leftover, ...]
    kept: tuple[Leftover, ...]  # an interrupted call can go on with these, or a person may look at them

    @property
    def bytes(self) -> int:
        return sum(one.bytes for one in self.removed)


class Removed(msgspec.Struct, frozen=True, kw_only=True):
    """A model that the store has no more."""

    name: str
    bytes: int  # given back
    shared: tuple[str, ...] = ()  # models that use some of its files, which stay


def remove_model(store: ModelStore, name: str) -> Removed:
    """Forget a model and remove those of its files that no other one has.

    Raises ModelNotFound, WrongState while somebody takes files in, StorageError.
    """
    with _alone(store):
        model = store.forget(name)
        others = list(_models(store))
        freed = _drop_unused(store, {file.sha256 for file in model.files}, others, dry_run=False)
        _drop_trees(store, others, dry_run=False)
    digests = {file.sha256 for file in model.files}
    shared = tuple(other.name for other in others if digests & {file.sha256 for file in other.files})
    return Removed(name=name, bytes=sum(one.bytes for one in freed), shared=shared)


def collect(store: ModelStore, *, everything: bool = False, dry_run: bool = False) -> Collected:
    """Remove what nothing refers to. With ``everything`` also what an interrupted call could go on with.

    Raises WrongState while somebody takes files in, StorageError when a record cannot be read:
    the files that it names would be lost.
    """
    if not store.blobs.root.exists():
        return Collected(removed=(), kept=())
    with _alone(store):
        models = list(_models(store))
        removed = _drop_unused(store, set(store.blobs.digests()), models, dry_run=dry_run)
        _drop_trees(store, models, dry_run=dry_run)
        removed += _drop_temporary(store, dry_run=dry_run)
        kept: list[Leftover] = []
        for leftover, old, drop in _optional(store):
            if not (old or everything):
                kept.append(leftover)
            elif dry_run or drop():
                removed.append(leftover)
    return Collected(removed=tuple(removed), kept=tuple(kept))


@contextmanager
def _alone(store: ModelStore) -> Iterator[None]:
    root = store.blobs.root
    busy = "a model is being taken into the store just now; try again when that is done"
    try:
        store.blobs.prepare()
        with held(root / LOCK_NAME, busy, patience_s=_PATIENCE_S):
            yield
    except OSError as error:
        raise StorageError(f"{root}: {error.strerror}; check its permissions") from error


def _models(store: ModelStore) -> Iterator[StoredModel]:
    for path in sorted((store.blobs.root / "refs").glob("*.json")):
        if (model := store.get(path.stem)) is not None:
            yield model


def _drop_unused(store: ModelStore, digests: set[str], models: list[StoredModel], *, dry_run: bool) -> list[Leftover]:
    used = {file.sha256 for model in models for file in model.files}
    dropped = []
    for digest in sorted(digests - used):
        if store.blobs.has(digest):
            dropped.append(Leftover("file", digest, store.blobs.path(digest).lstat().st_size))
        if not dry_run:
            store.blobs.remove(digest)
    return dropped


def _drop_trees(store: ModelStore, models: list[StoredModel], *, dry_run: bool) -> None:
    """Remove folders of links; they take no space of their own."""
    used = {model.digest for model in models}
    for folder in (store.blobs.root / TREES).glob("*"):
        if folder.name not in used and not dry_run:
            shutil.rmtree(folder)


def _drop_temporary(store: ModelStore, *, dry_run: bool) -> list[Leftover]:
    """Remove what calls that were killed left half-taken: with the lock held, nobody works on it."""
    dropped = []
    for path in (store.blobs.root / "incoming").glob("*"):
        dropped.append(Leftover("temporary", path.name, _size(path)))
        if not dry_run:
            _remove(path)
    known = set(store.blobs.digests())
    notes = [note for note in (store.blobs.root / "verified").glob("*") if note.stem not in known]
    for path in (*notes, *(store.blobs.root / "refs").glob(".*")):
        if not dry_run:
            path.unlink()
    return dropped


def _optional(store: ModelStore) -> Iterator[tuple[Leftover, bool, Callable[[], bool]]]:
    """Yield what somebody may still want, whether it is old, and how it is removed unless it is in use."""
    root = store.blobs.root
    for kind, place in (("pull", root / "pulls"), ("making", root / "making")):
        for one in interrupted(place):
            yield Leftover(kind, one.path.name, one.bytes), one.old, partial(remove_interrupted, one.path)
    for path in sorted((root / "quarantine").glob("*")):
        if path.suffix != ".json":
            old = path.lstat().st_mtime < time.time() - KEPT_S
            yield Leftover("quarantine", path.name, path.lstat().st_size), old, partial(_drop_quarantined, path)
    for one in interrupted(store.data_path / BUILD_ENVIRONMENTS):
        if not _ready(store.data_path, one.path):
            # Of no use to anybody: an environment is made anew, never gone on with.
            yield Leftover("environment", one.path.name, one.bytes), True, partial(remove_interrupted, one.path)


def _ready(data_path: Path, folder: Path) -> bool:
    environments = (BuildEnvironment(data_path, name) for name in ENVIRONMENTS)
    return any(folder == environment.root and environment.made for environment in environments)


def _drop_quarantined(path: Path) -> bool:
    path.unlink(missing_ok=True)
    path.with_name(f"{path.name}.json").unlink(missing_ok=True)
    return True


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _size(path: Path) -> int:
    return sum(part.lstat().st_size for part in (path, *path.rglob("*")) if not part.is_dir())
