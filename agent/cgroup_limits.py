"""What control groups grant this process, of version 2 and of version 1. Nothing here raises."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")
NO_LIMIT_V1 = 1 << 62  # version 1 writes the largest number of pages there is instead of a word
_GIVEN_UP = {2: {"inactive_file", "active_file"}, 1: {"total_inactive_file", "total_active_file"}}


class CgroupLimits(NamedTuple):
    """The least of this process's group and those above it; None: there is no limit."""

    cores: float | None = None
    memory_bytes: int | None = None
    memory_left: int | None = None  # bytes not in use; cached files do not count as used


def cgroup_limits(root: Path = ROOT, own: Path = OWN) -> CgroupLimits:
    """Return the limits in force. In a container, where the path of the group leads nowhere, those of the root count."""
    try:
        lines = [line.split(":", 2) for line in own.read_text(encoding="utf-8").splitlines()]
    except OSError:
        return CgroupLimits()
    cores: list[float] = []
    limits: list[tuple[int, int]] = []
    for number, controllers, path in (line for line in lines if len(line) == 3):
        for folder in _upwards(root, path) if number == "0" and not controllers else ():
            cores += _quota(_line(folder / "cpu.max").split())
            limits += _memory(folder, "memory.max", "memory.current", 2)
        for folder in _upwards(root / controllers, path) if "cpu" in controllers.split(",") else ():
            cores += _quota([_line(folder / "cpu.cfs_quota_us"), _line(folder / "cpu.cfs_period_us")])
        for folder in _upwards(root / "memory", path) if "memory" in controllers.split(",") else ():
            limits += _memory(folder, "memory.limit_in_bytes", "memory.usage_in_bytes", 1)
    return CgroupLimits(
        min(cores, default=None),
        min((limit for limit, _ in limits), default=None),
        min((left for _, left in limits), default=None),
    )


def _upwards(root: Path, path: str) -> Iterator[Path]:
    folder = root / path.lstrip("/")
    while folder.is_relative_to(root):
        yield folder
        folder = folder.parent


def _quota(words: list[str]) -> list[float]:
    """Return the cores of "microseconds in a period, period"; nothing for "max" or "-1"."""
    if len(words) == 2 and all(word.isdigit() for word in words) and int(words[1]):
        return [int(words[0]) / int(words[1])]
    return []


def _memory(folder: Path, limit: str, used: str, version: int) -> list[tuple[int, int]]:
    """Return a group's limit and what is left of it, if it has one."""
    most, current = _line(folder / limit), _line(folder / used)
    if not most.isdigit() or int(most) >= NO_LIMIT_V1:
        return []
    in_use = int(current) if current.isdigit() else 0
    try:
        words = [line.split() for line in (folder / "memory.stat").read_text(encoding="utf-8").splitlines()]
    except OSError:
        words = []
    cached = sum(int(pair[1]) for pair in words if len(pair) == 2 and pair[0] in _GIVEN_UP[version])
    return [(int(most), max(0, int(most) - max(0, in_use - cached)))]


def _line(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").partition("\n")[0].strip()
    except OSError:
        return ""
