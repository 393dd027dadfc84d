"""A clock that is set while this process lives: what waits keeps the time that it had left.

A device without a battery-backed clock wakes up in the past and is set by the network later;
that alone must not expire a queue, nor take a lease from a send that is under way.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from agent.settings import QueueSettings
from agent.storage import statements as sql
from agent.storage.connection import Connection
from agent.storage.database import Database
from agent.storage.retention import Retention
from agent.telemetry import LOG

JUMP_MS = 60_000  # what is less is taken for time; a lease outlives the longest send by as much

Uptime = Callable[[], int]

_UPTIME_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def uptime_ms() -> int:
    """Return a time in milliseconds that nobody sets, with the time that the device has slept."""
    return time.clock_gettime_ns(_UPTIME_CLOCK) // 1_000_000


class Clock:
    """Compares the wall clock with the uptime. Without an uptime the wall clock is believed."""

    def __init__(
        self, database: Database, queue: QueueSettings, retention: Retention, now_ms: int, uptime: Uptime | None
    ) -> None:
        self._db = database
        self._ttl_ms = queue.ttl_s * 1000
        self._retention = retention
        self._uptime = uptime
        self._seen = (now_ms, uptime() if uptime else 0)
        self._following = asyncio.Lock()

    async def follow(self, now_ms: int) -> None:
        """Look at the clock; if it was set since the last look, move every moment that is still to come along."""
        if self._uptime is None:
            return
        async with self._following:
            up_ms = self._uptime()
            jump_ms = (now_ms - self._seen[0]) - (up_ms - self._seen[1])
            if abs(jump_ms) >= JUMP_MS:
                await self._shift(jump_ms, now_ms)
                LOG.warning("the clock was set by %d s: what waits keeps the time it had left", jump_ms // 1000)
            self._seen = (now_ms, up_ms)

    async def _shift(self, jump_ms: int, now_ms: int) -> None:
        parameters = {"jump_ms": jump_ms, "now_ms": now_ms}
        times = parameters | {"longest_ms": self._ttl_ms}
        texts = parameters | {"longest_ms": self._retention.longest_ms}

        def work(connection: Connection) -> None:
            connection.execute(sql.ESCALATION_SHIFT, times)
            connection.execute(sql.REQUEST_SHIFT, texts)

        await self._db.write(work)
