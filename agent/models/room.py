"""Is there room for another model? Asked before anything is downloaded or made."""

from __future__ import annotations

import contextlib

from agent.disk import DiskUse, Holder, disk_use
from agent.errors import DiskFull, OutriderError
from agent.models.collecting import collect
from agent.models.store import ModelStore

MARGIN = 64 << 20  # bytes of disk to leave free
_NAMED = 3  # largest models that a refusal names


def require_room(store: ModelStore, needed: int, what: str) -> None:
    """Make sure that ``needed`` bytes more fit the disk and the disk budget.

    Raises DiskFull, which says who holds how much and what could be removed.
    """
    use = disk_use(store.data_path, store.disk_budget)
    if use.free < needed + MARGIN:
        why = f"{_mib(use.free)} are free in {store.data_path} and {_mib(MARGIN)} of that stay free"
    elif use.budget and needed > use.budget - use.total:
        why = f"the budget (storage.disk_budget_bytes) is {_mib(use.budget)}, of which {_mib(use.total)} are taken"
    else:
        return
    raise DiskFull(f"{what} needs {_mib(needed)}: {why} ({_holders(use)}). {_remedy(store)}")


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
