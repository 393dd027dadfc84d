"""Who waits for which request. Told after the commit, on the event loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator


class Changes:
    """Wakes those who watch a request. It carries no values: a watcher reads the committed state."""

    def __init__(self) -> None:
        self._watchers: dict[str, set[asyncio.Event]] = {}

    @contextlib.contextmanager
    def watcher(self, request_id: str) -> Iterator[asyncio.Event]:
        """Give an event that is set at each change of ``request_id``."""
        event = asyncio.Event()
        self._watchers.setdefault(request_id, set()).add(event)
        try:
            yield event
        finally:
            watchers = self._watchers[request_id]
            watchers.discard(event)
            if not watchers:
                del self._watchers[request_id]

    def publish(self, *request_ids: str) -> None:
        """Wake the watchers of these requests."""
        for request_id in request_ids:
            for event in self._watchers.get(request_id, ()):
                event.set()
