"""What is learned of tasks, kept: it is on disk before requests see it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import TypeVar

import msgspec

from agent.confidence.appraisers import Appraiser
from agent.confidence.calibration import Calibration
from agent.confidence.heads import Head
from agent.confidence.monitor import Monitor
from agent.errors import StorageError
from agent.records import Feedback
from agent.storage.task_store import TaskStore
from agent.task_book import LabelMeans, TaskBook
from agent.telemetry import LOG

Value = TypeVar("Value", bound=msgspec.Struct)
MOST_EARLIER = 20  # calibrations of a task that are looked through for one that fits again


class ExampleUse(StrEnum):
    """What examples of a task did."""

    TEACH = "teach"
    CALIBRATE = "calibrate"


class StoredExample(msgspec.Struct, frozen=True, array_like=True):
    """An example as it is kept, so that another model can be taught and calibrated with it."""

    input: str
    answer: str | None = None  # None: nobody said what is right


class TaskMemory:
    """Puts into a TaskBook what it keeps in storage."""

    def __init__(self, book: TaskBook, store: TaskStore, now_ms: Callable[[], int]) -> None:
        self.book = book
        self._store = store
        self._now_ms = now_ms
        self._saving: asyncio.Future[None] | None = None  # kept: else the loop may forget it

    async def load(self) -> None:
        """Take over what is stored. What another release wrote and this one cannot read is named in the log."""
        stored = await self._store.all()
        self.book.put(
            heads=_decoded(stored.heads, Head),
            appraisers=_decoded(stored.appraisers, Appraiser),
            calibrations=_decoded(stored.calibrations, Calibration),
            means=_decoded(stored.means, LabelMeans),
        )
        self.book.monitors.put(_decoded(stored.monitors, Monitor))

    async def teach(self, head: Head) -> None:
        """Keep a head; a calibration made with an earlier one ends."""
        head = msgspec.structs.replace(head, created_at_ms=self._now_ms())
        await self._store.put_head(head.task, msgspec.msgpack.encode(head), now_ms=head.created_at_ms)
        self.book.forget(head.task, only_calibration=True)
        self.book.put(heads=[head])

    async def teach_appraiser(self, appraiser: Appraiser) -> None:
        """Keep an appraiser; a calibration made with an earlier one ends."""
        appraiser = msgspec.structs.replace(appraiser, created_at_ms=self._now_ms())
        await self._store.put_appraiser(
            appraiser.task, msgspec.msgpack.encode(appraiser), now_ms=appraiser.created_at_ms
        )
        self.book.forget(appraiser.task, only_calibration=True)
        self.book.put(appraisers=[appraiser])

    async def certify(self, calibration: Calibration) -> None:
        """Keep a calibration; it holds in place of an earlier one."""
        calibration = msgspec.structs.replace(calibration, created_at_ms=self._now_ms())
        body = msgspec.msgpack.encode(calibration)
        await self._store.put_calibration(calibration.task, calibration.id, body, now_ms=calibration.created_at_ms)
        self.book.put(calibrations=[calibration])

    async def keep_examples(self, task: str, use: ExampleUse, found: Sequence[StoredExample]) -> None:
        """Keep the examples of a task in place of earlier ones of that use; none: drop those."""
        body = msgspec.msgpack.encode(list(found)) if found else b""
        inputs = [one.input for one in found]
        await self._store.put_examples(task, use.value, body, inputs=inputs, now_ms=self._now_ms())

    async def examples(self, task: str, use: ExampleUse) -> tuple[StoredExample, ...]:
        """Return what is kept; empty for nothing."""
        body = await self._store.examples(task, use.value)
        if not body:
            return ()
        try:
            return tuple(msgspec.msgpack.decode(body, type=list[StoredExample]))
        except msgspec.DecodeError as error:
            raise StorageError(f"the stored examples of task {task} cannot be read: {error}") from error

    async def calibrate_again(self, task: str, task_digest: str, model_digest: str) -> Calibration | None:
        """Have the last calibration of a task that was made with this model hold again; None where there is none.

        One whose promise the monitor saw broken never holds again.
        """
        head = self.book.head(task)
        stored = await self._store.calibrations_of(task, MOST_EARLIER)
        for one in _decoded(stored, Calibration):
            of_head = one.key.estimator.partition(":")[2]
            if (one.key.task_digest, one.key.model_digest, of_head) == (
                task_digest,
                model_digest,
                head.id if head else "",
            ):
                await self.certify(one)
                return one
        return None

    async def forget(self, task: str) -> None:
        """Drop all that was learned of a task."""
        await self._store.forget(task, now_ms=self._now_ms())
        self.book.forget(task)

    def on_feedback(self, feedback: Feedback) -> None:
        """Let the monitor of a task know of an answer that was judged. A promise that ends by that is stored at once."""
        if feedback.task is not None and self.book.monitors.told(self.book.calibration(feedback.task), feedback):
            self._saving = asyncio.ensure_future(self._save_now())

    async def _save_now(self) -> None:
        try:
            await self.save()
        except StorageError as error:
            LOG.error("a threshold was tightened and is not stored yet: %s", error)

    async def save(self) -> None:
        """Keep the monitors and the mean label scores that have changed."""
        watched = self.book.monitors.changed()
        await self._store.put_monitors(
            {one.task: msgspec.msgpack.encode(one) for one in watched},
            broken=[one.calibration for one in watched if one.tightened],
            now_ms=self._now_ms(),
        )
        self.book.monitors.stored(watched)
        means = self.book.changed_means()
        await self._store.put_means({one.task: msgspec.msgpack.encode(one) for one in means})
        self.book.stored_means(means)


def _decoded(bodies: tuple[bytes, ...], kind: type[Value]) -> list[Value]:
    found = []
    for body in bodies:
        try:
            found.append(msgspec.msgpack.decode(body, type=kind))
        except msgspec.DecodeError as error:
            LOG.error("a stored %s cannot be read and is left out: %s", kind.__name__.lower(), error)
    return found
