"""The block of ``doctor`` about the machine itself."""

from __future__ import annotations

from collections.abc import Iterator

from agent import device
from agent.cli.devices import listed
from agent.cli.finding import NOTE, OK, Finding
from agent.cli.output import size

BUSY_LOAD_PER_CORE = 2.0


def machine_findings() -> Iterator[Finding]:
    """Look at cores, memory, power and which devices can run encoders. About a second."""
    seen = device.profile()
    yield Finding(
        OK,
        "machine",
        f"{seen.cpu_model or seen.machine}, {seen.physical_cores} cores, {seen.usable_cores:g} usable here, "
        f"{seen.decode_threads} for decoding",
    )
    features = ", ".join(seen.cpu_features) or "the system does not say what it can do"
    yield Finding(OK, "processor", f"{seen.machine}: {features}")
    limit = f"; limited to {size(seen.memory_limit)}" if seen.memory_limit else ""
    yield Finding(OK, "memory", f"{size(seen.memory_total)}, {size(seen.memory_usable)} free{limit}")
    yield from _devices()
    if seen.battery_percent is not None:
        yield Finding(OK, "battery", f"{seen.battery_percent:.0f} %{', in use' if seen.on_battery else ''}")
    if seen.load_1min is not None and seen.load_1min > BUSY_LOAD_PER_CORE * seen.usable_cores:
        yield Finding(
            NOTE,
            "load",
            f"{seen.load_1min:.1f} on {seen.usable_cores:g} cores: answers will be slow",
            "stop other work, or lower engine.threads",
        )
    if seen.on_battery:
        yield Finding(NOTE, "power", "on battery: targets are probed less often (connectivity.probe_cap_battery_s)")


def _devices() -> Iterator[Finding]:
    found = listed()
    there = ", ".join(f"{one.kind} by {one.provider} {one.version} ({one.device})" for one in found.devices)
    yield Finding(OK, "devices", f"for encoders: {there or 'none'}")
    for problem in found.problems:
        yield Finding(NOTE, "devices", problem, 'reinstall it, or set engine.devices = "cpu"')
