"""What this machine is: cores, memory, load, power. Read on demand; nothing is cached."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
import psutil

from agent.cgroup_limits import cgroup_limits

_CPU_INFO = Path("/proc/cpuinfo")
_THERMAL = Path("/sys/class/thermal")

LOW_BATTERY_PERCENT = 30.0
HOT_CELSIUS = 95.0  # of a sensor that names no limit of its own
_PROCESSOR_SENSOR = re.compile(r"cpu|core|k10temp|zenpower|pkg|soc", re.IGNORECASE)
# What makes quantized weights fast, and how Linux calls it on x86_64 and aarch64.
_CPU_FEATURES = {
    "avx2": {"avx2"},
    "avx512": {"avx512f"},
    "vnni": {"avx512_vnni", "avx_vnni"},
    "bf16": {"avx512_bf16", "bf16"},
    "neon": {"asimd", "neon"},
    "dotprod": {"asimddp"},
    "i8mm": {"i8mm"},
    "sve": {"sve"},
}
# What the kernel slows down or sends to sleep to cool the processor.
_PROCESSOR_BRAKE = re.compile(r"processor|cpufreq|cpuidle|powerclamp", re.IGNORECASE)


class DeviceProfile(msgspec.Struct, frozen=True, kw_only=True):
    """One look at the machine. Memory in bytes; a limit that does not exist is None."""

    system: str  # Linux, Darwin, Windows
    machine: str  # x86_64, aarch64
    cpu_model: str  # "" where the system does not say
    cpu_features: tuple[str, ...]  # of those that matter here; empty where the system does not say
    logical_cores: int
    physical_cores: int
    usable_cores: float  # after CPU affinity and the control group's quota
    memory_total: int
    memory_available: int
    memory_limit: int | None  # of the control group, or of the address space of each process
    memory_left: int | None  # of that limit, what is not in use yet
    load_1min: float | None  # runnable tasks, mean of one minute
    battery_percent: float | None  # None: there is no battery
    on_battery: bool

    @property
    def memory_usable(self) -> int:
        """Bytes that a new process could take now."""
        return self.memory_available if self.memory_left is None else min(self.memory_available, self.memory_left)

    @property
    def kind(self) -> str:
        """What measurements of speed hold for: processor and threads."""
        return f"{self.cpu_model or self.machine}, {self.decode_threads} threads"

    @property
    def decode_threads(self) -> int:
        """Threads for decoding: physical cores that this process may use, at least one."""
        return max(1, min(self.physical_cores, int(self.usable_cores)))


class PowerState(msgspec.Struct, frozen=True, kw_only=True):
    """Battery and heat, as far as the system tells; what it does not tell limits nothing."""

    battery_percent: float | None = None  # None: there is no battery
    on_battery: bool = False
    celsius: float | None = None  # of the processor's sensor that is nearest to its limit
    hot_celsius: float | None = None  # that limit
    throttled: bool = False  # the system slows the processor down at this moment

    @property
    def strain(self) -> str:
        """Why the device should work less now, as words for an operator; empty: no reason."""
        if self.on_battery and self.battery_percent is not None and self.battery_percent < LOW_BATTERY_PERCENT:
            return f"the battery is at {self.battery_percent:.0f} %"
        if self.throttled:
            return "the system slows the processor down to cool it"
        if self.celsius is not None and self.hot_celsius is not None and self.celsius >= self.hot_celsius:
            return f"the processor is at {self.celsius:.0f} °C"
        return ""


def power_state(thermal: Path = _THERMAL) -> PowerState:
    """Look at battery and heat. Takes milliseconds; never raises for what cannot be read.

    ``thermal`` is the folder of the kernel's thermal zones and cooling devices.
    """
    battery = _battery()
    heat = max((*_sensors(), *_thermal_zones(thermal)), key=lambda seen: seen[0] - seen[1], default=None)
    return PowerState(
        battery_percent=battery[0] if battery else None,
        on_battery=battery is not None and not battery[1],
        celsius=heat[0] if heat else None,
        hot_celsius=heat[1] if heat else None,
        throttled=any(
            _PROCESSOR_BRAKE.search(_first_line(device / "type")) and (_number(device / "cur_state") or 0) > 0
            for device in _within(thermal, "cooling_device*")
        ),
    )


def _sensors() -> Iterator[tuple[float, float]]:
    """Yield (temperature, limit) of the processor's sensors."""
    if not hasattr(psutil, "sensors_temperatures"):
        return
    try:
        chips = psutil.sensors_temperatures()
    except (OSError, ValueError):
        return  # some drivers offer a sensor and then fail to read it
    for chip, sensors in chips.items():
        if _PROCESSOR_SENSOR.search(chip):
            for sensor in sensors:
                # Drivers give 0 or absurd figures for a limit that they do not know.
                limits = [limit for limit in (sensor.high, sensor.critical) if limit and 40 < limit < 150]
                yield float(sensor.current), float(min(limits, default=HOT_CELSIUS))


