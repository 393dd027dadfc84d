"""What this machine is: cores, memory, load, power. Read on demand; nothing is cached."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import msgspec
import psutil

_CGROUP_ROOT = Path("/sys/fs/cgroup")
_CGROUP_SELF = Path("/proc/self/cgroup")


class DeviceProfile(msgspec.Struct, frozen=True, kw_only=True):
    """One look at the machine. Memory in bytes; a limit that does not exist is None."""

    system: str  # Linux, Darwin, Windows
    machine: str  # x86_64, aarch64
    cpu_model: str  # "" where the system does not say
    logical_cores: int
    physical_cores: int
    usable_cores: float  # after CPU affinity and the control group's quota
    memory_total: int
    memory_available: int
    memory_limit: int | None  # of the control group
    load_1min: float | None  # runnable tasks, mean of one minute
    battery_percent: float | None  # None: there is no battery
    on_battery: bool

    @property
    def memory_usable(self) -> int:
        """Bytes that a new process could take now."""
        return self.memory_available if self.memory_limit is None else min(self.memory_available, self.memory_limit)

    @property
    def decode_threads(self) -> int:
        """Threads for decoding: physical cores that this process may use, at least one."""
        return max(1, min(self.physical_cores, int(self.usable_cores)))


def profile() -> DeviceProfile:
    """Look at the machine. Takes about a millisecond; never raises for what cannot be read."""
    logical = psutil.cpu_count(logical=True) or 1
    quota, limit = _cgroup_limits(_CGROUP_ROOT, _CGROUP_SELF)
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else logical
    memory = psutil.virtual_memory()
    battery = _battery()
    return DeviceProfile(
        system=platform.system(),
        machine=platform.machine(),
        cpu_model=_cpu_model(),
        logical_cores=logical,
        physical_cores=psutil.cpu_count(logical=False) or logical,
        usable_cores=min(float(allowed), quota if quota is not None else float(allowed)),
        memory_total=memory.total,
        memory_available=memory.available,
        memory_limit=limit if limit is not None and limit < memory.total else None,
        load_1min=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        battery_percent=battery[0] if battery else None,
        on_battery=battery is not None and not battery[1],
    )


def on_battery() -> bool:
    """Return whether the machine runs on its battery now; False where there is none."""
    battery = _battery()
    return battery is not None and not battery[1]


def _battery() -> tuple[float, bool] | None:
    """Return (percent, plugged in), or None."""
    if not hasattr(psutil, "sensors_battery"):
        return None
    try:
        seen = psutil.sensors_battery()
    except OSError:
        return None  # some drivers offer a battery and then fail to read it
    if seen is None:
        return None
    # power_plugged is None where the system cannot tell; mains is the answer that changes nothing.
    return float(seen.percent), seen.power_plugged is not False


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() in {"model name", "Model"}:
                return value.strip()
    except OSError:
        pass  # not Linux
    return platform.processor()


def _cgroup_limits(root: Path, own: Path) -> tuple[float | None, int | None]:
    """Return (cores, bytes) that cgroup v2 grants: the least of this group and those above it."""
    try:
        line = next(line for line in own.read_text(encoding="utf-8").splitlines() if line.startswith("0::"))
    except (OSError, StopIteration):
        return None, None
    folder = root / line.removeprefix("0::").lstrip("/")
    quotas: list[float] = []
    limits: list[int] = []
    while folder.is_relative_to(root):
        cpu = _first_line(folder / "cpu.max").split()
        if len(cpu) == 2 and all(word.isdigit() for word in cpu) and int(cpu[1]):
            quotas.append(int(cpu[0]) / int(cpu[1]))
        memory = _first_line(folder / "memory.max")
        if memory.isdigit():
            limits.append(int(memory))
        folder = folder.parent
    return min(quotas, default=None), min(limits, default=None)


def _first_line(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").partition("\n")[0].strip()
    except OSError:
        return ""
