"""Keeps the worker of one model alive, and turns every way to fail into a value.

    starting -> ready -> backoff -> starting ...     a crash; the first restart is at once
                     '-> quarantined                 too many crashes of one model digest
    any      -> stopped                              the daemon stops, or the file is gone

The request in flight at a crash is never retried: a prompt that kills the worker would kill
it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from enum import StrEnum

import msgspec
import psutil

from agent.engine import frames
from agent.engine.call_markup import CallReader
from agent.engine.worker_process import EXPIRED, Inbox, Lost, WorkerProcess
from agent.settings import EngineSettings
from agent.structure import CallPiece
from agent.telemetry import LOG, METRICS
from agent.types import Delta, Failure, FailureKind, Generation, InferenceRequest, ModelFile, Token


class WorkerState(StrEnum):
    """Life of the worker of one model."""

    STARTING = "starting"
    READY = "ready"
    BACKOFF = "backoff"
    QUARANTINED = "quarantined"
    STOPPED = "stopped"


class WorkerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator sees of one model's worker."""

    state: WorkerState
    pid: int | None = None
    model_digest: str = ""
    runtime: str = ""
    context_tokens: int = 0  # of one request; 0 until the model is loaded
    confinement: tuple[str, ...] = ()
    crashes: int = 0  # since the daemon started
    last_error: str = ""  # reason and tail of stderr
    active: int = 0
    waiting: int = 0
    rss_bytes: int | None = None


