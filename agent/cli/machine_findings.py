"""The block of ``doctor`` about the machine itself."""

from __future__ import annotations

from collections.abc import Iterator

from agent import device
from agent.cli.finding import NOTE, OK, Finding
from agent.cli.output import size
from agent.errors import EngineFailed
from agent.execution_devices import execution_devices

BUSY_LOAD_PER_CORE = 2.0


def machine_findings() -> Iterator[Finding]:
    """Look at cores, memory, power and what ONNX Runtime can run on. About a second."""
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
    yield _providers()
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


def _providers() -> Finding:
    try:
        found = execution_devices()
    except EngineFailed as error:
        return Finding(NOTE, "execution providers", str(error), "GGUF models are not concerned")
    told = ", ".join(f"{one.provider} on {one.kind} ({one.vendor})" for one in found)
    return Finding(OK, "execution providers", told or "ONNX Runtime is not installed")
