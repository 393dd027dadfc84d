"""The devices of this machine for encoders, and what was proved of them, as ``doctor`` and ``models show`` tell it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec

from agent import executable
from agent.compute import DeviceVerdict, OfferedDevices
from agent.engine.device_verdicts import DeviceVerdicts

LIST_LIMIT_S = 30.0  # a driver that is asked for its devices may hang


def verdicts(data_path: Path) -> tuple[DeviceVerdict, ...]:
    """Return what was proved of all models on all devices."""
    return DeviceVerdicts(data_path).all()


def verdict_lines(data_path: Path, model_digest: str) -> Iterator[tuple[str, str]]:
    """Yield what was proved of a model on each device: name and text."""
    for one in DeviceVerdicts(data_path).known(model_digest):
        yield f"on {one.kind} by {one.provider}", f"{'holds' if one.holds else 'refused'}: {one.reason}"


def listed() -> OfferedDevices:
    """Ask the providers in a child, which a driver may end. About a second."""
    command = executable.command("list-devices")
    try:
        done = subprocess.run(command, capture_output=True, check=False, timeout=LIST_LIMIT_S)
    except subprocess.TimeoutExpired:
        return OfferedDevices(problems=(f"the providers did not list their devices within {LIST_LIMIT_S:g} s",))
    try:
        return msgspec.json.decode(done.stdout, type=OfferedDevices)
    except msgspec.DecodeError:
        last = done.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2]
        return OfferedDevices(problems=(f"the devices cannot be listed (exit status {done.returncode}): {last[:200]}",))
