"""How long calls wait for somebody else's answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager


class Holds:
    """Bounds of what only waits for somebody else's answer. A stop of the daemon ends them all."""

    def __init__(self) -> None:
        self._bounds: set[asyncio.Timeout] = set()
        self.ended = False

    @asynccontextmanager
    async def within(self, left_s: float | None) -> AsyncGenerator[None]:
        """Raise TimeoutError after ``left_s`` seconds (None: never), or at once when holds end."""
        async with asyncio.timeout(0 if self.ended else left_s) as bound:
            self._bounds.add(bound)
            try:
                yield
            finally:
                self._bounds.discard(bound)

    def end(self) -> None:
        """End all holds, now and later."""
        self.ended = True
        for bound in self._bounds:
            if not bound.expired():
                bound.reschedule(asyncio.get_running_loop().time())
