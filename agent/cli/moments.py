"""Spans of time as a person writes them: 7d, 12h, 2026-11-01, 2026-11-01T08:00."""

from __future__ import annotations

import re
import time
from datetime import datetime

from agent.errors import InvalidRequest

_SPAN = re.compile(r"(?P<count>[0-9]{1,6})(?P<unit>[mhdw])")
_SECONDS = {"m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}


def moment_ms(text: str, option: str) -> int:
    """Return a moment, in milliseconds since the epoch: that long ago, or a date in local time. Raises InvalidRequest."""
    if found := _SPAN.fullmatch(text):
        return max(0, time.time_ns() // 1_000_000 - int(found["count"]) * _SECONDS[found["unit"]] * 1000)
    try:
        return max(0, int(datetime.fromisoformat(text).astimezone().timestamp() * 1000))
    except (ValueError, OverflowError, OSError) as error:
        raise InvalidRequest(
            f"{option}: {text[:40]!r} is no moment: write 7d, 12h, 30m, 4w or a date as 2026-11-01", param=option
        ) from error
