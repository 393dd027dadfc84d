"""Named prefixes across the lives of one model's worker: handed over, computed when idle, saved.

A worker gets what was saved while it loads its model, before any request. What it does not
have is computed when nobody asks anything, and given up for the moment when somebody does:
what is done of it stays in the worker's cache. What was computed is saved.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Sequence
from typing import Any, Protocol

import msgspec

from agent.engine import frames
from agent.engine.worker_process import WorkerProcess
from agent.errors import OutriderError
from agent.records import StoredPrefix
from agent.telemetry import LOG
from agent.types import Message, ModelFile, NamedPrefix, Sampling

PROBE = Message("user", "a")  # in place of what a user will say
STUCK_S = 60.0  # an unconfirmed cancel means that the worker hangs
NEWS_S = 5.0  # after the computation of a prefix the worker tells of it at once, or it has no room for it
RESTORE_LIMIT_S = 1.0  # how long the first requests are held back at most


class PrefixShelf(Protocol):
    """Where saved prefixes lie. Every method may raise OutriderError."""

    async def find(self, name: str, model: str) -> StoredPrefix | None: ...
    def read(self, stored: StoredPrefix) -> AsyncIterator[bytes]: ...
    async def write(self, prefix: StoredPrefix, pieces: AsyncIterator[bytes]) -> bool: ...
    async def remove(self, names: Collection[str]) -> int: ...


class PrefixStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator sees of a named prefix in the present life of its worker."""

    name: str
    model: str
    state: frames.PrefixState = frames.PrefixState.LOADING
    tokens: int = 0
    message: str = ""


