"""What is learned of tasks, kept: it is on disk before requests see it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import msgspec

from agent.confidence.calibration import Calibration
from agent.confidence.heads import Head
from agent.storage.task_store import TaskStore
from agent.task_book import LabelMeans, TaskBook
from agent.telemetry import LOG

Value = TypeVar("Value", bound=msgspec.Struct)


class TaskMemory:
    """Puts into a TaskBook what it keeps in storage."""

    def __init__(self, book: TaskBook, store: TaskStore, now_ms: Callable[[], int]) -> None:
        self.book = book
        self._store = store
        self._now_ms = now_ms

    async def load(self) -> None:
        """Take over what is stored. What another release wrote and this one cannot read is named in the log."""
        stored = await self._store.all()
        self.book.put(
            heads=_decoded(stored.heads, Head),
            calibrations=_decoded(stored.calibrations, Calibration),
            means=_decoded(stored.means, LabelMeans),
        )

    async def teach(self, head: Head) -> None:
        """Keep a head; a calibration made with an earlier one ends."""
        head = msgspec.structs.replace(head, created_at_ms=self._now_ms())
        await self._store.put_head(head.task, msgspec.msgpack.encode(head), now_ms=head.created_at_ms)
        self.book.forget(head.task, only_calibration=True)
        self.book.put(heads=[head])

    async def certify(self, calibration: Calibration) -> None:
        """Keep a calibration; it holds in place of an earlier one."""
        calibration = msgspec.structs.replace(calibration, created_at_ms=self._now_ms())
        body = msgspec.msgpack.encode(calibration)
        await self._store.put_calibration(calibration.task, calibration.id, body, now_ms=calibration.created_at_ms)
        self.book.put(calibrations=[calibration])

    async def forget(self, task: str) -> None:
        """Drop all that was learned of a task."""
        await self._store.forget(task, now_ms=self._now_ms())
        self.book.forget(task)

    async def save_means(self) -> None:
        """Keep the mean label scores that have changed."""
        changed = self.book.changed_means()
        await self._store.put_means({one.task: msgspec.msgpack.encode(one) for one in changed})


def _decoded(bodies: tuple[bytes, ...], kind: type[Value]) -> list[Value]:
    found = []
    for body in bodies:
        try:
            found.append(msgspec.msgpack.decode(body, type=kind))
        except msgspec.DecodeError as error:
            LOG.error("a stored %s cannot be read and is left out: %s", kind.__name__.lower(), error)
    return found
