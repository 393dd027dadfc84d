"""Keeps the worker of one model alive, and turns every way to fail into a value.

    starting -> ready -> backoff -> starting ...     a crash; the first restart is at once
                     |-> quarantined                 too many crashes of one model digest
                     '-> idle -> starting ...        unused for engine.idle_unload_s; the next request
    any      -> stopped                              the daemon stops, or the file is gone

The request in flight at a crash is never retried: a prompt that kills the worker would kill
it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from typing import Any

import msgspec

from agent.engine import echo, frames
from agent.engine.cache_scope import cache_scope
from agent.engine.device_verdicts import DeviceVerdicts
from agent.engine.load_order import load_order
from agent.engine.partial_answer import PartialAnswer
from agent.engine.patience import Patience
from agent.engine.prefix_keeper import PrefixKeeper
from agent.engine.worker_process import Ending, Lost, WorkerProcess
from agent.engine.worker_status import ModelTraits, WorkerState, WorkerStatus, rss_bytes
from agent.settings import EngineSettings
from agent.telemetry import LOG, METRICS
from agent.types import Delta, Failure, FailureKind, Generation, InferenceRequest, ModelFile, ModelFormat


class ModelSupervisor:
    """The worker of one model, through all its lives."""

    def __init__(
        self,
        file: ModelFile,
        settings: EngineSettings,
        command: Sequence[str],
        patience: Patience,
        crash_times: deque[float],
        resolve: Callable[[], ModelFile],
        keeper: PrefixKeeper,
        verdicts: DeviceVerdicts,
    ) -> None:
        """``crash_times`` (monotonic seconds) is shared by all supervisors of one digest."""
        self.prefixes = keeper
        self.state = WorkerState.STOPPED
        self._file = file
        self._settings = settings
        self._command = command
        self._patience = patience
        self._crash_times = crash_times
        self._resolve = resolve
        self._verdicts = verdicts
        self._worker: WorkerProcess | None = None
        self._ready: frames.Ready | None = None
        self._crashes = 0
        self._last_error = ""
        self.in_flight = 0
        self.requests = 0  # taken so far
        self._stopping = False
        self._unused = asyncio.Event()
        self._unused_timer: asyncio.TimerHandle | None = None
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def format(self) -> ModelFormat:
        return self._file.format

    @property
    def traits(self) -> ModelTraits | None:
        """What the model is, once it was loaded."""
        return self._ready.traits if self._ready else None

    def start(self) -> None:
        """Begin the first life."""
        self.state = WorkerState.STARTING
        self._task = asyncio.create_task(self._live(), name=f"engine {self._file.name}")

    def status(self) -> WorkerStatus:
        """Return what an operator sees."""
        told = self._ready or frames.Ready(runtime="", context_tokens=0, confinement=(), load_ms=0)
        active = min(self.in_flight, self._settings.parallel) if self.state is WorkerState.READY else 0
        pid = self._worker.pid if self._worker else None
        return WorkerStatus(
            state=self.state,
            pid=pid,
            model_digest=self._file.sha256,
            runtime=told.runtime,
            context_tokens=told.context_tokens,
            kv_tokens=told.kv_tokens,
            traits=told.traits,
            confinement=told.confinement,
            crashes=self._crashes,
            last_error=self._last_error,
            active=active,
            waiting=self.in_flight - active,
            rss_bytes=rss_bytes(pid),
            threads=self._worker.threads if self._worker else None,
            device=told.device,
        )

    async def stop(self, grace_s: float) -> None:
        """Refuse new requests, wait for those in flight, end the worker."""
        self._stopping = True
        self._notify()
        if self.state is WorkerState.READY:
            try:
                async with asyncio.timeout(grace_s):
                    while self.in_flight:
                        await self.next_change()
            except TimeoutError:
                LOG.warning("model %s: %d requests are cut off by the stop", self._file.name, self.in_flight)
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        self._enter(WorkerState.STOPPED)

    async def generate(
        self, request: InferenceRequest, left_ms: float | None
    ) -> AsyncGenerator[Delta | Generation, None]:
        """Yield deltas, then exactly one Generation."""
        answer = PartialAnswer(time.monotonic(), request.tools)
        deadline = None if left_ms is None else answer.started + left_ms / 1000
        if self._full:
            yield self._finish(answer, self._busy())
            return
        with self._place():
            scope = cache_scope(request, self._settings.share_prefixes)
            if echo.is_scored(request):
                scored = await self._scored(msgspec.structs.replace(echo.question(request), scope=scope), deadline)
                answer.prompt = scored.prompt if request.echo else ()
                ended = None if scored.failure else echo.whole_answer(request, scored)
                if ended and (delta := answer.last(ended.text, ended.tokens)):
                    yield delta
                if scored.failure or ended:
                    yield self._finish(answer, scored.failure, ended)
                    return
            ask = frames.Generate(
                id=0,
                messages=request.messages,
                prompt=request.prompt,
                suffix=request.suffix,
                scope=scope,
                sampling=request.sampling,
                response_format=request.response_format,
                tools=request.tools,
                thinking=request.thinking,
                prediction=request.prediction,
            )
            async with contextlib.aclosing(self._converse(ask, deadline, answer)) as events:
                async for event in events:
                    yield event

    async def score(self, ask: frames.Score, left_ms: float | None) -> frames.Scored:
        """Return the scores. Problems end in ``Scored.failure``; being cancelled cancels."""
        deadline = None if left_ms is None else time.monotonic() + left_ms / 1000
        if self._full:
            return frames.Scored(id=0, failure=self._busy())
        with self._place():
            return await self._scored(ask, deadline)

    async def encode(self, ask: frames.Encode, left_ms: float) -> frames.Encoded:
        """Return rows or spans. Problems end in ``Encoded.failure``; being cancelled cancels."""
        deadline = time.monotonic() + left_ms / 1000
        if self._full:
            return frames.Encoded(id=0, failure=self._busy())
        with self._place():
            async with contextlib.aclosing(self._events(ask, deadline)) as events:
                async for event in events:
                    found = frames.Encoded(id=0, failure=event) if isinstance(event, Failure) else event
                    assert isinstance(found, frames.Encoded)
                    METRICS.count("encodings", model=self._file.name, outcome=_outcome(found))
                    return found
        raise AssertionError("the events of a request end in one that says so")

    @property
    def _room(self) -> int:
        return self._settings.parallel + self._settings.waiting_line

    @property
    def _full(self) -> bool:
        return self.in_flight >= self._room

    def _busy(self) -> Failure:
        return Failure(FailureKind.BUSY, f"{self._room} requests are running or waiting; try again shortly")

    @contextlib.contextmanager
    def _place(self) -> Iterator[None]:
        self.in_flight += 1
        self.requests += 1
        self._watch_use()
        self._notify()
        try:
            yield
        finally:
            self.in_flight -= 1
            self._watch_use()
            self._notify()

    async def _scored(self, ask: frames.Score, deadline: float | None) -> frames.Scored:
        async with contextlib.aclosing(self._events(ask, deadline)) as events:
            async for event in events:
                if isinstance(event, frames.Scored | Failure):
                    METRICS.count("scores", model=self._file.name, outcome=_outcome(event))
                    return event if isinstance(event, frames.Scored) else frames.Scored(id=0, failure=event)
        raise AssertionError("the events of a request end in one that says so")

    async def _converse(
        self, ask: frames.Generate, deadline: float | None, answer: PartialAnswer
    ) -> AsyncGenerator[Delta | Generation, None]:
        async with contextlib.aclosing(self._events(ask, deadline)) as events:
            async for event in events:
                match event:
                    case frames.Piece():
                        yield answer.add(event.text, event.tokens, event.thought)
                    case frames.Ended():
                        if (delta := answer.last(event.text, event.tokens, event.thought)) is not None:
                            yield delta
                        yield self._finish(answer, event.failure, event)
                    case Failure():
                        yield self._finish(answer, event)

    async def _events(
        self, ask: frames.Ask, deadline: float | None
    ) -> AsyncGenerator[frames.Piece | Ending | Failure, None]:
        """Yield what comes back of a request, up to the one event that ends it."""
        try:
            worker = await self._running_worker(deadline)
        except _Unavailable as error:
            yield error.failure
            return
        async with contextlib.aclosing(worker.converse(ask, deadline, self._patience.stuck_s)) as events:
            async for event in events:
                yield event

    async def _running_worker(self, deadline: float | None) -> WorkerProcess:
        try:
            async with asyncio.timeout(None if deadline is None else max(0.0, deadline - time.monotonic())):
                while True:
                    if self._stopping or self.state is WorkerState.STOPPED:
                        raise _Unavailable(FailureKind.CRASH, f"the engine is stopped. {self._last_error}".strip())
                    if self.state is WorkerState.QUARANTINED:
                        raise _Unavailable(FailureKind.QUARANTINED, self._quarantine_message())
                    worker = self._worker
                    if self.state is WorkerState.READY and worker is not None and not worker.lost.done():
                        return worker
                    await self.next_change()
        except TimeoutError:
            raise _Unavailable(FailureKind.TIMEOUT, "the deadline passed before the model was ready") from None

    def _quarantine_message(self) -> str:
        return (
            f"model {self._file.name} lost its worker {self._settings.crashes_to_quarantine} times and is not started "
            f"again before the daemon is; the last: {self._last_error.partition(chr(10))[0]}"
        )

    def _finish(self, answer: PartialAnswer, failure: Failure | None, ended: frames.Ended | None = None) -> Generation:
        METRICS.count("generations", model=self._file.name, outcome=failure.kind if failure else "ok")
        METRICS.count("generated_tokens", len(answer.tokens), model=self._file.name)
        if ended:
            METRICS.count("drafted_tokens", ended.accepted_tokens, model=self._file.name, outcome="accepted")
            METRICS.count("drafted_tokens", ended.rejected_tokens, model=self._file.name, outcome="rejected")
        told = answer.generation(ended, failure)
        runtime = self._ready.runtime if self._ready else ""
        return msgspec.structs.replace(told, model=self._file.name, model_digest=self._file.sha256, runtime=runtime)

    # The lives of the worker.

    async def _live(self) -> None:
        failures_in_a_row, first = 0, True
        while not self._quarantined():
            if failures_in_a_row > 1:
                self._enter(WorkerState.BACKOFF)
                exponent = min(failures_in_a_row - 2, 16)
                await asyncio.sleep(min(self._patience.backoff_cap_s, self._patience.backoff_base_s * 2**exponent))
            try:
                if not first:  # the file may be another one by now, or altered
                    self._file = await asyncio.to_thread(self._resolve)
                first = False
                served = await self._one_life()
            except Exception as error:
                # Whatever it is, those who wait must hear of it: nobody awaits this task.
                LOG.error("model %s: the engine gives up: %s", self._file.name, error)
                self._last_error = str(error)
                self._enter(WorkerState.STOPPED)
                return
            failures_in_a_row = 1 if served else failures_in_a_row + 1
            if self.state is WorkerState.IDLE:
                failures_in_a_row = 0
                while not self.in_flight:
                    await self.next_change()
        LOG.error("model %s is quarantined: its worker crashed too often", self._file.name)
        self._enter(WorkerState.QUARANTINED)

    async def _one_life(self) -> bool:
        """Run one worker until it is lost. Returns whether it ever was ready."""
        self._enter(WorkerState.STARTING)
        served = False
        try:
            worker = await WorkerProcess.spawn(self._command)
        except OSError as error:
            self._record_crash(Lost(f"cannot be started: {error.strerror}"))
            return False
        self._worker = worker
        keeping = self.prefixes.start(worker, self._file, lambda: self.in_flight > 0, self.next_change)
        try:
            known = await asyncio.to_thread(self._verdicts.known, self._file.sha256)
            order = load_order(self._file, self._settings, known)
            self._ready = await worker.load(order, self._settings.load_timeout_s)
            served = True
            await asyncio.to_thread(self._verdicts.loaded, self._file.name, self._ready.device)
            await self.prefixes.restored(worker)
            self._enter(WorkerState.READY)
            if lost := await self._lost_or_unused(worker):
                raise lost
        except Lost as lost:
            self._record_crash(lost)
            on = self._ready.device.used if served and self._ready and self._ready.device else worker.trying
            await asyncio.to_thread(self._verdicts.lost, on, str(lost))
        finally:
            self._worker = None
            keeping.cancel()
            await worker.close(self._patience.leave_s)
            await asyncio.wait((keeping,))
        return served

    async def _lost_or_unused(self, worker: WorkerProcess) -> Lost | None:
        """Wait for the end of a life; None: nobody has needed it for long, and the state is idle."""
        self._unused.clear()
        self._watch_use()
        unused = asyncio.create_task(self._unused.wait())
        ends: list[asyncio.Future[Any]] = [worker.lost, unused]
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            unused.cancel()
        return worker.lost.result() if worker.lost.done() and not self._unused.is_set() else None

    def _watch_use(self) -> None:
        """Have the worker leave when nothing comes for a while from now on."""
        if self._unused_timer is not None:
            self._unused_timer.cancel()
            self._unused_timer = None
        if self._settings.idle_unload_s and not self.in_flight and self.state is WorkerState.READY:
            loop = asyncio.get_running_loop()
            self._unused_timer = loop.call_later(self._settings.idle_unload_s, self._unload)

    def _unload(self) -> None:
        if self.prefixes.unfinished:
            self._watch_use()
        elif self.state is WorkerState.READY and not self.in_flight:
            LOG.info("model %s leaves the memory: nobody has used it for a while", self._file.name)
            # At once, so that a request that comes now waits for the next life.
            self._enter(WorkerState.IDLE)
            self._unused.set()

    def _record_crash(self, lost: Lost) -> None:
        self._crashes += 1
        self._crash_times.append(time.monotonic())
        self._last_error = f"the worker {lost}\n{lost.last_words}".strip()
        METRICS.count("worker_crashes", model=self._file.name)
        # The tail of stderr stays out of the log: it is shown to whoever may see the status.
        LOG.warning("model %s: worker lost, crash %d", self._file.name, self._crashes)

    def _quarantined(self) -> bool:
        since = time.monotonic() - self._settings.crash_window_s
        while self._crash_times and self._crash_times[0] < since:
            self._crash_times.popleft()
        return len(self._crash_times) >= self._settings.crashes_to_quarantine

    def _enter(self, state: WorkerState) -> None:
        self.state = state
        self._notify()

    def _notify(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def next_change(self) -> None:
        """Return when the state or the number of requests in flight has changed."""
        await self._changed.wait()


class _Unavailable(Exception):
    def __init__(self, kind: FailureKind, message: str) -> None:
        super().__init__(message)
        self.failure = Failure(kind, message)


def _outcome(event: frames.Scored | frames.Encoded | Failure) -> str:
    failure = event if isinstance(event, Failure) else event.failure
    return failure.kind if failure else "ok"