class Patience(msgspec.Struct, frozen=True, kw_only=True):
    """How long the supervisor waits, seconds."""

    backoff_base_s: float = 0.5  # before the second restart in a row; doubles
    backoff_cap_s: float = 30.0
    stuck_s: float = 60.0  # an unconfirmed cancel means that the worker hangs
    leave_s: float = 2.0  # from the order to leave to the kill


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
    ) -> None:
        """``crash_times`` (monotonic seconds) is shared by all supervisors of one digest."""
        self.state = WorkerState.STOPPED
        self._file = file
        self._settings = settings
        self._command = command
        self._patience = patience
        self._crash_times = crash_times
        self._resolve = resolve
        self._worker: WorkerProcess | None = None
        self._ready: frames.Ready | None = None
        self._crashes = 0
        self._last_error = ""
        self._in_flight = 0
        self._stopping = False
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin the first life."""
        self.state = WorkerState.STARTING
        self._task = asyncio.create_task(self._live(), name=f"engine {self._file.name}")

    def status(self) -> WorkerStatus:
        """Return what an operator sees."""
        active = min(self._in_flight, self._settings.parallel) if self.state is WorkerState.READY else 0
        pid = self._worker.pid if self._worker else None
        return WorkerStatus(
            state=self.state,
            pid=pid,
            model_digest=self._file.sha256,
            runtime=self._ready.runtime if self._ready else "",
            context_tokens=self._ready.context_tokens if self._ready else 0,
            confinement=self._ready.confinement if self._ready else (),
            crashes=self._crashes,
            last_error=self._last_error,
            active=active,
            waiting=self._in_flight - active,
            rss_bytes=_rss_bytes(pid),
        )

    async def stop(self, grace_s: float) -> None:
        """Refuse new requests, wait for those in flight, end the worker."""
        self._stopping = True
        self._notify()
        if self.state is WorkerState.READY:
            try:
                async with asyncio.timeout(grace_s):
                    while self._in_flight:
                        await self._next_change()
            except TimeoutError:
                LOG.warning("model %s: %d requests are cut off by the stop", self._file.name, self._in_flight)
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        self._enter(WorkerState.STOPPED)

    async def generate(
        self, request: InferenceRequest, left_ms: float | None
    ) -> AsyncGenerator[Delta | Generation, None]:
        """Yield deltas, then exactly one Generation."""
        started = time.monotonic()
        deadline = None if left_ms is None else started + left_ms / 1000
        room = self._settings.parallel + self._settings.waiting_line
        if self._in_flight >= room:
            yield self._failure(FailureKind.BUSY, f"{room} requests are running or waiting; try again shortly")
            return
        self._in_flight += 1
        answer = _Answer(started, CallReader() if request.tools and request.tools.callable else None)
        try:
            try:
                worker = await self._running_worker(deadline)
            except _Unavailable as error:
                yield self._finish(answer, error.failure)
                return
            left_ms = None if deadline is None else max(0.0, (deadline - time.monotonic()) * 1000)
            ask = frames.Generate(
                id=0,
                messages=request.messages,
                sampling=request.sampling,
                response_format=request.response_format,
                tools=request.tools,
                deadline_ms=left_ms,
            )
            async with contextlib.aclosing(self._converse(worker, ask, deadline, answer)) as events:
                async for event in events:
                    yield event
        finally:
            self._in_flight -= 1
            self._notify()

    async def _converse(
        self, worker: WorkerProcess, ask: frames.Generate, deadline: float | None, answer: _Answer
    ) -> AsyncGenerator[Delta | Generation, None]:
        try:
            request_id, inbox = worker.submit(ask)
        except frames.FrameError:
            yield self._finish(answer, Failure(FailureKind.CONTEXT_OVERFLOW, "the prompt is far above the context"))
            return
        timer = _alarm(inbox, deadline)
        try:
            while True:
                match event := await inbox.get():
                    case frames.Piece():
                        yield answer.add(event.text, event.tokens)
                    case frames.Ended():
                        if (delta := answer.last(event.text, event.tokens)) is not None:
                            yield delta
                        yield self._finish(answer, event.failure, event)
                        return
                    case Lost():
                        yield self._finish(answer, Failure(FailureKind.CRASH, f"the model's worker {event}"))
                        return
                    case _:
                        yield self._finish(answer, Failure(FailureKind.TIMEOUT, "the deadline passed"))
                        return
        finally:
            if timer is not None:
                timer.cancel()
            worker.abandon(request_id, self._patience.stuck_s)

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
                    await self._next_change()
        except TimeoutError:
            raise _Unavailable(FailureKind.TIMEOUT, "the deadline passed before the model was ready") from None

    def _quarantine_message(self) -> str:
        return (
            f"model {self._file.name} lost its worker {self._settings.crashes_to_quarantine} times and is not started "
            f"again before the daemon is; the last: {self._last_error.partition(chr(10))[0]}"
        )

    def _finish(self, answer: _Answer, failure: Failure | None, ended: frames.Ended | None = None) -> Generation:
        METRICS.count("generations", model=self._file.name, outcome=failure.kind if failure else "ok")
        METRICS.count("generated_tokens", len(answer.tokens), model=self._file.name)
        return Generation(
            text="".join(answer.texts),
            finish_reason=answer.finish_reason(ended.finish_reason) if ended and not failure else None,
            tokens=tuple(answer.tokens),
            tool_calls=answer.reader.calls if answer.reader else (),
            incomplete=bool(ended and ended.incomplete),
            prompt_tokens=ended.prompt_tokens if ended else 0,
            cached_tokens=ended.cached_tokens if ended else 0,
            output_tokens=ended.output_tokens if ended else len(answer.tokens),
            first_token_ms=answer.first_token_ms,
            duration_ms=(time.monotonic() - answer.started) * 1000,
            model=self._file.name,
            model_digest=self._file.sha256,
            runtime=self._ready.runtime if self._ready else "",
            failure=failure,
        )

    def _failure(self, kind: FailureKind, message: str) -> Generation:
        return self._finish(_Answer(time.monotonic()), Failure(kind, message))

    # The lives of the worker.

    async def _live(self) -> None:
        failures_in_a_row = 0
        while not self._quarantined():
            if failures_in_a_row > 1:
                self._enter(WorkerState.BACKOFF)
                exponent = min(failures_in_a_row - 2, 16)
                await asyncio.sleep(min(self._patience.backoff_cap_s, self._patience.backoff_base_s * 2**exponent))
            try:
                if self._crashes:
                    self._file = await asyncio.to_thread(self._resolve)
                served = await self._one_life()
            except Exception as error:
                # Whatever it is, those who wait must hear of it: nobody awaits this task.
                LOG.error("model %s: the engine gives up: %s", self._file.name, error)
                self._last_error = str(error)
                self._enter(WorkerState.STOPPED)
                return
            failures_in_a_row = 1 if served else failures_in_a_row + 1
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
        try:
            self._ready = await worker.load(self._load_order(), self._settings.load_timeout_s)
            served = True
            self._enter(WorkerState.READY)
            self._record_crash(await asyncio.shield(worker.lost))
        except Lost as lost:
            self._record_crash(lost)
        finally:
            self._worker = None
            await worker.close(self._patience.leave_s)
        return served

    def _load_order(self) -> frames.Load:
        settings = self._settings
        return frames.Load(
            model=self._file,
            context_tokens=min(settings.context_tokens, self._file.context_tokens),
            parallel=settings.parallel,
            waiting_line=settings.waiting_line,
            threads=settings.threads,
            confine=settings.confine,
        )

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

    async def _next_change(self) -> None:
        await self._changed.wait()


class _Unavailable(Exception):
    def __init__(self, kind: FailureKind, message: str) -> None:
        super().__init__(message)
        self.failure = Failure(kind, message)


class _Answer:
    """What one request has received so far; survives the worker."""

    def __init__(self, started: float, reader: CallReader | None = None) -> None:
        self.started = started
        self.reader = reader  # where tools may be called
        self.texts: list[str] = []
        self.tokens: list[Token] = []
        self.first_token_ms: float | None = None

    def add(self, text: str, tokens: tuple[Token, ...]) -> Delta:
        if self.first_token_ms is None:
            self.first_token_ms = (time.monotonic() - self.started) * 1000
        text, calls = self.reader.feed(text) if self.reader else (text, ())
        return self._delta(text, tokens, calls)

    def last(self, text: str, tokens: tuple[Token, ...]) -> Delta | None:
        """Add what came with the end, and what the reader held back."""
        delta = self.add(text, tokens) if text or tokens else None
        held, calls = self.reader.finish() if self.reader else ("", ())
        if not held and not calls:
            return delta
        rest = self._delta(held, (), calls)
        return rest if delta is None else Delta(delta.text + held, tokens, calls=delta.calls + calls)

    def finish_reason(self, told: str | None) -> str | None:
        return "tool_calls" if told == "stop" and self.reader and self.reader.calls else told

    def _delta(self, text: str, tokens: tuple[Token, ...], calls: tuple[CallPiece, ...]) -> Delta:
        self.texts.append(text)
        self.tokens += tokens
        return Delta(text, tokens, calls=calls)


def _alarm(inbox: Inbox, deadline: float | None) -> asyncio.TimerHandle | None:
    # One timer a request: a timeout around each wait would cost on every token.
    if deadline is None:
        return None
    return asyncio.get_running_loop().call_later(max(0.0, deadline - time.monotonic()), inbox.put_nowait, EXPIRED)


def _rss_bytes(pid: int | None) -> int | None:
    if pid is None:
        return None
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return None
