"""What ONNX Runtime could run a model on: asked in a short child, because a driver may crash its process.

A provider that is listed is no proof that its hardware is there: one for an NPU may stand on the processor. What
counts is ``kind``.
"""

from __future__ import annotations

import importlib.util
import subprocess

import msgspec

from agent import executable
from agent.errors import EngineFailed

PATIENCE_S = 60.0


class ExecutionDevice(msgspec.Struct, frozen=True, kw_only=True):
    """One device behind one provider."""

    provider: str  # CPUExecutionProvider
    kind: str  # of the hardware: cpu, gpu or npu
    vendor: str


def execution_devices() -> tuple[ExecutionDevice, ...]:
    """Return what is there; nothing where ONNX Runtime is not installed. About a second.

    Raises EngineFailed when the child breaks.
    """
    if importlib.util.find_spec("onnxruntime") is None:
        return ()
    try:
        ended = subprocess.run(
            executable.command("execution-devices"), capture_output=True, check=False, timeout=PATIENCE_S
        )
    except subprocess.TimeoutExpired as error:
        raise EngineFailed(f"ONNX Runtime does not list its devices within {PATIENCE_S:.0f} s") from error
    if ended.returncode:
        last = ended.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
        raise EngineFailed(f"ONNX Runtime cannot list its devices: status {ended.returncode} {''.join(last)[-200:]}")
    return msgspec.json.decode(ended.stdout, type=tuple[ExecutionDevice, ...])
