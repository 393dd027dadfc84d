"""``<executable> execution-devices``: prints what ONNX Runtime finds, as a JSON list."""

from __future__ import annotations

import os

import msgspec
import onnxruntime

from agent.engine.worker import take_over_stdout
from agent.execution_devices import ExecutionDevice


def main() -> int:
    """Print the list. Returns the exit status."""
    output = take_over_stdout()  # what a driver prints is no JSON
    found = [
        ExecutionDevice(
            provider=seen.ep_name, kind=seen.device.type.name.lower(), vendor=seen.device.vendor or seen.ep_vendor
        )
        for seen in onnxruntime.get_ep_devices()
    ]
    os.write(output, msgspec.json.encode(found))
    return 0
