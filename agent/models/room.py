"""Is there room for another model? Asked before anything is downloaded or made."""

from __future__ import annotations

import contextlib
import errno
from pathlib import Path

from agent.disk import DiskUse, Holder, disk_use
from agent.errors import DiskFull, OutriderError, StorageError
from agent.models.collecting import collect
from agent.models.holding import held
from agent.models.interrupted import folder_bytes, promise_room, promised_room
from agent.models.store import ModelStore

MARGIN = 64 << 20  # bytes of disk to leave free
_PATIENCE_S = 30.0
_NAMED = 3  # largest models that a refusal names


def require_room(store: ModelStore, needed: int, what: str, folder: Path | None = None) -> None:
    """Make sure that ``needed`` bytes more fit the disk and the disk budget, beside what other calls are fetching.

    They will come into ``folder``, which the caller holds: from now on other calls count them as taken.
    Raises DiskFull, which says who holds how much and what could be removed.
    """
    root = store.blobs.root
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        why = _why_not(store, needed, folder)
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise DiskFull(f"{what} needs {_mib(needed)}, and the disk of {root} is full. {_remedy(store)}") from error
        raise StorageError(f"{root} cannot be written to: {error.strerror}; check its permissions") from error
    if why:
        use = disk_use(store.data_path)
        raise DiskFull(f"{what} needs {_mib(needed)}: {why} ({_holders(use)}). {_remedy(store)}")


def _why_not(store: ModelStore, needed: int, folder: Path | None) -> str:
    """Return why there is no room; "" where there is, which is then promised to ``folder``."""
    root, busy = store.blobs.root, "another call looks for room at this moment; try again"
    with held(root / "room.lock", busy, patience_s=_PATIENCE_S):
        use = disk_use(store.data_path, store.disk_budget)
        coming = sum(promised_room(place, folder) for place in (root / "pulls", root / "making"))
        others = f", and {_mib(coming)} more are coming by other calls" if coming else ""
        if use.free < needed + coming + MARGIN:
            return f"{_mib(use.free)} are free in {store.data_path} and {_mib(MARGIN)} of that stay free{others}"
        if use.budget and needed + coming > use.budget - use.total:
            return f"the budget (storage.disk_budget_bytes) is {_mib(use.budget)}, {_mib(use.total)} are taken{others}"
        if folder is not None:
            promise_room(folder, needed + folder_bytes(folder))
    return ""


def _holders(use: DiskUse) -> str:
    most = sorted(use.held.items(), key=lambda pair: pair[1], reverse=True)
    return ", ".join(f"{holder} {_mib(count)}" for holder, count in most if count >> 20) or "nothing large is there"


def _remedy(store: ModelStore) -> str:
    ways = []
    with contextlib.suppress(OutriderError):  # a store in use tells nothing; the refusal stands all the same
        found = collect(store, everything=True, dry_run=True)
        if found.bytes >> 20:
            ways.append(f"`outrider models gc --all` frees {_mib(found.bytes)}")
    here = sorted((entry for entry in store.list() if entry.path), key=lambda entry: entry.bytes, reverse=True)
    if here:
        named = ", ".join(f"{entry.name} ({_mib(entry.bytes)})" for entry in here[:_NAMED])
        ways.append(f"`outrider models rm` removes a model: {named}")
    if disk_use(store.data_path).held[Holder.ENVIRONMENTS]:
        ways.append("`outrider quantize --remove` removes the build environments")
    return f"To make room: {'; '.join(ways)}" if ways else "Free some space, or set data_dir"


def _mib(count: int) -> str:
    return f"{-(-count >> 20)} MiB" if count > 0 else "0 MiB"