def _thermal_zones(thermal: Path) -> Iterator[tuple[float, float]]:
    """Yield (temperature, limit) of the processor's zones: the limit is where the kernel begins to slow it down."""
    for zone in _within(thermal, "thermal_zone*"):
        millicelsius = _number(zone / "temp")
        if millicelsius is None or not _PROCESSOR_SENSOR.search(_first_line(zone / "type")):
            continue
        for kind in _within(zone, "trip_point_*_type"):
            limit = _number(kind.with_name(kind.name.replace("_type", "_temp")))
            if _first_line(kind) in {"passive", "hot"} and limit is not None and limit > 40_000:
                yield millicelsius / 1000, limit / 1000


def profile() -> DeviceProfile:
    """Look at the machine. Takes about a millisecond; never raises for what cannot be read."""
    logical = psutil.cpu_count(logical=True) or 1
    quota, limit, left = cgroup_limits()
    address_space = _address_space()
    if address_space and (left is None or address_space[1] < left):
        limit, left = address_space
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else logical
    memory_total, memory_available = _memory()
    battery = _battery()
    cpu_model, cpu_features = _processor(_CPU_INFO)
    return DeviceProfile(
        system=platform.system(),
        machine=platform.machine(),
        cpu_model=cpu_model,
        cpu_features=cpu_features,
        logical_cores=logical,
        physical_cores=_physical_cores() or logical,
        usable_cores=min(float(allowed), quota if quota is not None else float(allowed)),
        memory_total=memory_total,
        memory_available=memory_available,
        memory_limit=limit if limit is not None and limit < memory_total else None,
        memory_left=left if limit is not None and limit < memory_total else None,
        load_1min=_load(),
        battery_percent=battery[0] if battery else None,
        on_battery=battery is not None and not battery[1],
    )


def _memory() -> tuple[int, int]:
    """Return total and available bytes. Where a policy denies /proc/meminfo, files in the cache count as taken."""
    try:
        memory = psutil.virtual_memory()
    except OSError:
        page = os.sysconf("SC_PAGE_SIZE")
        return os.sysconf("SC_PHYS_PAGES") * page, os.sysconf("SC_AVPHYS_PAGES") * page
    return memory.total, memory.available


def _physical_cores() -> int | None:
    try:
        count: int | None = psutil.cpu_count(logical=False)
        return count
    except OSError:
        return None


def _load() -> float | None:
    try:
        return os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    except OSError:
        return None


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
    except (OSError, ValueError):
        return None  # some drivers offer a battery and then fail to read it
    if seen is None:
        return None
    # power_plugged is None where the system cannot tell; mains is the answer that changes nothing.
    return float(seen.percent), seen.power_plugged is not False


def _processor(info: Path) -> tuple[str, tuple[str, ...]]:
    """Return name and features of the first processor."""
    try:
        lines = info.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor(), ()  # not Linux
    said: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        said.setdefault(name.strip(), value.strip())
    flags = set((said.get("flags") or said.get("Features") or "").split())
    features = tuple(name for name, signs in _CPU_FEATURES.items() if signs & flags)
    return said.get("model name") or said.get("Model") or platform.processor(), features


def _address_space() -> tuple[int, int] | None:
    """Return the limit of this process's address space (``ulimit -v``) and what is left of it; None: there is none."""
    if os.name != "posix":
        return None
    import resource

    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return None if limit == resource.RLIM_INFINITY else (limit, max(0, limit - psutil.Process().memory_info().vms))


def _within(folder: Path, pattern: str) -> list[Path]:
    try:
        return list(folder.glob(pattern))
    except OSError:
        return []  # Android and strict policies let nobody look


def _first_line(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").partition("\n")[0].strip()
    except OSError:
        return ""


def _number(path: Path) -> float | None:
    try:
        return float(_first_line(path))
    except ValueError:
        return None
