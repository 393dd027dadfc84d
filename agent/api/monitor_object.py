"""What watches a calibration, as the API shows it."""

from __future__ import annotations

from typing import Any

import msgspec

from agent.confidence.calibration import Calibration
from agent.confidence.drift import WINDOW
from agent.confidence.monitor import Monitor, allowed_error


def monitor_object(monitor: Monitor, calibration: Calibration) -> dict[str, Any]:
    """Return checks, wealth, window and alarms; no scores of single answers."""
    return {
        "checked": monitor.wealth.checked,
        "wrong": monitor.wealth.wrong,
        "allowed_error": allowed_error(calibration),
        "log_wealth": monitor.wealth.log,
        "tightened": monitor.tightened,
        "threshold": monitor.threshold if monitor.tightened else calibration.threshold,
        "inputs": monitor.inputs,
        "windows": monitor.looks,
        "window_fill": len(monitor.lengths) / WINDOW,
        "shifts": [msgspec.to_builtins(one) for one in monitor.shifts],
        "alarms": [msgspec.to_builtins(one) for one in monitor.alarms],
    }