class PrefixKeeper:
    """The named prefixes of one model."""

    def __init__(self, prefixes: Sequence[NamedPrefix], shelf: PrefixShelf | None) -> None:
        """``shelf`` None: nothing is kept on disk."""
        self._prefixes = {prefix.name: prefix for prefix in prefixes}
        self._shelf = shelf
        self._statuses: dict[str, PrefixStatus] = {}
        # Begun with a worker that was lost before it said how it ended: what may have killed it is not begun again.
        self._under_way: set[str] = set()
        self._restoring: set[str] = set()  # the worker has not looked yet at what was saved of them
        self._restored = asyncio.Event()
        self._unfinished: set[str] = set()  # to be computed or saved in this life

    @property
    def unfinished(self) -> bool:
        """Whether something is still to be computed or saved, and would be lost with the worker."""
        return bool(self._unfinished)

    async def restored(self, worker: WorkerProcess) -> None:
        """Wait until the worker has taken what was saved, so that its first requests find it; not for long."""
        if not self._prefixes:
            return
        taken = asyncio.ensure_future(self._restored.wait())
        ends: list[asyncio.Future[Any]] = [taken, worker.lost]
        try:
            await asyncio.wait(ends, timeout=RESTORE_LIMIT_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            taken.cancel()

    def statuses(self) -> list[PrefixStatus]:
        """Return what an operator sees, in the order of the configuration."""
        return [
            self._statuses.get(one.name, PrefixStatus(name=one.name, model=one.model))
            for one in self._prefixes.values()
        ]

    def start(
        self, worker: WorkerProcess, file: ModelFile, busy: Callable[[], bool], change: Callable[[], Awaitable[None]]
    ) -> asyncio.Task[None]:
        """Look after the prefixes in one life of the worker, until it is lost: cancel the task then.

        ``busy`` says whether requests are under way, ``change`` returns when that may be otherwise.
        """
        task = asyncio.create_task(self._serve(worker, file, busy, change))
        task.add_done_callback(_tell_failure)
        return task

    async def _serve(
        self, worker: WorkerProcess, file: ModelFile, busy: Callable[[], bool], change: Callable[[], Awaitable[None]]
    ) -> None:
        doubtful, self._under_way = self._under_way, set()
        self._statuses.clear()
        self._restored, self._restoring = asyncio.Event(), set(self._prefixes)
        self._unfinished = set(self._prefixes)
        missing: asyncio.Queue[NamedPrefix] = asyncio.Queue()
        await worker.loading.wait()
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._listen(worker, file, missing, doubtful))
                for prefix in self._prefixes.values():
                    await self._hand_over(worker, file, prefix, doubtful)
                while True:
                    await self._compute(worker, await missing.get(), busy, change)
        finally:
            self._unfinished.clear()
            if not (worker.loaded and worker.lost.done()):
                self._under_way.clear()

    async def _hand_over(
        self, worker: WorkerProcess, file: ModelFile, prefix: NamedPrefix, doubtful: Collection[str]
    ) -> None:
        """Send a prefix, with what was saved of it."""
        stored = None
        if self._shelf is not None and prefix.name not in doubtful:
            with _told(prefix.name):
                stored = await self._shelf.find(prefix.name, prefix.model)
        if self._shelf is None or stored is None or stored.model_digest != file.sha256:
            await worker.send(frames.Pin(name=prefix.name, messages=prefix.messages))
            self._looked_at(prefix.name)
            return
        saved = frames.SavedPrefix(stored.fingerprint, stored.tokens, stored.parts)
        self._under_way.add(prefix.name)
        await worker.send(frames.Pin(name=prefix.name, messages=prefix.messages, saved=saved))
        left = saved.size
        with _told(prefix.name):
            async for data in self._shelf.read(stored):
                await worker.send(frames.PinData(data))
                left -= len(data)
        if left > 0:
            await worker.send(frames.PinData(b""))

    async def _listen(
        self,
        worker: WorkerProcess,
        file: ModelFile,
        missing: asyncio.Queue[NamedPrefix],
        doubtful: Collection[str],
    ) -> None:
        while True:
            news = await worker.prefix_news.get()
            prefix = self._prefixes[news.name]
            self._under_way.discard(prefix.name)
            self._looked_at(prefix.name)
            self._statuses[prefix.name] = PrefixStatus(
                name=prefix.name, model=prefix.model, state=news.state, tokens=news.tokens, message=news.message
            )
            match news.state:
                case frames.PrefixState.MISSING:
                    if news.message:
                        LOG.warning("prefix %s is computed again: %s", prefix.name, news.message)
                        await self._forget(prefix)
                    if prefix.name in doubtful:
                        LOG.error("prefix %s is not computed ahead: a worker was lost over it", prefix.name)
                    else:
                        missing.put_nowait(prefix)
                        continue
                case frames.PrefixState.REFUSED:
                    LOG.error("prefix %s cannot be kept ready: %s", prefix.name, news.message)
                case frames.PrefixState.COMPUTED if news.saved is not None:
                    await self._save(worker, file, prefix, news.saved)
            self._unfinished.discard(prefix.name)

    def _looked_at(self, name: str) -> None:
        self._restoring.discard(name)
        if not self._restoring:
            self._restored.set()

    async def _save(
        self, worker: WorkerProcess, file: ModelFile, prefix: NamedPrefix, saved: frames.SavedPrefix
    ) -> None:
        if self._shelf is None:
            return
        record = StoredPrefix(
            name=prefix.name,
            model=prefix.model,
            model_digest=file.sha256,
            fingerprint=saved.fingerprint,
            tokens=saved.tokens,
            parts=saved.parts,
            created_at_ms=time.time_ns() // 1_000_000,
        )
        with _told(prefix.name):
            if not await self._shelf.write(record, worker.prefix_pieces(prefix.name)):
                LOG.warning("prefix %s is not saved: its %d bytes are above the ceiling", prefix.name, saved.size)

    async def _forget(self, prefix: NamedPrefix) -> None:
        if self._shelf is not None:
            with _told(prefix.name):
                await self._shelf.remove([prefix.name])

    async def _compute(
        self,
        worker: WorkerProcess,
        prefix: NamedPrefix,
        busy: Callable[[], bool],
        change: Callable[[], Awaitable[None]],
    ) -> None:
        """Have a prefix computed while nobody asks anything."""
        ask = frames.Generate(id=0, messages=(*prefix.messages, PROBE), sampling=Sampling(max_tokens=1))
        while self._statuses[prefix.name].state is frames.PrefixState.MISSING:
            if busy() or not worker.ready:
                await change()
                continue
            self._under_way.add(prefix.name)
            computing = asyncio.create_task(_finish(worker, ask))
            try:
                while not computing.done() and not busy():
                    changed = asyncio.ensure_future(change())
                    await asyncio.wait((computing, changed), return_when=asyncio.FIRST_COMPLETED)
                    changed.cancel()
            finally:
                computing.cancel()
            if not worker.lost.done():
                self._under_way.discard(prefix.name)
            if not busy():
                asyncio.get_running_loop().call_later(NEWS_S, self._give_up, prefix.name)
                return

    def _give_up(self, name: str) -> None:
        if self._statuses[name].state is frames.PrefixState.MISSING:
            self._unfinished.discard(name)


def _tell_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()):
        LOG.error("named prefixes are not looked after any more: %s: %s", type(error).__name__, error)


async def _finish(worker: WorkerProcess, ask: frames.Generate) -> None:
    async with contextlib.aclosing(worker.converse(ask, None, STUCK_S)) as events:
        async for _ in events:
            pass


@contextlib.contextmanager
def _told(name: str) -> Iterator[None]:
    """Say what goes wrong on the disk: nobody waits for it, and the prefix is computed."""
    try:
        yield
    except OutriderError as error:
        LOG.warning("prefix %s: %s", name, error)
