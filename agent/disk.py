"""What the data directory takes on disk, and who holds how much. Reads sizes, never contents."""

from __future__ import annotations

import os
import shutil
from enum import StrEnum
from pathlib import Path

import msgspec


class Holder(StrEnum):
    """What bytes in a data directory are for."""

    MODELS = "models"
    PULLS = "pulls under way"
    MAKINGS = "models being made"
    QUARANTINE = "quarantine"
    ENVIRONMENTS = "build environments"
    PREFIXES = "saved prefixes"
    QUEUE = "queue and records"
    OTHER = "other"


# Where each holder's files begin, below the data directory; the first that fits counts.
PLACES: tuple[tuple[str, Holder], ...] = (
    ("models/pulls/", Holder.PULLS),
    ("models/making/", Holder.MAKINGS),
    ("models/incoming/", Holder.MAKINGS),
    ("models/quarantine/", Holder.QUARANTINE),
    ("models/", Holder.MODELS),
    ("build-envs/", Holder.ENVIRONMENTS),
    ("prefixes/", Holder.PREFIXES),
    ("outrider.db", Holder.QUEUE),  # with its log, and a database that was replaced
    ("ballast", Holder.QUEUE),
)


class DiskUse(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes on disk, each file once however many names it has."""

    held: dict[Holder, int]
    free: int  # of the file system
    budget: int  # 0: none but what is free

    @property
    def total(self) -> int:
        return sum(self.held.values())

    @property
    def room(self) -> int:
        """Bytes that may still come; negative when the budget was made smaller than what is there."""
        return min(self.free, self.budget - self.total) if self.budget else self.free


def disk_use(data_path: Path, budget: int = 0) -> DiskUse:
    """Return what is there now. Raises OSError for the folder itself; what vanishes meanwhile does not count."""
    held = dict.fromkeys(Holder, 0)
    seen: set[tuple[int, int]] = set()
    for folder, _, names in os.walk(data_path):
        for name in names:
            path = os.path.join(folder, name)  # noqa: PTH118 - tens of thousands of files in an environment
            try:
                status = os.lstat(path)
            except FileNotFoundError:
                continue
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            held[_holder(os.path.relpath(path, data_path))] += _allocated(status)
    return DiskUse(held=held, free=_free(data_path), budget=budget)


def _allocated(status: os.stat_result) -> int:
    """Return what a file takes: less than its size where it has holes."""
    return status.st_blocks * 512 if hasattr(status, "st_blocks") else status.st_size


def _holder(path: str) -> Holder:
    path = path.replace(os.sep, "/")
    return next((holder for place, holder in PLACES if path.startswith(place)), Holder.OTHER)


def _free(data_path: Path) -> int:
    place = next(place for place in (data_path, *data_path.absolute().parents) if place.exists())
    return shutil.disk_usage(place).free
